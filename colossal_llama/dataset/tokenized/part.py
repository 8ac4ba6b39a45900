"""A data set on disk that another program tokenized, opened as a part.

Its rows become those of our parts when they are read (`row_form.py`); nothing is written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from colossal_llama.dataset.part import Part, RowsByNumber
from colossal_llama.dataset.part_facts import PartFacts
from colossal_llama.dataset.tokenized.columns import LABELS, MASK, POSITIONS, Columns
from colossal_llama.dataset.tokenized.rows import TokenizedRows, open_rows
from colossal_llama.dataset.tokenized.scan import SHORTEST_RUN, Scan, scan
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.fingerprint import fingerprint_bytes

_PADDED_SHARE = 0.1
"""Share of rows with a run of the padding token at an end, from which on it counts as padding."""
_SHOWN_TOKENS = 24


@dataclass(frozen=True, kw_only=True)
class TokenizedPart(Part):
    """A data set of another program, with what reading all of it has found."""

    columns: Columns
    scan: Scan

    @property
    def needs_verification(self) -> bool:
        """False: the scan has read every value."""
        return False

    @property
    def holds_samples(self) -> bool:
        """True for conversations, and for single documents of very different lengths."""
        lengths = self.scan.row_lengths
        is_uneven = self.scan.document_lengths is None and 2 * float(lengths.mean()) < int(lengths.max())
        return self.kind == "sft" or is_uneven

    def reader(self, columns: Sequence[str]) -> RowsByNumber:
        """Rows by their number, each as arrays of the columns by name."""
        return _Reader(self.rows, tuple(columns))

    def row_lengths_tokens(self) -> np.ndarray:
        """Lengths of all rows in tokens, without padding: int64 (rows,)."""
        return self.scan.row_lengths.astype(np.int64)

    def document_tokens(self, cross_document_attention: bool) -> np.ndarray:
        """Lengths of all documents; of the rows where attention crosses documents."""
        if cross_document_attention or self.scan.document_lengths is None:
            return self.row_lengths_tokens()
        return self.scan.document_lengths


@dataclass(frozen=True)
class _Reader:
    rows: TokenizedRows
    columns: tuple[str, ...]

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        row = self.rows.row(number)
        return {name: row[name] for name in self.columns}


def scan_data_set(path: Path) -> Scan:
    """Reads all rows of a data set on disk.

    Raises:
        UserError: it is damaged, or a row breaks a rule.
    """
    return scan(open_rows(path)[0])


def open_tokenized(path: Path, max_length: int, known: Scan | None = None) -> TokenizedPart:
    """Opens a data set on disk as a part.

    Args:
        path: its directory.
        max_length: maximum length of a row in tokens.
        known: its scan, where another process has made it.

    Raises:
        UserError: it is damaged, holds no targets, or has rows that are too long.
    """
    rows, files, categories = open_rows(path)
    found = known or scan(rows)
    if len(found.row_lengths) != len(rows):
        raise UserError(
            f"{path} has {len(rows):,} rows, and had {len(found.row_lengths):,} when it was read: begin again"
        )
    if problem := _problem(path, found, max_length, categories):
        raise UserError(problem)
    return TokenizedPart(
        path=path,
        rows=rows,
        facts=PartFacts(
            kind=_kind(found),
            fingerprint=fingerprint_bytes(found.fingerprint.encode(), *(name.encode() for name in categories)),
            tokens=found.tokens,
            max_length=int(found.row_lengths.max(initial=0)),
            rows=len(rows),
            target_tokens=found.target_tokens,
        ),
        categories=categories,
        files=files,
        columns=rows.columns,
        scan=found,
    )


def _problem(path: Path, found: Scan, max_length: int, categories: Sequence[str]) -> str | None:
    lengths = found.row_lengths
    if not len(lengths):
        return f"{path} holds no rows"
    if (too_long := lengths > max_length).any():
        return (
            f"{path}: {np.count_nonzero(too_long):,} of {len(lengths):,} rows are longer than --max_length "
            f"{max_length} (row {int(np.argmax(too_long))}, and the longest has {lengths.max():,} tokens): raise "
            "--max_length, or save the data set with shorter rows"
        )
    if not found.target_tokens:
        return f"{path} holds no target: its labels are -100, or first tokens of documents, which nothing predicts"
    if categories and found.largest_category >= len(categories):
        return f"{path}: the category number {found.largest_category} is none of its {len(categories)} names"
    return None


def _kind(found: Scan) -> str:
    """`sft` where rows are single samples, and most begin with context; else `pretrain`."""
    begins_with_context = 2 * found.rows_begun_by_context > len(found.row_lengths)
    return "sft" if found.document_lengths is None and begins_with_context else "pretrain"


def tokenizer_problem(part: TokenizedPart, tokenizer: PreTrainedTokenizerFast, ids: int) -> str | None:
    """Explains why a data set cannot be of a tokenizer; None where nothing speaks against it.

    Args:
        part: the data set.
        tokenizer: of the model.
        ids: number of its ids.
    """
    found = part.scan
    if found.largest_id >= ids:
        return (
            f"{part.path}: row {found.largest_id_row} has the id {found.largest_id:,}, and the model's tokenizer has "
            f"{ids:,} ids: it was tokenized with another one; tokenize the texts with the model's"
        )
    special = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    for token, rows in found.repeated_ends.items():
        if token in special and rows > _PADDED_SHARE * len(found.row_lengths):
            return (
                f"{part.path}: {rows:,} of {len(found.row_lengths):,} rows have the special token of id {token} at "
                f"least {SHORTEST_RUN} times at an end, as targets: save the data set with the {MASK} that marks such "
                f"padding by 0, or with {LABELS} of -100 there"
            )
    return None


def describe(part: TokenizedPart, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Says what a data set is, how its columns were read, and how its first row begins."""
    found, columns = part.scan, part.columns
    targets = LABELS if columns.labels else " and ".join(columns.target_masks) or f"no {LABELS}: all but first tokens"
    lengths = found.row_lengths
    files = f"{len(part.files):,} file{'s' if len(part.files) > 1 else ''}"
    counts = [
        f"{len(lengths):,} rows of {lengths.min():,} to {lengths.max():,} tokens",
        f"{found.documents:,} documents ({_division(columns, found)})",
        f"{found.tokens:,} tokens, {found.target_tokens:,} of them targets ({targets})",
        f"largest id {found.largest_id:,}",
    ]
    if found.padding_tokens:
        counts.append(f"{found.padding_tokens:,} tokens of padding left out")
    if found.rows_without_target:
        counts.append(f"{found.rows_without_target:,} rows without a target")
    if columns.unread:
        counts.append(f"columns not read: {', '.join(columns.unread)}")
    lines = [
        f"{part.path}, a data set tokenized elsewhere ({files}): {'; '.join(counts)}",
        f"{part.path}: {_reason(part)}",
    ]
    beginning = tokenizer.decode(part.rows.row(0)["input_ids"][:_SHOWN_TOKENS].tolist())
    return [*lines, f"{part.path}: which tokenizer made it is not recorded; row 0 begins {beginning!r}"]


