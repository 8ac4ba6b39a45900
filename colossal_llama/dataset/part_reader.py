"""Opening the parts that the prepare scripts wrote, memory-mapped, and what is known of them before a row is read."""

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
"""What part.json must say."""


@dataclass(frozen=True)
class Part:
    """One prepared bucket (`arrow/part-0000i`)."""

    path: Path
    rows: datasets.Dataset
    kind: str
    """`pretrain` or `sft`."""
    fingerprint: str
    tokenizer_fingerprint: str | None
    tokens: int
    max_length: int
    """No row of the part is longer (tokens)."""
    categories: tuple[str, ...]

    def row_lengths_tokens(self) -> np.ndarray:
        """int64, shape (rows,): tokens of each row."""
        column = self.rows.data.column("input_ids")
        return pyarrow.compute.list_value_length(column).to_numpy().astype(np.int64)

    def max_document_tokens(self, across_documents: bool) -> int:
        """Tokens of the longest document, or of the longest row."""
        if across_documents:
            return int(self.row_lengths_tokens().max(initial=0))
        lengths = pyarrow.compute.list_flatten(self.rows.data.column("document_lengths"))
        return pyarrow.compute.max(lengths).as_py() or 0


def full_row_tokens(parts: Sequence[Part], max_length: int, packed_to_tokens: int | None) -> int:
    """How long a full row in training is: what samples are packed to, else the longest row that there is, cut at `max_length`."""
    return packed_to_tokens or min(max_length, max(int(part.row_lengths_tokens().max(initial=0)) for part in parts))


def categories_of(parts: Sequence[Part]) -> tuple[str, ...]:
    """The categories of all parts together, each once, in the order in which they are first named; none if some part names none."""
    if not all(part.categories for part in parts):
        return ()
    return tuple(dict.fromkeys(name for part in parts for name in part.categories))


def open_parts(paths: Sequence[str | Path], max_length: int, option: str = "--dataset") -> list[Part]:
    """Opens prepared part directories, memory-mapped, whose rows have at most `max_length` tokens.

    Args:
        paths: the directories.
        max_length: the most tokens of a row.
        option: by which the user gave them, for messages.

    Raises:
        UserError: some are missing or are not what the prepare scripts write; all of them are
            named.
    """
    parts, problems = [], []
    for path in map(Path, paths):
        try:
            parts.append(_open_part(path, max_length, option))
        except UserError as error:
            problems += error.problems
    if not problems and not sum(len(part.rows) for part in parts):
        problems.append(f"{option}: the parts hold no rows at all, so there is nothing to work with")
    if not problems and len({part.kind for part in parts}) > 1:
        problems.append(f"{option} mixes pre-training and conversation parts: use one kind, then the other")
    if problems:
        raise UserError(problems)
    return parts


def _open_part(path: Path, max_length: int, option: str) -> Part:
    if reason := directory_problem(path):
        raise UserError(f"{option}: {path} {reason}")
    note = path / "part.json"
    if not note.is_file():
        raise UserError(
            f"{option}: {path} is not a part written by prepare_pretrain_dataset.py or prepare_sft_dataset.py (no "
            "part.json); "
            "give the directories arrow/part-00000 and so on, one by one"
        )
    try:
        rows = datasets.load_from_disk(str(path))
        facts = json.loads(note.read_text(encoding="utf-8"))
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
            f"{option}: {note} lacks {', '.join(wrong)}, or has something else under that name: it was changed or cut "
            "off; copy the part "
            "again, or prepare the data again"
        )
    if facts["max_length"] > max_length:
        raise UserError(
            f"{option}: {path} was prepared for rows of up to {facts['max_length']} tokens, more than --max_length "
            f"{max_length}: "
            "raise --max_length, or prepare the data again with the shorter one"
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
    )


def data_fingerprint(parts: Sequence[Part]) -> str:
    """SHA-256 over the parts' own fingerprints, in order: names the data of a run wherever the files lie."""
    return fingerprint_bytes(*(part.fingerprint.encode() for part in parts))
