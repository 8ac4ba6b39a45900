"""Rows of a tokenized data set in the form of our parts: ids, labels, document lengths.

Padding is left out, documents are told by whatever column divides them, and a label is a token's id
or -100. All of it is computed for many rows at once.

    input_ids       5 6 7 8 9 0 0        input_ids         5 6 7 8 9
    attention_mask  1 1 1 2 2 0 0   →    labels            -100 6 7 -100 9
                                         document_lengths  3 2
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from colossal_llama.dataset.tokenized.columns import CATEGORIES, IDS, LABELS, MASK, POSITIONS, Columns
from colossal_llama.utils.labels import IGNORED_LABEL

_LARGEST_ID = 2**31 - 1
_SHIFTED_SHARE = 0.9
"""Share of a row's labels that are the next token's id, from which on they count as shifted."""


class RowProblem(Exception):
    """A row that cannot be used.

    Attributes:
        row: its number in the batch.
        what: is wrong with it.
    """

    def __init__(self, row: int, what: str):
        super().__init__(f"row {row}: {what}")
        self.row, self.what = row, what


@dataclass(frozen=True)
class Rows:
    """Rows as flat arrays, without padding.

    Attributes:
        ids: int32 (tokens,).
        labels: int32 (tokens,); -100 where a document begins.
        starts: int64 (rows + 1,), of the rows in `ids`.
        document_lengths: int32 (documents,).
        document_starts: int64 (rows + 1,), of the rows in `document_lengths`.
        categories: int64 (documents,); None where the data set has none.
        padding_tokens: number of tokens that were left out.
    """

    ids: np.ndarray
    labels: np.ndarray
    starts: np.ndarray
    document_lengths: np.ndarray
    document_starts: np.ndarray
    categories: np.ndarray | None
    padding_tokens: int


def normal_form(batch: pa.RecordBatch, columns: Columns) -> Rows:
    """Converts the rows of a batch, which must have been validated.

    Raises:
        RowProblem: a row breaks a rule.
    """
    tokens = _TokenColumns.read(batch, columns)
    kept = tokens.without(_padding(tokens, columns))
    begins = _document_begins(batch, kept, columns)
    trailing = _trailing_padding(kept, begins) if columns.position_ids and not columns.categories else None
    if trailing is not None and trailing.any():
        begins, kept = begins[~trailing], kept.without(trailing)
    ids = kept.values[IDS].astype(np.int32)
    labels = np.where(_targets(kept, columns) & ~begins, ids, np.int32(IGNORED_LABEL))
    positions = np.flatnonzero(begins)
    document_starts = np.searchsorted(positions, kept.starts)
    return Rows(
        ids=ids,
        labels=labels,
        starts=kept.starts,
        document_lengths=np.diff(positions, append=kept.starts[-1]).astype(np.int32),
        document_starts=document_starts,
        categories=_categories(batch, document_starts) if columns.categories else None,
        padding_tokens=int(tokens.starts[-1] - kept.starts[-1]),
    )


def flat(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Values of all lists of a column one after the other, and the start of each list in them."""
    if pa.types.is_fixed_size_list(column.type):
        starts = np.arange(len(column) + 1, dtype=np.int64) * column.type.list_size
    else:
        offsets = column.offsets.to_numpy().astype(np.int64)
        starts = offsets - offsets[0] if len(offsets) else np.zeros(1, np.int64)
    return column.flatten().to_numpy(zero_copy_only=False), starts


@dataclass(frozen=True)
class _TokenColumns:
    """Columns with a value for each token, flat, and the starts of the rows in all of them."""

    values: dict[str, np.ndarray]
    starts: np.ndarray

    @classmethod
    def read(cls, batch: pa.RecordBatch, columns: Columns) -> "_TokenColumns":
        """Reads the columns of a batch.

        Raises:
            RowProblem: columns of a row differ in length, or a value is no token id.
        """
        values, starts = {}, np.zeros(1, np.int64)
        for name in columns.of_tokens:
            values[name], own = flat(batch.column(name))
            if name == IDS:
                starts = own
            elif (differs := np.diff(own) != np.diff(starts)).any():
                row = int(np.argmax(differs))
                counts = int(own[row + 1] - own[row]), int(starts[row + 1] - starts[row])
                raise RowProblem(row, f"{name} has {counts[0]:,} values for {counts[1]:,} ids")
        found = cls(values, starts)
        ids = values[IDS]
        if len(ids) and (ids.min() < 0 or ids.max() > _LARGEST_ID):
            position = int(np.argmax((ids < 0) | (ids > _LARGEST_ID)))
            raise RowProblem(found.row_of(position), f"{ids[position]} is no token id")
        return found

    def row_of(self, position: int) -> int:
        """Row of a position in the flat arrays."""
        return int(np.searchsorted(self.starts, position, side="right")) - 1

    def row_begins(self) -> np.ndarray:
        """True at the first token of each row: bool (tokens,)."""
        begins = np.zeros(int(self.starts[-1]), dtype=bool)
        begins[self.starts[:-1][np.diff(self.starts) > 0]] = True
        return begins

    def without(self, padding: np.ndarray | None) -> "_TokenColumns":
        """The columns without padding; the tokens of a row must stay together."""
        if padding is None or not padding.any():
            kept = self
        else:
            counts = np.concatenate([[0], np.cumsum(~padding)])
            kept = _TokenColumns(
                {name: values[~padding] for name, values in self.values.items()}, counts[self.starts].astype(np.int64)
            )
        if (empty := np.diff(kept.starts) < 1).any():
            row = int(np.argmax(empty))
            held = "padding only" if self.starts[row + 1] > self.starts[row] else "no token"
            raise RowProblem(row, f"it holds {held}: leave such rows out with Dataset.filter")
        return kept


