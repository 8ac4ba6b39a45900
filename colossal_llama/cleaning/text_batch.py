"""Texts end to end as arrays, with their words and lines: what the rules measure.

A batch of 1 to 4 MB keeps the cost of numpy's calls below that of their work, however short the
texts are. No loop over characters runs in Python.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np

from colossal_llama.cleaning.character_classes import (
    DIGIT,
    IDEOGRAPH,
    LETTER,
    SPACE,
    SPACELESS,
    class_table,
)
from colossal_llama.cleaning.rolling_hashes import RollingHashes

SPACED, IDEOGRAPHIC, RUN_ON = 0, 1, 2
"""Kinds of texts, by what more than half of their words are."""
CHARACTERS_PER_WORD = np.array([1.0, 1.5, 4.0])
"""Words (as this module counts them) of each kind that stand for a word of the papers."""
_NEWLINE = ord("\n")
_APOSTROPHE = ord("’")
_END_OF_ASCII = 0x80


@dataclass(frozen=True)
class Spans:
    """Words, lines or paragraphs of a batch, in order.

    Attributes:
        starts: first character of each, as an index into the batch's characters, int64.
        ends: one after the last character.
        firsts: text t has spans `firsts[t]` to `firsts[t + 1]`, int64[texts + 1].
    """

    starts: np.ndarray
    ends: np.ndarray
    firsts: np.ndarray

    @cached_property
    def lengths(self) -> np.ndarray:
        """Characters of each."""
        return self.ends - self.starts

    @cached_property
    def counts(self) -> np.ndarray:
        """Number in each text."""
        return np.diff(self.firsts)

    @cached_property
    def texts(self) -> np.ndarray:
        """Text of each."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def only(self, is_chosen: np.ndarray) -> "Spans":
        """The chosen ones."""
        return Spans(
            self.starts[is_chosen],
            self.ends[is_chosen],
            np.concatenate(([0], np.cumsum(is_chosen)))[self.firsts],
        )

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum over each text of a value of each span."""
        return np.bincount(self.texts, weights=values, minlength=len(self.counts))


@dataclass(frozen=True)
class TextBatch:
    """Texts end to end; a newline follows each of them.

    Attributes:
        texts: the texts.
        codes: code points of all characters, uint32.
        starts: text t and its newline are `codes[starts[t]:starts[t + 1]]`, int64[texts + 1].
        classes: bits of `character_classes` of each character, uint8.
    """

    texts: Sequence[str]
    codes: np.ndarray
    starts: np.ndarray
    classes: np.ndarray

    @cached_property
    def visible(self) -> np.ndarray:
        """Indices of all characters that are no white space."""
        return np.flatnonzero((self.classes & SPACE) == 0)

    @cached_property
    def visible_counts(self) -> np.ndarray:
        """Characters of each text that are no white space."""
        spaces = np.flatnonzero(self.classes & SPACE)
        return np.diff(self.starts) - np.diff(np.searchsorted(spaces, self.starts))

    @cached_property
    def words(self) -> Spans:
        """Runs of letters, marks and digits; ideographs and letters of `SPACELESS` one by one.

        A single mark of ASCII within a run belongs to it, as in don't, 3.14 and example.com/a.
        """
        is_word = (self.classes & (LETTER | DIGIT)) != 0
        is_single = (self.classes & (IDEOGRAPH | SPACELESS)) != 0
        is_joined = is_word & ~is_single
        is_joint = (self.codes[1:-1] < _END_OF_ASCII) & ((self.classes[1:-1] & SPACE) == 0)
        is_joint |= self.codes[1:-1] == _APOSTROPHE
        is_word[1:-1] |= is_joint & is_joined[:-2] & is_joined[2:]
        # Between two characters a word ends, or begins, where one of them stands alone.
        is_cut = ~is_word[:-1] | ~is_word[1:] | is_single[:-1] | is_single[1:]
        begins, ends = is_word.copy(), is_word
        begins[1:] &= is_cut
        ends[:-1] &= is_cut
        starts = np.flatnonzero(begins)
        return Spans(starts, np.flatnonzero(ends) + 1, np.searchsorted(starts, self.starts))

    @cached_property
    def kinds(self) -> np.ndarray:
        """Kind of each text: `SPACED`, `IDEOGRAPHIC` or `RUN_ON`."""
        classes = self.classes[self.words.starts]
        kinds = np.zeros(len(self.texts), np.int64)
        for kind, bit in ((IDEOGRAPHIC, IDEOGRAPH), (RUN_ON, SPACELESS)):
            alone = np.diff(np.searchsorted(np.flatnonzero(classes & bit), self.words.firsts))
            kinds[2 * alone > self.words.counts] = kind
        return kinds

    @cached_property
    def word_equivalents(self) -> np.ndarray:
        """Number of words of each text as the papers count: 1.5 ideographs are a word."""
        return self.words.counts / CHARACTERS_PER_WORD[self.kinds]

    @cached_property
    def _newlines(self) -> np.ndarray:
        return np.flatnonzero(self.codes == _NEWLINE)

    @cached_property
    def _visible_before_newlines(self) -> np.ndarray:
        return np.searchsorted(self.visible, self._newlines)

    @cached_property
    def lines(self) -> Spans:
        """Lines that are not blank, without white space around them."""
        return self._stripped(self._visible_before_newlines)

    @cached_property
    def paragraphs(self) -> Spans:
        """Lines between blank lines, without white space around them together."""
        stops = self._visible_before_newlines
        is_border = np.diff(stops, prepend=0) == 0  # a blank line, or the end of a text
        is_border[np.searchsorted(self._newlines, self.starts[1:] - 1)] = True
        return self._stripped(stops[is_border])

    def _stripped(self, stops: np.ndarray) -> Spans:
        """The stretches up to each number of visible characters, from the one before on."""
        begins = np.concatenate(([0], stops[:-1]))
        has_content = stops > begins
        starts, ends = self.visible[begins[has_content]], self.visible[stops[has_content] - 1] + 1
        return Spans(starts, ends, np.searchsorted(starts, self.starts))

    @cached_property
    def _rolling_hashes(self) -> RollingHashes:
        return RollingHashes(self.codes)

    def hashes(self, spans: Spans) -> np.ndarray:
        """Hash of the characters of each span, uint64; the same in every batch."""
        return self._rolling_hashes.of(spans.starts, spans.ends)


def make_batch(texts: Sequence[str]) -> TextBatch:
    """Makes the arrays of texts."""
    joined = "\n".join(chain(texts, ("",)))
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    starts = np.concatenate(([0], np.cumsum(lengths + 1)))
    return TextBatch(texts, codes, starts, class_table()[codes])
