"""Repetition of n-grams inside a text (Rae et al. 2021, A.1.1, table A1).

An n-gram that occurs twice holds shorter ones that occur twice. So each length is sought only
where the length before was found: the first sort sees every word, the later ones few.
"""

import numpy as np

from colossal_llama.cleaning.rolling_hashes import RollingHashes
from colossal_llama.cleaning.rule_settings import RuleSettings
from colossal_llama.cleaning.rules.character_figures import Figures, shares
from colossal_llama.cleaning.rules.repeated import Occurrences, find_occurrences
from colossal_llama.cleaning.text_batch import CHARACTERS_PER_WORD, TextBatch

TOP = (2, 3, 4)
"""Lengths, in words of the papers, of which the most frequent n-gram is measured."""
DUPLICATE = (5, 6, 7, 8, 9, 10)
"""Lengths of which all n-grams that have occurred before are measured."""


def ngram_repetition(batch: TextBatch, settings: RuleSettings, wanted: np.ndarray | None = None) -> Figures:
    """Shares of the characters of words in repeated n-grams.

    `top_N_gram`: those of the most frequent one, if it occurs `top_occurrences` times.
    `duplicate_N_grams`: those of all n-grams that have occurred before; a character in several of
    them counts once.

    Args:
        batch: the texts.
        settings: with `top_occurrences`; a short text may well have a phrase twice.
        wanted: texts to measure; the figures of others are NaN. None: all.
    """
    names = [*(f"top_{n}_gram" for n in TOP), *(f"duplicate_{n}_grams" for n in DUPLICATE)]
    figures = {name: np.full(len(batch.texts), np.nan) for name in names}
    wanted = np.ones(len(batch.texts), bool) if wanted is None else wanted
    top_occurrences = settings["ngram_repetition"].values["top_occurrences"]
    words = batch.words
    values = batch.hashes(words)
    for kind, characters_per_word in enumerate(CHARACTERS_PER_WORD):
        is_kind = wanted & (batch.kinds == kind)
        if not is_kind.any():
            continue
        chosen = slice(None) if is_kind.all() else is_kind[words.texts]
        search = _Search(values[chosen], words.texts[chosen], words.lengths[chosen], len(batch.texts))
        for name, n in zip(names, (*TOP, *DUPLICATE), strict=True):
            found = search.occurrences(int(n * characters_per_word + 0.5))
            measured = search.top_characters(found, top_occurrences) if n in TOP else search.repeated_characters(found)
            figures[name][is_kind] = shares(measured, search.characters)[is_kind]
    return figures


class _Search:
    """Search for n-grams of ascending length in the words of some texts."""

    def __init__(self, values: np.ndarray, texts: np.ndarray, lengths: np.ndarray, number_of_texts: int):
        self.texts, self.lengths = texts, lengths
        self.characters = np.bincount(texts, weights=lengths, minlength=number_of_texts)
        self._hashes = RollingHashes(values)
        self._end_characters = np.concatenate(([0], np.cumsum(lengths)))
        self._n = 1
        self._occurs_twice = np.ones(len(texts), bool)

    def occurrences(self, n: int) -> Occurrences:
        """All n-grams that occur more than once in their text; n ascends from call to call."""
        is_candidate = self._occurs_twice[: max(len(self.texts) - n + 1, 0)].copy()
        for offset in range(1, n - self._n + 1):
            is_candidate &= self._occurs_twice[offset : offset + len(is_candidate)]
        starts = np.flatnonzero(is_candidate)
        starts = starts[self.texts[starts] == self.texts[starts + n - 1]]
        found = find_occurrences(self._hashes.of(starts, starts + n), starts, self.texts)
        self._occurs_twice[:] = False
        self._occurs_twice[found.positions] = True
        self._n = n
        return found

    def top_characters(self, found: Occurrences, least: int) -> np.ndarray:
        """Characters in the n-gram that occurs most often, and among these in the longest.

        As in the paper, overlapping occurrences of it count each; not beyond the whole text.
        """
        firsts = found.positions[found.is_first]
        sizes = self._end_characters[firsts + self._n] - self._end_characters[firsts]
        ranks = found.group_sizes << 40 | np.minimum(sizes, (1 << 40) - 1)
        highest = np.zeros(len(self.characters), np.int64)
        np.maximum.at(highest, self.texts[firsts], ranks)
        times, size = highest >> 40, highest & ((1 << 40) - 1)
        return np.where(times < least, 0, np.minimum(times * size, self.characters))

    def repeated_characters(self, found: Occurrences) -> np.ndarray:
        """Characters in n-grams that have occurred before, each once."""
        is_covered = np.zeros(len(self.texts), bool)
        repeated = found.repeated
        for offset in range(self._n):
            is_covered[repeated + offset] = True
        covered = np.flatnonzero(is_covered)
        return np.bincount(self.texts[covered], weights=self.lengths[covered], minlength=len(self.characters))
