"""Packs items into rows of limited length: pure functions of the items' lengths.

Preparation packs segments of documents; training packs samples (conversations).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rows:
    """Rows as lists of item numbers, stored flat.

    Attributes:
        items: (items,) item numbers; row r is `items[starts[r]:starts[r + 1]]`.
        starts: (rows + 1,) positions in `items`.
    """

    items: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def row(self, number: int) -> np.ndarray:
        """Item numbers of a row, in order."""
        return self.items[self.starts[number] : self.starts[number + 1]]


def splice_best_fit(lengths: Sequence[int] | np.ndarray, max_length: int) -> Rows:
    """Packs by best-fit decreasing: the longest item first, each into the fullest row with room.

    "Fewer Truncations Improve Language Modeling" (arXiv 2404.10830) packs documents in this way.

        lengths 5 4 3 2 1 1, max_length 8   →   rows [5 3] [4 2 1 1]

    Args:
        lengths: (items,) lengths in tokens, each in [1, max_length].
        max_length: maximum length of a row in tokens.

    Returns:
        Rows in the order in which they were opened, with items in the order in which they were
            added. Every item is in exactly one row.
    """
    lengths = _checked(lengths, max_length)
    order = np.argsort(-lengths, kind="stable")
    row_of = np.empty(len(lengths), np.int64)
    rows_with_room: list[list[int]] = [[] for _ in range(max_length + 1)]
    # Bit r is set while some row has room for exactly r tokens: the lowest set bit from `length` on
    # is the best fit.
    rooms = 0
    opened = 0
    for item, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = max_length, opened
            opened += 1
        row_of[item] = row
        left = room - length
        if left:
            rows_with_room[left].append(row)
            rooms |= 1 << left
    by_row = np.argsort(row_of[order], kind="stable")
    return Rows(order[by_row], _starts(np.bincount(row_of, minlength=opened)))


def splice_greedy(lengths: Sequence[int] | np.ndarray, max_length: int) -> Rows:
    """Packs in the given order: a row takes items until the next one does not fit.

    Partly filled rows are kept.
    """
    lengths = _checked(lengths, max_length)
    counts: list[int] = []
    filled = max_length
    for length in lengths.tolist():
        if filled + length > max_length:
            counts.append(0)
            filled = 0
        counts[-1] += 1
        filled += length
    return Rows(np.arange(len(lengths)), _starts(np.array(counts, np.int64)))


def one_item_per_row(lengths: Sequence[int] | np.ndarray, max_length: int) -> Rows:
    """Puts every item into a row of its own: no splicing."""
    lengths = _checked(lengths, max_length)
    return Rows(np.arange(len(lengths)), np.arange(len(lengths) + 1))


SPLICINGS = {"best_fit": splice_best_fit, "greedy": splice_greedy, "none": one_item_per_row}


def shuffle_rows(rows: Rows, seed: Sequence[int]) -> Rows:
    """Permutes the rows at random; the order depends on the seed and the number of rows alone."""
    order = np.random.Generator(np.random.PCG64(list(seed))).permutation(len(rows))
    if not len(order):
        return rows
    return Rows(np.concatenate([rows.row(number) for number in order]), _starts(np.diff(rows.starts)[order]))


def _checked(lengths: Sequence[int] | np.ndarray, max_length: int) -> np.ndarray:
    lengths = np.asarray(lengths, np.int64)
    if len(lengths) and (lengths.min() < 1 or lengths.max() > max_length):
        raise ValueError(f"items of {lengths.min()} to {lengths.max()} tokens do not fit rows of 1 to {max_length}")
    return lengths


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
