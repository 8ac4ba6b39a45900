"""Tokens of many texts as 64-bit hashes, in numpy alone: words, and characters of other scripts.

Words are runs of letters and digits of a script with spaces. Of Han, kana, Thai and the like each
character is a token. Case, width, punctuation and white space make no difference (`folding`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from colossal_llama.cleaning.decontamination.folding import (
    CHARACTER,
    FIRST_LETTER,
    REWRITTEN,
    ascii_table,
    code_points,
    folding_table,
    unified,
)

_WORD_BYTES = 8
"""Letters of a word that are read at once: its first, and its last where it has more."""
_PADDING = bytes(2 * _WORD_BYTES)
_MASKS = np.array([(1 << 8 * length) - 1 for length in range(9)], np.uint64)
_LENGTH, _FIRST, _LAST, _SINGLE = (
    np.uint64(odd) for odd in (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 0xC2B2AE3D27D4EB4F, 0xA0761D6478BD642F)
)
_HALF = np.uint64(32)


@dataclass(frozen=True)
class Tokens:
    """Tokens of texts that stand end to end, a line feed between two.

    Attributes:
        hashes: uint64[tokens].
        starts: first character of each token among all texts.
        ends: behind its last.
        text_starts: first character of each text, and behind the last: int64[texts + 1].
        texts: as they were read, rewritten where folding asks for it.
        folded: bytes of the folding table, one for each character.
    """

    hashes: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    text_starts: np.ndarray
    texts: Sequence[str]
    folded: np.ndarray


def tokens_of(texts: Sequence[str]) -> Tokens:
    """Finds the tokens of texts; one call for many, as its cost hardly depends on their number.

    ASCII texts take half as long where no other is among them.
    """
    folded, codes = _folded("\n".join(texts))
    starts = _text_starts(texts)
    rewritten = np.flatnonzero(folded >= REWRITTEN) if codes is not None else ()
    if len(rewritten):
        texts = list(texts)
        for number in np.unique(np.searchsorted(starts, rewritten, side="right") - 1).tolist():
            texts[number] = unified(texts[number])
        folded, codes = _folded("\n".join(texts))
        starts = _text_starts(texts)
    return _tokens(folded, codes, starts, texts)


def _text_starts(texts: Sequence[str]) -> np.ndarray:
    starts = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) + 1 for text in texts], out=starts[1:])
    return starts


def _folded(joined: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Bytes of the folding table and padding; with the code points of what is not ASCII."""
    if joined.isascii():
        return np.frombuffer(joined.encode("ascii").translate(ascii_table()) + _PADDING, np.uint8), None
    codes = code_points(joined)
    folded = np.zeros(len(codes) + len(_PADDING), np.uint8)
    folding_table().take(codes, mode="clip", out=folded[: len(codes)])
    return folded, codes


def _tokens(folded: np.ndarray, codes: np.ndarray | None, text_starts: np.ndarray, texts: Sequence[str]) -> Tokens:
    letters = folded >= FIRST_LETTER
    borders = np.flatnonzero(letters[1:] != letters[:-1]) + 1
    if letters[0]:
        borders = np.concatenate([[0], borders])
    words, word_ends = borders[0::2], borders[1::2]
    hashes = _word_hashes(folded, words, word_ends)
    if codes is None:
        return Tokens(hashes, words, word_ends, text_starts, texts, folded)
    begins = folded == CHARACTER
    begins[words] = True
    starts = np.flatnonzero(begins)
    of_starts = folded.take(starts)
    single, word = np.flatnonzero(of_starts == CHARACTER), np.flatnonzero(of_starts != CHARACTER)
    ends = starts + 1
    ends[word] = word_ends
    all_hashes = np.empty(len(starts), np.uint64)
    all_hashes[word] = hashes
    all_hashes[single] = _single_hashes(codes.take(starts.take(single)))
    return Tokens(all_hashes, starts, ends, text_starts, texts, folded)


def _single_hashes(codes: np.ndarray) -> np.ndarray:
    """Hashes of characters that are tokens."""
    hashes = codes + _LENGTH
    hashes *= _SINGLE
    hashes ^= hashes >> _HALF
    return hashes


def _word_hashes(folded: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Hashes of words by their first and last eight letters and their length."""
    eights = np.ndarray((len(folded) - _WORD_BYTES + 1,), "<u8", folded, strides=(1,))
    lengths = ends - starts
    hashes = eights[starts]
    hashes &= _MASKS.take(lengths, mode="clip")
    hashes += lengths.view(np.uint64) * _LENGTH
    hashes *= _FIRST
    longer = np.flatnonzero(lengths > _WORD_BYTES)
    hashes[longer] ^= eights[ends[longer] - _WORD_BYTES] * _LAST
    hashes ^= hashes >> _HALF
    return hashes
