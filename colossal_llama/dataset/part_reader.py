"""Opens the parts that the prepare scripts wrote, memory-mapped, and reads their metadata."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow.compute

from colossal_llama.utils.cli import directory_problem
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.fingerprint import fingerprint_bytes

_FACTS = {"kind": str, "fingerprint": str, "tokens": int, "max_length": int}
"""Required fields of part.json."""


@dataclass(frozen=True)
class Part:
    """A part of a prepared data set (`arrow/part-0000i`)."""

    path: Path
    rows: datasets.Dataset
    kind: str
    """`pretrain` or `sft`."""
    fingerprint: str
    tokenizer_fingerprint: str | None
    tokens: int
    max_length: int
    """Maximum length of a row in tokens, as the part was prepared."""
    categories: tuple[str, ...]
    chat_template_date: str | None = None
    """Day that the chat template was told, YYYY-MM-DD; None for a format without a date."""

    def row_lengths_tokens(self) -> np.ndarray:
        """Lengths of all rows in tokens: int64 (rows,)."""
        column = self.rows.data.column("input_ids")
        return pyarrow.compute.list_value_length(column).to_numpy().astype(np.int64)

    def max_document_tokens(self, cross_document_attention: bool) -> int:
        """Length of the longest document; of the longest row where attention crosses documents."""
        if cross_document_attention:
            return int(self.row_lengths_tokens().max(initial=0))
        lengths = pyarrow.compute.list_flatten(self.rows.data.column("document_lengths"))
        return pyarrow.compute.max(lengths).as_py() or 0


def full_row_tokens(parts: Sequence[Part], max_length: int, packed_to_tokens: int | None) -> int:
    """Length of a full row in training.

    Args:
        parts: of the run.
        max_length: of the run, in tokens; no row is longer.
        packed_to_tokens: row length that samples are packed to; None where they are not packed, and
            the longest row of the data counts.
    """
    return packed_to_tokens or min(max_length, max(int(part.row_lengths_tokens().max(initial=0)) for part in parts))


def categories_of(parts: Sequence[Part]) -> tuple[str, ...]:
    """Categories of all parts, each once, in order of first appearance.

    Empty if any part has none.
    """
    if not all(part.categories for part in parts):
        return ()
    return tuple(dict.fromkeys(name for part in parts for name in part.categories))


def open_parts(paths: Sequence[str | Path], max_length: int, option: str = "--dataset") -> list[Part]:
    """Opens part directories, memory-mapped, and checks them.

    Args:
        paths: the directories.
        max_length: maximum length of a row in tokens.
        option: that names the paths on the command line, for messages.

    Raises:
        UserError: parts are missing, damaged, not written by the prepare scripts, of longer rows or
            of several kinds; every one of them is named.
    """
    parts, problems = [], []
    for path in map(Path, paths):
        try:
            parts.append(_open_part(path, max_length, option))
        except UserError as error:
            problems += error.problems
    if not problems and not sum(len(part.rows) for part in parts):
        problems.append(f"{option}: the parts hold no rows")
    if not problems and len({part.kind for part in parts}) > 1:
        problems.append(f"{option} mixes pre-training and conversation parts: use one kind, then the other")
    if problems:
        raise UserError(problems)
    return parts


def _open_part(path: Path, max_length: int, option: str) -> Part:
    if reason := directory_problem(path):
        raise UserError(f"{option}: {path} {reason}")
    facts_path = path / "part.json"
    if not facts_path.is_file():
        raise UserError(
            f"{option}: {path} is not a part written by prepare_pretrain_dataset.py or prepare_sft_dataset.py (no "
            "part.json); give the directories arrow/part-00000 and so on, one by one"
        )
    try:
        rows = datasets.load_from_disk(str(path))
        facts = json.loads(facts_path.read_text(encoding="utf-8"))
    except Exception as error:  # pyarrow, datasets and json each raise their own on a damaged file
        raise UserError(f"{option}: {path} cannot be read: {error}") from error
    missing = {"input_ids", "labels", "document_lengths"} - set(rows.column_names)
    if missing:
        raise UserError(f"{option}: {path} lacks the columns {', '.join(sorted(missing))}")
    wrong = [
        name for name, kind in _FACTS.items() if not (isinstance(facts, dict) and isinstance(facts.get(name), kind))
    ]
    if wrong:
        raise UserError(
            f"{option}: {facts_path} lacks {', '.join(wrong)}, or has values of other types there: the file was "
            "changed or truncated; copy the part again, or prepare the data again"
        )
    if facts["max_length"] > max_length:
        raise UserError(
            f"{option}: {path} was prepared for rows of up to {facts['max_length']} tokens, more than --max_length "
            f"{max_length}: raise --max_length, or prepare the data again with the shorter one"
        )
    categories: tuple[str, ...] = ()
    feature = rows.features.get("document_categories")
    if feature is not None:
        categories = tuple(feature.feature.names)
    return Part(
        path=path,
        rows=rows,
        kind=facts["kind"],
        fingerprint=facts["fingerprint"],
        tokenizer_fingerprint=facts.get("tokenizer_fingerprint"),
        tokens=int(facts["tokens"]),
        max_length=int(facts["max_length"]),
        categories=categories,
        chat_template_date=facts.get("chat_template_date"),
    )


def data_fingerprint(parts: Sequence[Part]) -> str:
    """SHA-256 over the parts' fingerprints, in order: identifies the data wherever they are."""
    return fingerprint_bytes(*(part.fingerprint.encode() for part in parts))