def _padding(tokens: _TokenColumns, columns: Columns) -> np.ndarray | None:
    """True for padding: bool (tokens,); None without a column that tells it."""
    padding = None
    if columns.attention_mask:
        mask = tokens.values[MASK]
        if mask.dtype != bool and len(mask) and mask.min() < 0:
            position = int(np.argmax(mask < 0))
            raise RowProblem(tokens.row_of(position), f"{MASK} has the value {mask[position]}")
        padding = mask == 0
    for name in columns.segments:
        own = _segment_padding(tokens, name)
        if padding is None and own.any():
            padding = own
    if padding is not None and padding.any():
        _refuse_holes(tokens, padding, MASK if columns.attention_mask else columns.segments[0])
    return padding


def _segment_padding(tokens: _TokenColumns, name: str) -> np.ndarray:
    """Padding by document numbers: -1, or 0 behind a document with a number above 0."""
    numbers = tokens.values[name].astype(np.int64)
    of_rows = _row_numbers(tokens) * (2 * int(np.abs(numbers).max(initial=0)) + 1)  # no row exceeds the next one
    highest_before = np.maximum.accumulate(numbers + of_rows) - of_rows
    return (numbers == -1) | ((numbers == 0) & (highest_before > 0))


def _row_numbers(tokens: _TokenColumns) -> np.ndarray:
    return np.repeat(np.arange(len(tokens.starts) - 1), np.diff(tokens.starts))


def _refuse_holes(tokens: _TokenColumns, padding: np.ndarray, name: str) -> None:
    """Refuses padding between the tokens of a row."""
    kept = np.flatnonzero(~padding)
    bounds = np.searchsorted(kept, tokens.starts)
    has = np.flatnonzero(np.diff(bounds))  # rows of padding only are refused later
    first, last = kept[bounds[:-1][has]], kept[bounds[1:][has] - 1]
    holes = last - first + 1 != np.diff(bounds)[has]
    if holes.any():
        row = int(has[np.argmax(holes)])
        raise RowProblem(row, f"{name} marks padding between its tokens, and only padding at its ends is understood")


def _document_begins(batch: pa.RecordBatch, tokens: _TokenColumns, columns: Columns) -> np.ndarray:
    """True at the first token of each document: bool (tokens,)."""
    divided: dict[str, np.ndarray] = {}
    row_begins = tokens.row_begins()
    for name in columns.segments:
        divided[name] = _changes(tokens, name, row_begins)
    if columns.attention_mask and tokens.values[MASK].max(initial=0) > 1:
        divided[MASK] = _changes(tokens, MASK, row_begins)
    if columns.position_ids:
        divided[POSITIONS] = _restarts(tokens, row_begins)
    for name in columns.lengths:
        divided[name] = _begins_by_length(batch, tokens, name)
    if not divided:
        return row_begins
    first, *others = divided.items()
    for name, begins in others:
        if (differs := begins != first[1]).any():
            row = tokens.row_of(int(np.argmax(differs)))
            raise RowProblem(
                row, f"{first[0]} and {name} divide it into different documents: leave one out with remove_columns"
            )
    return first[1]


def _changes(tokens: _TokenColumns, name: str, row_begins: np.ndarray) -> np.ndarray:
    """Begins by a number for each token, which rises from document to document."""
    numbers = tokens.values[name].astype(np.int64)
    steps = np.diff(numbers, prepend=numbers[:1])
    steps[row_begins] = 1
    if (falls := steps < 0).any():
        row = tokens.row_of(int(np.argmax(falls)))
        raise RowProblem(row, f"{name} falls, and only numbers that rise from document to document are understood")
    return steps > 0


