"""Shingles: 5 tokens that follow each other, as hashes; texts are as alike as their sets of these.

A token is one character of a script without spaces (Han, kana, Thai …), else a word: letters,
marks and digits without a break. So Chinese is compared by 5 characters, English by 5 words, and
a text of both by both, without a choice for the whole text. Case, spaces and punctuation do not
count.

Hashes are multilinear: sums of characters, and of tokens, times fixed random odd numbers modulo
2^64, of which the upper 32 bits stay (Lemire and Kaser, "Strongly universal string hashing is
fast", arXiv 1202.4961). So all is done by numpy over many texts at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from colossal_llama.cleaning import hash_runs
from colossal_llama.cleaning.character_classes import DIGIT, IDEOGRAPH, LETTER, SPACELESS, class_table

SHINGLE_TOKENS = 5
_LONGEST_WORD = 256  # the multipliers of longer words begin again
_BATCH_CHARACTERS = 1 << 17  # arrays of a batch in the cache of an AMD EPYC: twice as fast as 1 << 18 and more
_LONGEST_CHARACTERS = 1 << 22  # of a text; 30 bytes of memory each
_OWN_TOKEN = np.uint32(1 << 31)


@dataclass(frozen=True)
class Shingles:
    """Shingles of several texts, in their order, repeated ones too.

    Attributes:
        hashes: uint32, of all texts end to end.
        starts: [texts + 1], int64; text t has `hashes[starts[t]:starts[t + 1]]`.
    """

    hashes: np.ndarray
    starts: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Number of shingles of each text, int64."""
        return np.diff(self.starts)


def shingle_batches(texts: Sequence[str]) -> Iterator[Shingles]:
    """Yields the shingles of texts, some texts at a time, all in their order.

    Of a text longer than four million characters, its beginning counts.
    """
    texts = [text[:_LONGEST_CHARACTERS] for text in texts]
    first = characters = 0
    for position, text in enumerate(texts):
        if characters and characters + len(text) > _BATCH_CHARACTERS:
            yield _shingles(texts[first:position])
            first, characters = position, 0
        characters += len(text)
    if first < len(texts):
        yield _shingles(texts[first:])


@cache
def random_multipliers(count: int, purpose: str) -> np.ndarray:
    """Returns fixed random odd numbers, uint64, the same in every version of every library."""
    return hash_runs.hash_texts([f"{purpose} {number}" for number in range(count)]) | np.uint64(1)


def _shingles(texts: Sequence[str]) -> Shingles:
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    text_starts = np.append(0, np.cumsum(lengths))
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    tokens, token_positions = _tokens(_folded_table()[codes], text_starts)
    return _windows(tokens, np.searchsorted(token_positions, text_starts))


@cache
def _folded_table() -> np.ndarray:
    """By code point: 0 between words, else the lower-case character and the mark of own tokens."""
    classes = class_table()
    folded = np.where(classes & (LETTER | DIGIT), np.arange(len(classes), dtype=np.uint32), np.uint32(0))
    for code in np.flatnonzero(classes & LETTER).tolist():
        folded[code] = ord(chr(code).lower()[0])
    folded[(classes & (IDEOGRAPH | SPACELESS)) != 0] |= _OWN_TOKEN
    return folded


def _tokens(folded: np.ndarray, text_starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the hashes of tokens, upper 32 bits in uint64, and the positions where they begin."""
    is_inside = (folded != 0) & (folded < _OWN_TOKEN)
    begins = folded != 0
    begins[1:] &= ~(is_inside[1:] & is_inside[:-1])
    starts_within = text_starts[:-1][text_starts[:-1] < len(folded)]
    begins[starts_within] = folded[starts_within] != 0
    positions = np.flatnonzero(begins)
    if not len(positions):
        return np.empty(0, dtype=np.uint64), positions
    # Separators are 0 and add nothing, so a token may reach up to the next one.
    extents = np.diff(np.append(positions, len(folded)))
    offsets = np.arange(positions[0], len(folded)) - np.repeat(positions, extents)
    multipliers = random_multipliers(_LONGEST_WORD, "character")
    terms = folded[positions[0] :] * multipliers[offsets % _LONGEST_WORD]
    return np.add.reduceat(terms, positions - positions[0]) >> np.uint64(32), positions


def _windows(tokens: np.ndarray, token_starts: np.ndarray) -> Shingles:
    """Hashes each five tokens that follow each other within a text."""
    counts = np.maximum(np.diff(token_starts) - (SHINGLE_TOKENS - 1), 0)
    total = len(tokens) - (SHINGLE_TOKENS - 1)
    if total <= 0:
        return Shingles(np.empty(0, dtype=np.uint32), np.zeros(len(token_starts), dtype=np.int64))
    sums = np.zeros(total, dtype=np.uint64)
    for offset, multiplier in enumerate(random_multipliers(SHINGLE_TOKENS, "token")):
        sums += tokens[offset : offset + total] * multiplier
    is_last = np.zeros(total + SHINGLE_TOKENS, dtype=bool)  # of a text's last tokens, which begin no shingle
    ends = token_starts[1:]
    for distance in range(1, SHINGLE_TOKENS):
        is_last[np.maximum(ends - distance, token_starts[:-1])[np.diff(token_starts) > 0]] = True
    hashes = (sums[~is_last[:total]] >> np.uint64(32)).astype(np.uint32)
    return Shingles(hashes, np.append(0, np.cumsum(counts)))
