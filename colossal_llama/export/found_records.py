"""Finds the records of runs, data and tokenizers in directories, each told by its content."""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colossal_llama.dataset.prepare.manifest import read_manifest
from colossal_llama.training.record_files import METRICS_FILE, RUN_KEYS, WRITER_FILE
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.errors import UserError

_DEEPEST, _MOST_DIRECTORIES, _LARGEST_BYTES = 4, 2_000, 32 << 20
_NEVER_RECORDS = ("tokenizer.json", "vocab.json", "tokenizer_config.json", "last_run.json")
_NEVER_ENTERED = ("arrow", "jsonl", "cache", "optimizer", "random_states", "node_modules")
_KINDS: Mapping[str, set[str]] = {
    "configurations": set(RUN_KEYS),
    "manifests": {"manifest_version", "identity", "parts"},
    "tokenizer_reports": {"data_input_dirs", "sample_share", "tokenizers"},
    "expansions": {"family", "source_vocab_size", "vocab_size"},
    "initialisations": {"init_method", "rows", "source_model_and_tokenizer_path"},
    "evaluations": {"results", "n-shot"},
}
"""Keys by which a record is told; `evaluations` are lm-evaluation-harness's."""


@dataclass
class FoundRecords:
    """Records by kind, each with its file; `metrics` are directories by their run's save_dir."""

    configurations: dict[Path, dict[str, Any]] = field(default_factory=dict)
    manifests: dict[Path, dict[str, Any]] = field(default_factory=dict)
    tokenizer_reports: dict[Path, dict[str, Any]] = field(default_factory=dict)
    expansions: dict[Path, dict[str, Any]] = field(default_factory=dict)
    initialisations: dict[Path, dict[str, Any]] = field(default_factory=dict)
    evaluations: dict[Path, dict[str, Any]] = field(default_factory=dict)
    metrics: dict[Path, str] = field(default_factory=dict)

    def add(self, path: Path) -> None:
        """Adds a file if it is a record; a damaged record is named and left out."""
        content = _read(path)
        if path.name == WRITER_FILE and isinstance(content.get("save_dir"), str):
            if (path.parent / METRICS_FILE).is_file():
                self.metrics[path.parent] = content["save_dir"]
            return
        kind = next((kind for kind, keys in _KINDS.items() if keys <= content.keys()), None)
        if kind == "manifests":
            try:
                content = read_manifest(path.parent)
            except UserError as error:
                log_rank_zero(f"warning: {error}: the model card does without it")
                return
        if kind is not None:
            getattr(self, kind)[path.resolve()] = content


def find_records(directories: Iterable[Path], deepest: int = _DEEPEST) -> FoundRecords:
    """Reads all records below directories.

    Args:
        directories: where to look.
        deepest: how many levels of directories below them are entered.
    """
    found = FoundRecords()
    for path in _json_files(directories, deepest):
        found.add(path)
    return found


def _json_files(directories: Iterable[Path], deepest: int) -> Iterator[Path]:
    """Yields files breadth first; the number of directories is limited."""
    pending = deque((directory.resolve(), 0) for directory in directories)
    seen: set[Path] = set()
    while pending and len(seen) < _MOST_DIRECTORIES:
        directory, depth = pending.popleft()
        if directory in seen:
            continue
        seen.add(directory)
        try:
            entries = sorted(directory.iterdir())
        except OSError:
            continue  # no permission: its records are not there for this user
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir() and not entry.is_symlink():
                if depth < deepest and entry.name not in _NEVER_ENTERED:
                    pending.append((entry, depth + 1))
            elif entry.suffix == ".json" and entry.name not in _NEVER_RECORDS and _is_small_file(entry):
                yield entry


def _is_small_file(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size <= _LARGEST_BYTES
    except OSError:
        return False


def _read(path: Path) -> dict[str, Any]:
    """Content of a JSON file; empty where it is none, or no object: it is not a record."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_steps(path: Path) -> list[dict[str, Any]]:
    """Entries of a metrics.jsonl that have a step; others, as of a killed run, are counted."""
    entries, others = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if isinstance(entry, dict) and type(entry.get("step")) is int:
            entries.append(entry)
        else:
            others += bool(line.strip())
    if others:
        log_rank_zero(f"warning: {path} has {others:,} lines that are no steps: the model card does without them")
    return entries