def _division(columns: Columns, found: Scan) -> str:
    if found.document_lengths is None:
        return "one a row"
    mask = (
        (MASK,) if columns.attention_mask and not (columns.position_ids or columns.segments or columns.lengths) else ()
    )
    positions = (POSITIONS,) if columns.position_ids else ()
    return ", ".join((*columns.lengths, *columns.segments, *positions, *mask))


def _reason(part: TokenizedPart) -> str:
    """Says of which kind a data set is, and why."""
    found, rows = part.scan, len(part.scan.row_lengths)
    context = f"{found.rows_begun_by_context:,} of {rows:,} rows begin with tokens that are no targets"
    if part.kind == "sft":
        return f"counts as conversations, since {context}; they are packed unless --padding_mode says otherwise"
    reason = "documents are divided" if found.document_lengths is not None else context
    packed = (
        "; rows of so different lengths are packed unless --padding_mode says otherwise" if part.holds_samples else ""
    )
    return f"counts as pre-training data, since {reason}{packed}"


def kind_of_each(parts: Sequence[Part]) -> str:
    """Names the kind of each data set of another program, for a message; empty without one."""
    known: list[Any] = [part for part in parts if isinstance(part, TokenizedPart)]
    return "".join(f"; {part.path} {_reason(part)}" for part in known)