def _restarts(tokens: _TokenColumns, row_begins: np.ndarray) -> np.ndarray:
    """Begins by positions, which count from 0 in each document."""
    positions = tokens.values[POSITIONS].astype(np.int64)
    steps = np.diff(positions, prepend=positions[:1])
    odd = (positions != 0) & ((steps != 1) | row_begins)
    if odd.any():
        position = int(np.argmax(odd))
        row = tokens.row_of(position)
        raise RowProblem(
            row,
            f"{POSITIONS} has {positions[position]} at token {position - int(tokens.starts[row])}, and only positions "
            "that count from 0 in each document are understood",
        )
    return positions == 0


def _begins_by_length(batch: pa.RecordBatch, tokens: _TokenColumns, name: str) -> np.ndarray:
    lengths, starts = flat(batch.column(name))
    if len(lengths) and lengths.min() < 1:
        row = int(np.searchsorted(starts, int(np.argmin(lengths)), side="right")) - 1
        raise RowProblem(row, f"{name} has a document of {lengths.min()} tokens")
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    sums, counts = np.diff(ends[starts]), np.diff(tokens.starts)
    if (differs := sums != counts).any():
        row = int(np.argmax(differs))
        raise RowProblem(row, f"{name} gives {sums[row]:,} tokens, and it has {counts[row]:,} without padding")
    begins = np.zeros(int(tokens.starts[-1]), dtype=bool)
    begins[ends[:-1]] = True
    return begins


def _trailing_padding(tokens: _TokenColumns, begins: np.ndarray) -> np.ndarray | None:
    """Documents of one token at the end of a row: padding whose positions are all 0, if any.

    Nothing is learned from such a document, as its only token is its first. A row keeps one
    document.
    """
    ends_row = np.zeros(len(begins), dtype=bool)
    ends_row[tokens.starts[1:] - 1] = True
    single = begins & (ends_row | np.append(begins[1:], True))
    if not (single & ends_row & ~tokens.row_begins()).any():
        return None
    other = np.flatnonzero(~single | tokens.row_begins())  # the last of these in a row is kept
    last = other[np.searchsorted(other, tokens.starts[1:]) - 1]
    return np.arange(len(begins)) > np.repeat(last, np.diff(tokens.starts))


def _targets(tokens: _TokenColumns, columns: Columns) -> np.ndarray:
    """True for targets: by labels, else by masks of targets, else all tokens: bool (tokens,)."""
    ids = tokens.values[IDS]
    if not columns.labels:
        targets = np.ones(len(ids), dtype=bool)
        for name in columns.target_masks:
            mask = tokens.values[name]
            if (wrong := (mask != 0) & (mask != 1)).any():
                position = int(np.argmax(wrong))
                raise RowProblem(
                    tokens.row_of(position), f"{name} has the value {mask[position]}, and 0 or 1 is needed"
                )
            targets &= mask.astype(bool)
        return targets
    labels = tokens.values[LABELS]
    targets = labels != IGNORED_LABEL
    wrong = targets & (labels != ids)
    if wrong.any():
        raise _wrong_label(tokens, int(np.argmax(wrong)))
    return targets


def _wrong_label(tokens: _TokenColumns, position: int) -> RowProblem:
    row = tokens.row_of(position)
    span = slice(int(tokens.starts[row]), int(tokens.starts[row + 1]))
    ids, labels = tokens.values[IDS][span], tokens.values[LABELS][span]
    targets = labels[:-1] != IGNORED_LABEL
    shifted = int(np.count_nonzero(targets & (labels[:-1] == ids[1:])))
    if shifted and shifted >= _SHIFTED_SHARE * np.count_nonzero(targets):
        return RowProblem(
            row,
            "its labels are shifted already (each is the next token's id), and train.py shifts them itself: save the "
            f"data set with labels that are the ids of the same positions, {IGNORED_LABEL} where nothing is trained",
        )
    at = position - span.start
    return RowProblem(
        row, f"the label {labels[at]} of token {at} is neither {IGNORED_LABEL} nor the token's id {ids[at]}"
    )


def _categories(batch: pa.RecordBatch, document_starts: np.ndarray) -> np.ndarray:
    categories, starts = flat(batch.column(CATEGORIES))
    counts, documents = np.diff(starts), np.diff(document_starts)
    if (differs := counts != documents).any():
        row = int(np.argmax(differs))
        raise RowProblem(row, f"{CATEGORIES} has {counts[row]:,} values for {documents[row]:,} documents")
    return categories.astype(np.int64)
