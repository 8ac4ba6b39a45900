"""Figures of a text's characters and words: length, letters, digits, Han, symbols, stop words."""

import numpy as np

from colossal_llama.cleaning.character_classes import DIGIT, HAN, IDEOGRAPH, LETTER, PUNCTUATION, SPACE, SPACELESS
from colossal_llama.cleaning.rule_settings import RuleSettings
from colossal_llama.cleaning.text_batch import SPACED, TextBatch, make_batch

Figures = dict[str, np.ndarray]
"""Figures by name, float64[texts]; NaN where a text has no such figure."""


def length(batch: TextBatch, _: RuleSettings) -> Figures:
    """Words of texts with spaces; characters of those without, white space aside."""
    is_spaced = batch.kinds == SPACED
    return {
        "words": np.where(is_spaced, batch.words.counts, np.nan),
        "characters": np.where(is_spaced, np.nan, batch.visible_counts),
    }


def letters(batch: TextBatch, _: RuleSettings) -> Figures:
    """Share of letters."""
    return {"letter_share": shares(counts(batch, (batch.classes & LETTER) != 0), batch.visible_counts)}


def digits(batch: TextBatch, _: RuleSettings) -> Figures:
    """Share of digits."""
    return {"digit_share": shares(counts(batch, (batch.classes & DIGIT) != 0), batch.visible_counts)}


def han(batch: TextBatch, _: RuleSettings) -> Figures:
    """Share of Han characters among letters."""
    letters_of_text = counts(batch, (batch.classes & LETTER) != 0)
    return {"han_share": shares(counts(batch, (batch.classes & HAN) != 0), letters_of_text)}


def symbols(batch: TextBatch, _: RuleSettings) -> Figures:
    """Runs of hash signs, and ellipses, a word, and share of symbols among characters."""
    hashes = np.flatnonzero(batch.codes == ord("#"))
    is_symbol = (batch.classes & (LETTER | DIGIT | SPACE | PUNCTUATION)) == 0
    return {
        "hash_signs": shares(_per_text(batch, _run_starts(hashes)), batch.word_equivalents),
        "ellipses": shares(_ellipses(batch), batch.word_equivalents),
        "symbol_share": shares(counts(batch, is_symbol), batch.visible_counts),
    }


def _ellipses(batch: TextBatch) -> np.ndarray:
    """Runs of at least three dots, and of ellipses."""
    dots = np.flatnonzero(batch.codes == ord("."))
    is_third = dots[2:] - dots[:-2] == 2
    is_third[1:] &= dots[3:] - dots[:-3] != 3
    marks = np.flatnonzero(batch.codes == ord("…"))
    return _per_text(batch, dots[2:][is_third]) + _per_text(batch, _run_starts(marks))


def _run_starts(indices: np.ndarray) -> np.ndarray:
    return indices[np.diff(indices, prepend=-2) != 1]


def word_length(batch: TextBatch, _: RuleSettings) -> Figures:
    """Mean length of words, in texts with spaces; ideographs and the like are no such words."""
    words = batch.words
    words = words.only((batch.classes[words.starts] & (IDEOGRAPH | SPACELESS)) == 0)
    means = shares(words.sums(words.lengths), words.counts)
    return {"mean_word_length": np.where(batch.kinds == SPACED, means, np.nan)}


def stop_words(batch: TextBatch, settings: RuleSettings) -> Figures:
    """Number of different stop words: words, or characters where texts have no spaces."""
    values = settings["stop_words"].values
    hashes = batch.hashes(batch.words)
    found = np.zeros(len(batch.texts))
    for name, is_kind in (("words", batch.kinds == SPACED), ("characters", batch.kinds != SPACED)):
        for stop_word in values[name]:
            forms = make_batch(sorted({stop_word, stop_word.capitalize(), stop_word.upper()}))
            is_stop_word = np.isin(hashes, forms.hashes(forms.words))
            found += is_kind & (np.bincount(batch.words.texts[is_stop_word], minlength=len(found)) > 0)
    return {"stop_words": found}


def counts(batch: TextBatch, is_counted: np.ndarray) -> np.ndarray:
    """Number of chosen characters in each text."""
    return _per_text(batch, np.flatnonzero(is_counted))


def _per_text(batch: TextBatch, indices: np.ndarray) -> np.ndarray:
    return np.diff(np.searchsorted(indices, batch.starts))


def shares(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    """Quotients; NaN where the whole is nothing."""
    return np.divide(parts, wholes, out=np.full(len(wholes), np.nan), where=wholes > 0)
