"""Classes of all characters of Unicode, as bits of one byte, in a table by code point."""

from functools import cache

import numpy as np
import regex

LETTER = 1
"""Letters and the marks that belong to them."""
DIGIT = 2
SPACE = 4
PUNCTUATION = 8
HAN = 16
IDEOGRAPH = 32
"""Letters that are words of their own: Han, kana, Yi."""
SPACELESS = 64
"""Letters of alphabets that are written without spaces: Thai, Lao, Khmer, Burmese …"""
TERMINAL = 128
"""Marks that end a sentence (Unicode, Tibetan ones, the Greek question mark), and the ellipsis."""

# Characters of format lie within words: joiners (Persian, Sinhala, emoji), soft hyphens, marks of
# direction. The space without width separates words (Khmer). All of the script Han are
# letters: 〇 as 二 is, and radicals, which stand for characters that a font lacked.
_CLASSES = {
    LETTER: r"[\p{L}\p{M}\p{sc=Han}[\p{Cf}--\u200b]]",
    DIGIT: r"[\p{N}--\p{sc=Han}]",
    SPACE: r"[\p{White_Space}\u200b]",
    PUNCTUATION: r"[\p{P}--\p{sc=Han}]",
    HAN: r"\p{sc=Han}",
    IDEOGRAPH: r"[\p{sc=Han}[[\p{L}\p{M}]&&[\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Bopomofo}\p{sc=Yi}ー]]]",
    SPACELESS: r"[[\p{L}\p{M}]&&[\p{sc=Thai}\p{sc=Lao}\p{sc=Khmer}\p{sc=Myanmar}\p{sc=Tai_Tham}"
    r"\p{sc=New_Tai_Lue}\p{sc=Tai_Viet}\p{sc=Javanese}\p{sc=Balinese}]]",
    TERMINAL: r"[\p{Sentence_Terminal}…།༎\u037e]",
}


@cache
def class_table() -> np.ndarray:
    """Bits of each code point, uint8[0x110000]; a character without any is a symbol."""
    table = np.zeros(0x110000, np.uint8)
    characters = np.arange(0x110000, dtype=np.uint32).tobytes().decode("utf-32-le", "surrogatepass")
    for bit, pattern in _CLASSES.items():
        for run in regex.finditer(f"(?V1)(?:{pattern})+", characters):
            table[run.start() : run.end()] |= bit
    return table
