"""Folding of characters, the same for questions and documents: case, width, accents, punctuation.

A table gives each code point one byte:

    0          white space, punctuation, a symbol: what separates words
    1          a character of a script without spaces (Han, kana, Thai …): a token by itself
    2 to 127   a letter, digit or mark in a word; upper and lower case, wide and narrow are alike
    128 to 255 the same, but it must be written in another way first (`unified`)

The byte is a hash of the letter. Only the 36 of ASCII have one of their own.
"""

import functools
import unicodedata
from collections.abc import Iterator
from typing import Final

import numpy as np

from colossal_llama.cleaning.character_classes import IDEOGRAPH, SPACELESS, class_table

SEPARATOR: Final = 0
CHARACTER: Final = 1
FIRST_LETTER: Final = 2
REWRITTEN: Final = 128
_SIZE = 0x40000
"""Code points behind these are separators, as the last of the table is: `take` with mode clip."""
_ASCII_WORD = "0123456789abcdefghijklmnopqrstuvwxyz"
_CONJOINING_JAMO = (0x1100, 0x11FF)


@functools.cache
def folding_table() -> np.ndarray:
    """Bytes of all code points: uint8[262,144]; 0.2 s to make."""
    table = np.zeros(_SIZE, np.uint8)
    for code in range(0x20000):
        table[code] = _byte_of(chr(code))
    for first, last in ((0x20000, 0x2F7FF), (0x30000, 0x3FFFE)):
        table[first : last + 1] = CHARACTER
    for code in range(0x2F800, 0x2FA20):  # compatibility ideographs
        table[code] = _byte_of(chr(code))
    return table


@functools.cache
def ascii_table() -> bytes:
    """The table of `folding_table` for `bytes.translate` of an ASCII text."""
    return folding_table()[:128].tobytes() + bytes(128)


def _byte_of(character: str) -> int:
    """The byte of a code point in the table."""
    kind = unicodedata.category(character)
    if kind == "Cf":  # a soft hyphen, a zero-width space: in the midst of words
        return REWRITTEN
    if kind[0] not in "LMN":
        return SEPARATOR
    folded = _folded(character)
    is_whole = len(folded) == 1 and not _combines(character)
    if _is_without_spaces(character):
        return CHARACTER if folded == character or kind[0] == "M" else REWRITTEN
    if is_whole and _is_without_spaces(folded):
        return REWRITTEN
    letter = folded[:1]
    if letter in _ASCII_WORD and letter:
        byte = FIRST_LETTER + _ASCII_WORD.index(letter)
    else:
        first = FIRST_LETTER + len(_ASCII_WORD)
        byte = first + ord(letter or character) * 40503 % (REWRITTEN - first)
    return byte if is_whole else byte | REWRITTEN


def _is_without_spaces(character: str) -> bool:
    return bool(class_table()[ord(character)] & (IDEOGRAPH | SPACELESS))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _combines(character: str) -> bool:
    """True for what may become one character with the one before it."""
    is_jamo = _CONJOINING_JAMO[0] <= ord(character) <= _CONJOINING_JAMO[1]
    return is_jamo or unicodedata.category(unicodedata.normalize("NFKC", character)[0])[0] == "M"


def code_points(text: str) -> np.ndarray:
    """Code points of a text: uint32[characters]; half a surrogate pair is one, too."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _rewritten_runs(text: str) -> Iterator[tuple[int, int]]:
    """Begin and end of runs that are written in another way, with the letter that they follow."""
    is_rewritten = np.zeros(len(text) + 2, bool)
    is_rewritten[1:-1] = folding_table().take(code_points(text), mode="clip") >= REWRITTEN
    borders = np.flatnonzero(is_rewritten[1:] != is_rewritten[:-1]).tolist()
    behind = 0
    for begin, end in zip(borders[0::2], borders[1::2], strict=True):
        yield begin - (begin > behind and text[begin - 1].isalnum()), end
        behind = end


def unified(text: str) -> str:
    """Writes ligatures, decomposed accents and the like as other texts do.

    Invisible characters within words, such as soft hyphens, go. All else stays as it is.
    """
    if text.isascii():
        return text
    parts, behind = [], 0
    for begin, end in _rewritten_runs(text):
        parts += [text[behind:begin], _unified_run(text[begin:end])]
        behind = end
    return "".join([*parts, text[behind:]])


def _unified_run(run: str) -> str:
    visible = "".join(character for character in run if unicodedata.category(character) != "Cf")
    return _folded(visible)


def unified_places(text: str) -> Iterator[tuple[int, int]]:
    """Yields place in the text and place in `unified(text)` behind each rewritten run, in order."""
    shift = 0
    for begin, end in _rewritten_runs(text):
        shift += len(_unified_run(text[begin:end])) - (end - begin)
        yield end, end + shift


def canonical(text: str) -> str:
    """The tokens of a text as the search sees them, by single spaces; slow, for short texts."""
    parts: list[str] = []
    for character in unified(text):
        byte = _byte_of(character)
        if byte == SEPARATOR:
            parts.append(" ")
        else:
            parts.append(f" {character} " if byte == CHARACTER else _folded(character))
    return " ".join("".join(parts).split())
