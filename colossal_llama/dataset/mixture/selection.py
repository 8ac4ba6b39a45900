"""Chooses the documents of a category: a seeded order without replacement, epoch by epoch.

Every epoch has an order of its own, and the buckets take its documents one after the other:

    epoch 1   d3 d1 d4 | d0 d2     epoch 2   d1 d4 d3 | d2 d0
    bucket    0  0  0    1  1                1  1  1    2  2

At the end of a bucket the next `SEARCHED_DOCUMENTS` of the order are searched for the one that
brings it nearest to its tokens. So a bucket is off by less than the longest document, and mostly by
a few tokens. A bucket in which an epoch ends takes documents first that it does not hold yet.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

SEARCHED_DOCUMENTS = 256


@dataclass(frozen=True)
class Selection:
    """Documents of a category in the order in which they were chosen.

    Attributes:
        documents: int64 (chosen,) numbers of the documents; a repeated one is there several times.
        bucket_counts: int64 (buckets,) number of chosen documents of each bucket.
    """

    documents: np.ndarray
    bucket_counts: np.ndarray


def choose_documents(lengths: np.ndarray, bucket_ends: np.ndarray, seed: int, category: str) -> Selection:
    """Chooses documents for all buckets.

    Args:
        lengths: (documents,) tokens of each document, at least 1.
        bucket_ends: (buckets,) tokens that the buckets up to and with each are to have.
        seed: of the preparation.
        category: name of the category, which changes the orders.
    """
    stream = _DocumentStream(lengths, seed, category)
    chosen: list[np.ndarray] = []
    counts = np.zeros(len(bucket_ends), np.int64)
    taken_tokens = 0
    for bucket, end in enumerate(bucket_ends.tolist()):
        documents, tokens = stream.take(end - taken_tokens)
        taken_tokens += tokens
        chosen += documents
        counts[bucket] = sum(map(len, documents))
    return Selection(np.concatenate([np.empty(0, np.int64), *chosen]), counts)


class _DocumentStream:
    """Documents of a category in order, one epoch after the other."""

    def __init__(self, lengths: np.ndarray, seed: int, category: str):
        self._lengths = lengths
        name = int.from_bytes(hashlib.sha256(category.encode("utf-8", "surrogatepass")).digest()[:8])
        self._entropy = (seed, name)
        self._epoch = 0
        self._position = self._searched_end = len(lengths)
        self._order = np.empty(0, np.int64)
        self._ends = np.empty(0, np.int64)

    def take(self, tokens: int) -> tuple[list[np.ndarray], int]:
        """Takes the next documents with as nearly as possible so many tokens.

        Returns:
            Their numbers, and their tokens.
        """
        taken: list[np.ndarray] = []
        left = tokens
        order, begun = self._order, self._position
        while left > 0:
            if self._position == len(self._lengths):
                self._begin_epoch(left, avoided=order[begun:])
            start = self._ends[self._position]
            is_last = self._ends[-1] - start > left
            stop = self._nearest_stop(left) if is_last else len(self._lengths)
            taken.append(self._order[self._position : stop].copy())
            left -= int(self._ends[stop] - start)
            self._position = stop
            if is_last:
                break
        return taken, tokens - left

    def _begin_epoch(self, tokens: int, avoided: np.ndarray) -> None:
        """Orders the documents anew; the first of them, for `tokens`, are none of the avoided."""
        count = len(self._lengths)
        generator = np.random.Generator(np.random.PCG64([*self._entropy, self._epoch]))
        order = generator.permutation(np.arange(count, dtype=np.int32 if count < 2**31 else np.int64))
        self._searched_end = count
        if len(avoided):
            is_avoided = np.zeros(count, bool)
            is_avoided[avoided] = True
            free = order[~is_avoided[order]]
            free_ends = np.cumsum(self._lengths[free], dtype=np.int64)
            first = free[: int(np.searchsorted(free_ends, tokens)) + 1 + SEARCHED_DOCUMENTS]
            is_first = np.zeros(count, bool)
            is_first[first] = True
            order = np.concatenate([first, order[~is_first[order]]])
            if len(free) and free_ends[-1] >= tokens:
                self._searched_end = len(first)
        self._order, self._position, self._epoch = order, 0, self._epoch + 1
        self._ends = np.concatenate([[0], np.cumsum(self._lengths[order], dtype=np.int64)])

    def _nearest_stop(self, tokens: int) -> int:
        """Position after the next documents with about so many tokens; the last is searched for."""
        order, ends = self._order, self._ends
        goal = ends[self._position] + tokens
        stop = int(np.searchsorted(ends, goal, side="right")) - 1
        error, position, chosen = int(goal - ends[stop]), stop, None
        for first in (stop, stop - 1):  # one document more, or another one in place of the last
            searched = order[first : min(first + SEARCHED_DOCUMENTS, self._searched_end)]
            if first < self._position or not len(searched) or not error:
                break
            errors = np.abs(self._lengths[searched].astype(np.int64) - (goal - ends[first]))
            nearest = int(np.argmin(errors))
            if errors[nearest] < error:
                error, position, chosen = int(errors[nearest]), first, first + nearest
        self._searched_end = len(order)
        if chosen is None:
            return stop
        self._exchange(position, chosen)
        return position + 1

    def _exchange(self, position: int, other: int) -> None:
        """Exchanges the documents at two positions, the second of which is not before the first."""
        order, ends = self._order, self._ends
        ends[position + 1 : other + 1] += self._lengths[order[other]] - self._lengths[order[position]]
        order[[position, other]] = order[[other, position]]
