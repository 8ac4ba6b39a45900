"""Search for benchmark questions in documents: by hashes of n-grams, then letter by letter."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from colossal_llama.cleaning.decontamination.folding import canonical, unified_places
from colossal_llama.cleaning.decontamination.index import Index, open_index
from colossal_llama.cleaning.decontamination.questions import BenchmarkQuestion
from colossal_llama.cleaning.decontamination.tokens import Tokens, tokens_of
from colossal_llama.cleaning.decontamination.windows import anchors_of, ngram_keys

_CHARACTERS_AT_ONCE = 1 << 18
"""Arrays of so many characters fit into a processor's cache."""


@dataclass(frozen=True)
class Hit:
    """A question of which a text holds n-grams.

    Attributes:
        question: the question.
        ngrams: number of its n-grams in the text.
        total: number of its n-grams.
        spans: places of the n-grams in the text, joined where they overlap: begin, end.
        ngram: the longest of these places as the text has it.
    """

    question: BenchmarkQuestion
    ngrams: int
    total: int
    spans: tuple[tuple[int, int], ...]
    ngram: str

    @property
    def share(self) -> float:
        """Share of the n-grams of the question that the text has."""
        return min(1.0, self.ngrams / self.total)


class Decontaminator:
    """Finds questions of an index in texts."""

    def __init__(self, directory: Path):
        """Opens an index of `save_index`."""
        self._index = open_index(directory)

    def hits(self, texts: Sequence[str]) -> list[list[Hit]]:
        """Finds questions in texts; for each text those found, by their order in the benchmarks.

        A call takes about 10 ns a byte, and 100 µs: give it many texts.
        """
        found: list[list[Hit]] = [[] for _ in texts]
        for numbers in _groups(texts):
            for place, hits in self._hits([texts[number] for number in numbers]).items():
                found[numbers[place]] = hits
        return found

    def _hits(self, texts: Sequence[str]) -> dict[int, list[Hit]]:
        tokens = tokens_of(texts)
        matches = _matches(self._index, tokens)
        return {text: _confirmed(self._index, texts[text], tokens.texts[text], some) for text, some in matches.items()}


@dataclass(frozen=True)
class _Match:
    """An n-gram of a text: its entry in the index, and its place among all texts."""

    entry: int
    begin: int
    end: int


def _groups(texts: Sequence[str]) -> Iterator[list[int]]:
    """Numbers of texts that are searched together: ASCII apart from others, which are slower."""
    for is_ascii in (True, False):
        group: list[int] = []
        characters = 0
        for number, text in enumerate(texts):
            if text.isascii() != is_ascii:
                continue
            if group and characters + len(text) > _CHARACTERS_AT_ONCE:
                yield group
                group, characters = [], 0
            group.append(number)
            characters += len(text)
        if group:
            yield group


def _matches(index: Index, tokens: Tokens) -> dict[int, list[_Match]]:
    """N-grams of the index by their hashes, by text."""
    anchors = anchors_of(tokens.hashes, index.anchor)
    candidates = index.anchor_filter.passing(anchors)
    found: dict[int, list[_Match]] = defaultdict(list)
    for length in index.lengths:
        places = candidates[: np.searchsorted(candidates, len(anchors) - length, side="right")]
        keys = ngram_keys(anchors, places, length, index.anchor)
        passing = index.key_filter.passing(keys)
        places, keys = places[passing], keys[passing]
        low, high = (np.searchsorted(index.keys, keys, side=side) for side in ("left", "right"))
        begins, ends = tokens.starts[places], tokens.ends[places + length - 1]
        texts = np.searchsorted(tokens.text_starts, begins, side="right") - 1
        for place in np.flatnonzero((low < high) & (ends <= tokens.text_starts[texts + 1])).tolist():
            text = int(texts[place])
            start = tokens.text_starts[text]
            begin, end = int(begins[place] - start), int(ends[place] - start)
            found[text] += [_Match(entry, begin, end) for entry in range(low[place], high[place])]
    return found


def _confirmed(index: Index, text: str, unified: str, matches: Sequence[_Match]) -> list[Hit]:
    """Questions of which an n-gram, compared letter by letter, is in a text."""
    by_question: dict[int, list[_Match]] = defaultdict(list)
    for match in matches:
        by_question[int(index.questions[match.entry])].append(match)
    hits = []
    for number in sorted(by_question):
        of_question = by_question[number]
        if not any(_is_equal(index, unified, match) for match in of_question):
            continue
        spans = _joined((match.begin, match.end) for match in of_question)
        if unified is not text:
            spans = _places_before(spans, text)
        begin, end = max(spans, key=lambda span: span[1] - span[0])
        ngrams = len({match.entry for match in of_question})
        hits.append(Hit(index.benchmark[number], ngrams, int(index.ngrams[number]), tuple(spans), text[begin:end]))
    return hits


def _is_equal(index: Index, unified: str, match: _Match) -> bool:
    return canonical(unified[match.begin : match.end]) == canonical(index.text(match.entry))


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans that overlap or touch, as one."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined


def _places_before(spans: Iterable[tuple[int, int]], text: str) -> list[tuple[int, int]]:
    """Places in a text, of places in the text rewritten (`folding.unified`)."""
    pairs = list(unified_places(text))
    rewritten = [behind for _, behind in pairs]

    def before(place: int) -> int:
        number = bisect_right(rewritten, place)
        original, behind = pairs[number - 1] if number else (0, 0)
        following = pairs[number][0] if number < len(pairs) else len(text)
        return min(original + place - behind, following)

    return [(before(begin), before(end)) for begin, end in spans]
