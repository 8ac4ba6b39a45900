"""Spans of a text that have occurred before in it: lines, paragraphs, n-grams."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Occurrences:
    """All spans that occur more than once in their text, the occurrences of each together.

    Attributes:
        positions: index of each span; ascending within a group of equal ones.
        is_first: True for the first of each group.
    """

    positions: np.ndarray
    is_first: np.ndarray

    @property
    def repeated(self) -> np.ndarray:
        """Spans that have occurred before in their text."""
        return self.positions[~self.is_first]

    @property
    def group_sizes(self) -> np.ndarray:
        """Occurrences of each group."""
        return np.diff(np.flatnonzero(np.append(self.is_first, True)))


def find_occurrences(hashes: np.ndarray, positions: np.ndarray, texts: np.ndarray) -> Occurrences:
    """Finds equal hashes within a text by one sort.

    The sorted keys hold the upper bits of the hash, and below them the position: 42 bits of the
    hash in batches of 4 million spans. Two different spans of one text of a million spans then
    fall together with a probability of 0.1.

    Args:
        hashes: of the spans, uint64; changed in place.
        positions: index of each span.
        texts: text of every index.
    """
    position_bits = np.uint64(max(len(texts) - 1, 1).bit_length())
    hashes >>= position_bits
    hashes <<= position_bits
    hashes |= positions.astype(np.uint64)
    hashes.sort()
    sorted_positions = (hashes & np.uint64((1 << int(position_bits)) - 1)).astype(np.int64)
    hashes >>= position_bits
    is_equal = hashes[1:] == hashes[:-1]
    is_equal &= texts[sorted_positions[1:]] == texts[sorted_positions[:-1]]
    has_equal = np.zeros(len(hashes), bool)
    has_equal[1:] = is_equal
    is_first = ~has_equal
    has_equal[:-1] |= is_equal
    return Occurrences(sorted_positions[has_equal], is_first[has_equal])
