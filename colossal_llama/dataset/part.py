"""A part of the data, opened: its rows, memory-mapped, and what is recorded about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.compute

from colossal_llama.dataset.part_content import ContentRules
from colossal_llama.dataset.part_facts import PartFacts
from colossal_llama.utils.fingerprint import fingerprint_bytes


class RowsByNumber(Protocol):
    """Rows that can be read by their number."""

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        """Reads a row: its columns by name."""


@dataclass(frozen=True)
class Part:
    """A part of a prepared data set (`arrow/part-0000i`)."""

    path: Path
    rows: Any
    """A `datasets.Dataset`, or `TokenizedRows`."""
    facts: PartFacts
    categories: tuple[str, ...]
    files: tuple[Path, ...] = ()
    """The Arrow files; none for rows that are in memory only."""

    @property
    def kind(self) -> str:
        """`pretrain` or `sft`."""
        return self.facts.kind

    @property
    def fingerprint(self) -> str:
        """Identifies the part wherever it is."""
        return self.facts.fingerprint

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """Identifies the tokenizer of the preparation."""
        return self.facts.tokenizer_fingerprint

    @property
    def tokens(self) -> int:
        """Number of tokens of all rows."""
        return self.facts.tokens

    @property
    def chat_template_date(self) -> str | None:
        """Day that the chat template was told, YYYY-MM-DD; None for a format without a date."""
        return self.facts.chat_template_date

    @property
    def conversation_format(self) -> dict | None:
        """Describes the format of the conversations; None where it is not recorded."""
        return self.facts.conversation_format

    def rules(self, vocabulary: int, compare_checksum: bool) -> ContentRules:
        """Builds the rules that the rows must keep.

        Args:
            vocabulary: number of token ids.
            compare_checksum: True where the file's checksum is compared, if it is recorded.
        """
        return ContentRules(
            vocabulary=vocabulary,
            max_length_tokens=self.facts.max_length,
            categories=len(self.categories),
            target_tokens=self.facts.target_tokens,
            arrow_sha256=self.facts.arrow_sha256 if compare_checksum else None,
        )

    @property
    def needs_verification(self) -> bool:
        """True for files whose values are to be checked before the first step."""
        return bool(self.files)

    @property
    def holds_samples(self) -> bool:
        """True where rows are samples, which training packs; False where rows are spliced."""
        return self.kind == "sft"

    def reader(self, columns: Sequence[str]) -> "RowsByNumber":
        """Rows by their number, each as arrays of the columns by name."""
        return self.rows.select_columns(list(columns)).with_format("numpy")

    def row_lengths_tokens(self) -> np.ndarray:
        """Lengths of all rows in tokens: int64 (rows,)."""
        column = self.rows.data.column("input_ids")
        return pyarrow.compute.list_value_length(column).to_numpy().astype(np.int64)

    def document_tokens(self, cross_document_attention: bool) -> np.ndarray:
        """Lengths of all documents; of the rows where attention crosses documents."""
        if cross_document_attention:
            return self.row_lengths_tokens()
        return pyarrow.compute.list_flatten(self.rows.data.column("document_lengths")).to_numpy()


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


def data_fingerprint(parts: Sequence[Part]) -> str:
    """SHA-256 over the parts' fingerprints, in order: identifies the data wherever they are."""
    return fingerprint_bytes(*(part.fingerprint.encode() for part in parts))
