"""Runs the tokenizer's scripts as a user does, and encodes texts with their results."""

import json
from pathlib import Path
from subprocess import CompletedProcess

from transformers import PreTrainedTokenizerBase

from tests.support.scripts import run_script


def run_tokenizer_script(project_root: Path, name: str, *arguments: object) -> CompletedProcess:
    return run_script(project_root, f"colossal_llama/tokenizer/{name}", *arguments, timeout=200)


def expand(project_root: Path, source: Path, target: Path, pieces: Path, *options: str) -> CompletedProcess:
    """Runs init_tokenizer.py."""
    words = ["--source_tokenizer_dir", source, "--target_tokenizer_dir", target, "--expand_tokens_file", pieces]
    return run_tokenizer_script(project_root, "init_tokenizer.py", *words, *options)


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def ids_of(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Ids of each text without control tokens; the list may be empty, which tokenizers refuse."""
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []
