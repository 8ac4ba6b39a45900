"""Corpus of benchmarks/initialisation_worth.py: held-out documents, and parts of two trainings."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from colossal_llama.utils.errors import UserError

_ROOT = Path(__file__).resolve().parents[1]
_HELD_OUT_CHARACTERS = 4_000  # per document, so that the held-out bytes come from many
_CONTINUED_SHARE = 0.2  # of the documents of every category


def split_corpus(
    corpus_dir: Path, work_dir: Path, held_out_bytes: int, most_documents: int | None
) -> tuple[dict[str, list[str]], dict]:
    """Splits the documents into source training, continued training and held-out ones.

    Args:
        corpus_dir: pre-training records.
        work_dir: where `source-corpus` and `continued-corpus` are written.
        held_out_bytes: of each category.
        most_documents: of each category; None: all.

    Returns:
        The held-out texts by category, and counts.
    """
    by_category = read_documents(corpus_dir)
    held_out: dict[str, list[str]] = {}
    shares: dict[str, list] = {"source": [], "continued": []}
    for category, documents in sorted(by_category.items()):
        random.Random(0).shuffle(documents)
        documents = documents[:most_documents]
        held_out[category], rest = _hold_out(documents, held_out_bytes)
        border = int(_CONTINUED_SHARE * len(rest))
        shares["continued"] += rest[:border]
        shares["source"] += rest[border:]
    counts: dict[str, Any] = {"held_out_bytes": {name: _bytes(texts) for name, texts in held_out.items()}}
    for name, documents in shares.items():
        random.Random(1).shuffle(documents)
        (work_dir / f"{name}-corpus").mkdir()
        with (work_dir / f"{name}-corpus" / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(document), ensure_ascii=False) + "\n" for document in documents)
        texts = [document.source + document.target for document in documents]
        counts[name] = {"documents": len(documents), "bytes": _bytes(texts)}
    return held_out, counts


def read_documents(directory: Path) -> dict[str, list]:
    """Reads all documents by category."""
    from colossal_llama.readers.fields import FieldOptions, document_of
    from colossal_llama.readers.line_reader import BYTES_PER_MB, MAX_LINE_MB
    from colossal_llama.readers.listing import find_input_files
    from colossal_llama.readers.record import parse_row
    from colossal_llama.readers.rows import FileRange, read_rows

    by_category: dict[str, list] = {}
    for file in find_input_files([directory])[0]:
        for _, row in read_rows(FileRange(file), MAX_LINE_MB * BYTES_PER_MB):
            if isinstance(row, dict) or row.strip():
                document = document_of(parse_row(row), file, FieldOptions())
                by_category.setdefault(document.category, []).append(document)
    return by_category


def _hold_out(documents: list, size_bytes: int) -> tuple[list[str], list]:
    texts: list[str] = []
    for number_of_held_out, document in enumerate(documents):
        if _bytes(texts) >= size_bytes:
            return texts, documents[number_of_held_out:]
        texts.append((document.source + document.target)[:_HELD_OUT_CHARACTERS])
    raise UserError(f"--eval_bytes {size_bytes}: a category has no more text than that")


def _bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def prepare_both(source_tokenizer: Path, target_tokenizer: Path, length_tokens: int, work_dir: Path) -> dict:
    """Prepares the parts of both trainings concurrently; returns the totals of their manifests.

    They are in `work_dir`/source-data and `work_dir`/continued-data.
    """
    tokenizers = {"source": source_tokenizer, "continued": target_tokenizer}
    workers = max(1, len(os.sched_getaffinity(0)) // 2)
    processes = {}
    for name, tokenizer in tokenizers.items():
        command = [
            sys.executable,
            _ROOT / "prepare_pretrain_dataset.py",
            "--data_input_dirs",
            work_dir / f"{name}-corpus",
        ]
        command += ["--tokenizer_dir", tokenizer, "--data_output_dirs", work_dir / f"{name}-data"]
        command += ["--max_length", length_tokens, "--num_spliced_dataset_bins", 1, "--num_workers", workers]
        log = (work_dir / f"{name}-data.log").open("w")
        processes[name] = subprocess.Popen(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT)
    for name, process in processes.items():
        if process.wait():
            raise UserError((work_dir / f"{name}-data.log").read_text()[-2000:])
    return {
        name: json.loads((work_dir / f"{name}-data" / "manifest.json").read_bytes())["totals"] for name in tokenizers
    }
