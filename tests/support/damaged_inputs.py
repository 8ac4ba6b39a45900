"""A model with prepared parts from made texts, and train.py on damaged copies of them."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from colossal_llama.tokenizer.loading import load_tokenizer
from tests.campaigns.outcome import PROJECT_ROOT, Ended, run_command
from tests.support.made_data import make_llama2, make_llama3, make_texts
from tests.support.ranks import run_ranks

MAX_LENGTH = 256
RECORDS = 40
"""So many of each category are prepared."""
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LENGTH,
}


@dataclass(frozen=True)
class Base:
    """Undamaged inputs: a model with its tokenizer, and parts prepared with it.

    Attributes:
        model: directory.
        parts: two pre-training parts with categories.
        sft_part: a part of conversations.
        foreign_part: a part like the first, prepared with a larger tokenizer.
    """

    model: Path
    parts: tuple[Path, ...]
    sft_part: Path
    foreign_part: Path


def make_base(root: Path) -> Base:
    """Makes all in a new directory; some seconds."""
    make_texts(root / "all")
    for kind, categories in (("pretrain", ("en_docs", "zh_poetry")), ("sft", ("kdconv",))):
        for category in categories:
            source = next((root / "all" / kind / category).iterdir())
            target = root / kind / category / "0.jsonl"
            target.parent.mkdir(parents=True)
            target.write_text("".join(source.open(encoding="utf-8").readlines()[:RECORDS]), encoding="utf-8")
    tokenizer = make_llama2(root / "model")
    foreign = make_llama3(root / "foreign_tokenizer", "<|end_of_text|>")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(load_tokenizer(tokenizer)), **SHAPE)).save_pretrained(root / "model")
    _prepare("pretrain", root / "pretrain", tokenizer, root / "prepared", 2)
    _prepare("sft", root / "sft", tokenizer, root / "prepared_sft", 1)
    _prepare("pretrain", root / "pretrain", foreign, root / "prepared_foreign", 2)
    parts = tuple(root / "prepared" / "arrow" / f"part-{number:05d}" for number in range(2))
    first = Path("arrow", "part-00000")
    return Base(root / "model", parts, root / "prepared_sft" / first, root / "prepared_foreign" / first)


def _prepare(kind: str, source: Path, tokenizer: Path, target: Path, parts: int) -> None:
    version = ["--llama_version", 2] if kind == "sft" else []
    options = [*version, "--max_length", MAX_LENGTH, "--num_spliced_dataset_bins", parts, "--num_workers", 1]
    paths = ["--data_input_dirs", source, "--tokenizer_dir", tokenizer, "--data_output_dirs", target]
    ended = run_command([f"prepare_{kind}_dataset.py", *map(str, [*paths, *options])])
    assert ended.code == 0, ended.stderr


def train(model: Path, parts: Sequence[Path], place: Path, *options: str, timeout_s: float = 120) -> Ended:
    """Runs two steps of train.py on the CPU, in a process forked from one that has imported all."""
    words = ["--pretrained", model, "--dataset", *parts, "--max_length", MAX_LENGTH, "--plugin", "zero2"]
    words += ["--mixed_precision", "fp32", "--max_steps", 2, "--micro_batch_size", 2, "--accumulation_steps", 2]
    words += ["--save_dir", place / "save", "--tensorboard_dir", place / "logs", "--config_file", place / "run.json"]
    begin = time.monotonic()
    done = run_ranks("train.py", [*map(str, words), *options], 1, PROJECT_ROOT, timeout_s)
    code = None if done.returncode == 124 else done.returncode
    return Ended(code, done.stdout, done.stdout, time.monotonic() - begin)


def losses(place: Path) -> list[dict[str, Any]]:
    """All losses of the steps of a run."""
    lines = (place / "logs" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if "loss" in key} for line in lines]


def leftovers(place: Path) -> list[str]:
    """Files that a refused run left behind, apart from locks."""
    found = [Path(folder, name) for folder, _, names in os.walk(place) for name in names]
    return sorted(str(path.relative_to(place)) for path in found if path.name != ".lock")
