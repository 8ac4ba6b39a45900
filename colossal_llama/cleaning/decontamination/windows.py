"""Hashes of n-grams at every token, from hashes of shorter ones: no loop over tokens.

An anchor is an n-gram whose length is a power of two, made by doubling. A longer n-gram is hashed
from the anchors that cover it; with anchors of eight, 13 words are those at its first and sixth:

    w w w w w w w w w w w w w
    +-------------+
              +-------------+
"""

from collections.abc import Sequence

import numpy as np

_ODD = np.array(
    [0x9FB21C651E98DF25, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F, 0xE7037ED1A0B428DB, 0x8EBC6AF09C88C6E3], np.uint64
)
_SHIFT = np.uint64(29)
_LONGEST_ANCHOR = 8


def anchor_length(lengths: Sequence[int]) -> int:
    """The length of anchors for n-grams of these lengths: the largest power of two, at most 8."""
    shortest = min(*lengths, _LONGEST_ANCHOR)
    return 1 << (shortest.bit_length() - 1)


def anchors_of(hashes: np.ndarray, length: int) -> np.ndarray:
    """Hashes of the n-grams of anchor length at every token; the last ones are shorter."""
    anchors, width = hashes, 1
    while width < length:
        longer = anchors * _ODD[width.bit_length() - 1]
        longer[:-width] += anchors[width:]
        anchors, width = longer, 2 * width
    return anchors


def ngram_keys(anchors: np.ndarray, places: np.ndarray, length: int, anchor: int) -> np.ndarray:
    """Hashes of the n-grams of a length that begin at some tokens.

    Args:
        anchors: of all tokens.
        places: tokens; `length` tokens stand behind each.
        length: of the n-grams in tokens.
        anchor: length of anchors.
    """
    offsets = [*range(0, length - anchor, anchor), length - anchor]
    keys = np.full(len(places), length, np.uint64)
    for offset in offsets:
        keys += anchors[places + offset]
        keys *= _ODD[4]
        keys ^= keys >> _SHIFT
    return keys


class HashFilter:
    """A table of bits that tells at once that most hashes are not in a set.

    A Bloom filter (Bloom 1970) of two bits: a hash in the set is always found, another one in one
    of 250 cases or fewer. The second bit is looked up where the first is set.
    """

    _BITS_PER_HASH = 32

    def __init__(self, bits: np.ndarray):
        """Takes the table: uint8[a power of two]."""
        self.bits = bits
        self._shift = np.uint64(64 - 3 - (len(bits).bit_length() - 1))

    @classmethod
    def of(cls, hashes: np.ndarray) -> "HashFilter":
        """Makes the table of a set."""
        length = max(1, len(hashes) * cls._BITS_PER_HASH // 8)
        made = cls(np.zeros(1 << (length - 1).bit_length(), np.uint8))
        for again in (hashes, hashes * _ODD[0]):
            bits = (again >> made._shift).view(np.int64)
            np.bitwise_or.at(made.bits, bits >> 3, np.left_shift(1, bits & 7).astype(np.uint8))
        return made

    def passing(self, hashes: np.ndarray) -> np.ndarray:
        """Places of the hashes that may be in the set."""
        first = np.flatnonzero(self._bit(hashes))
        return first[np.flatnonzero(self._bit(hashes[first] * _ODD[0]))]

    def _bit(self, hashes: np.ndarray) -> np.ndarray:
        bits = (hashes >> self._shift).view(np.int64)
        found = self.bits.take(bits >> 3)
        found >>= bits.astype(np.uint8) & 7
        found &= 1
        return found
