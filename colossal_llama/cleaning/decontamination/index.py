"""Index of the n-grams of benchmark questions, made once and mapped into memory by every worker.

An n-gram has 13 words, as in the decontamination of GPT-3 (Brown et al. 2020, appendix C), or 20
characters where most of its beginning is of a script without spaces. Of these count:

- at least half of its tokens say something: characters of such scripts, or words of two letters or
  more; at least half are different. Lists of numbers and letters do not count.
- at most `most_questions` different questions hold it. More are the words of an exam
  ("which one of the following …"); a passage rarely has more questions than eight.

A question shorter than an n-gram is searched as a whole, from 8 words or 12 characters on. Shorter
ones cannot be told from other text: they are not searched, and counted.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from colossal_llama.cleaning.decontamination.folding import CHARACTER, FIRST_LETTER, unified
from colossal_llama.cleaning.decontamination.questions import BenchmarkQuestion, questions_checksum
from colossal_llama.cleaning.decontamination.tokens import Tokens, tokens_of
from colossal_llama.cleaning.decontamination.windows import HashFilter, anchor_length, anchors_of, ngram_keys
from colossal_llama.utils.atomic_io import atomic_directory
from colossal_llama.utils.fingerprint import fingerprint_bytes
from colossal_llama.utils.json_files import read_json_object

_VERSION = 3
_FIRST_NO_DIGIT = FIRST_LETTER + 10
_QUESTIONS_AT_ONCE = 2000
_DISTINCT_AT_ONCE = 1 << 18
_LETTERED, _UNLETTERED, _STEM = 0, 1, 2
"""Forms in which a question is indexed."""
_ARRAYS = ("keys", "questions", "starts", "ends", "forms", "ngrams", "anchor_bits", "key_bits")


@dataclass(frozen=True)
class NgramSettings:
    """Lengths of n-grams, and of questions shorter than one.

    Attributes:
        words: of an n-gram.
        characters: of an n-gram of a script without spaces.
        shortest_words: of a question that is shorter than an n-gram, and searched as a whole.
        shortest_characters: the same.
        most_questions: that may hold an n-gram.
    """

    words: int = 13
    characters: int = 20
    shortest_words: int = 8
    shortest_characters: int = 12
    most_questions: int = 8

    @property
    def lengths(self) -> list[int]:
        """All lengths that are searched, n-grams first."""
        wholes = {*range(self.shortest_words, self.words), *range(self.shortest_characters, self.characters)}
        return list(dict.fromkeys([self.words, self.characters, *sorted(wholes)]))


@dataclass(frozen=True)
class Index:
    """N-grams of questions, sorted by their hashes.

    Attributes:
        keys: hash of each n-gram; uint64, as often as questions hold it.
        questions: number of the question.
        starts: first character of the n-gram in the question.
        ends: behind its last.
        forms: 0 in `BenchmarkQuestion.lettered`, 1 in `unlettered`, 2 in `stem`.
        ngrams: number of n-grams of each question.
        lengths: of n-grams in tokens that occur.
        anchor: length of anchors.
        anchor_filter: of the beginnings of all n-grams.
        key_filter: of all n-grams.
        benchmark: the questions.
    """

    keys: np.ndarray
    questions: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    forms: np.ndarray
    ngrams: np.ndarray
    lengths: tuple[int, ...]
    anchor: int
    anchor_filter: HashFilter
    key_filter: HashFilter
    benchmark: tuple[BenchmarkQuestion, ...]

    def text(self, entry: int) -> str:
        """The text of an n-gram, as its question has it."""
        question = self.benchmark[self.questions[entry]]
        text = (question.lettered, question.unlettered, question.stem)[self.forms[entry]]
        return text[self.starts[entry] : self.ends[entry]]


def index_checksum(questions: Sequence[BenchmarkQuestion], settings: NgramSettings) -> str:
    """Checksum of all that decides an index, by which one in the cache is recognised."""
    return fingerprint_bytes(
        str(_VERSION).encode(), str(astuple(settings)).encode(), questions_checksum(questions).encode()
    )


def save_index(directory: Path, questions: Sequence[BenchmarkQuestion], settings: NgramSettings) -> dict[str, Any]:
    """Makes the index of questions on disk, or finds it there.

    Args:
        directory: of the cache; indices of other questions or settings in it stay.
        questions: to be searched.
        settings: what counts as an n-gram.

    Returns:
        What `cleaning.json` tells of it: numbers of questions and n-grams, `directory`.
    """
    target = directory / f"questions-{index_checksum(questions, settings)[:16]}"
    if not target.exists():
        built = _build(questions, settings)
        try:
            with atomic_directory(target) as temporary:
                _write(temporary, built, settings)
        except OSError:
            if not target.exists():  # else another process has been faster
                raise
    return {**read_json_object(target / "index.json", "remove it"), "directory": str(target)}


@functools.lru_cache(maxsize=2)
def open_index(directory: Path) -> Index:
    """Maps an index into memory; processes share its pages."""
    facts = read_json_object(directory / "index.json", "remove the directory")
    arrays = {name: np.load(directory / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in _ARRAYS}
    filters = HashFilter(arrays.pop("anchor_bits")), HashFilter(arrays.pop("key_bits"))
    lines = (directory / "questions.jsonl").read_bytes().splitlines()
    benchmark = tuple(
        BenchmarkQuestion(**{**(row := orjson.loads(line)), "choices": tuple(row["choices"])}) for line in lines
    )
    return Index(**arrays, lengths=tuple(facts["lengths"]), anchor=facts["anchor"], anchor_filter=filters[0],
                 key_filter=filters[1], benchmark=benchmark)  # fmt: skip


def _write(directory: Path, index: Index, settings: NgramSettings) -> None:
    arrays = {name: getattr(index, name) for name in _ARRAYS[:6]}
    arrays |= {"anchor_bits": index.anchor_filter.bits, "key_bits": index.key_filter.bits}
    for name, array in arrays.items():
        np.save(directory / f"{name}.npy", array)
    with (directory / "questions.jsonl").open("wb") as file:
        file.writelines(orjson.dumps(question) + b"\n" for question in index.benchmark)
    unsearched = np.flatnonzero(index.ngrams == 0).tolist()
    facts = {
        "questions": len(index.benchmark),
        "ngrams": len(np.unique(index.keys)),
        "unsearched_questions": len(unsearched),
        "unsearched_by_task": dict(
            Counter(index.benchmark[number].task for number in np.flatnonzero(index.ngrams == 0))
        ),
        "questions_found_with_choices_alone": int((index.ngrams > 0).sum()) - _found_by_stem(index),
        "settings": asdict(settings),
        "lengths": index.lengths,
        "anchor": index.anchor,
    }
    (directory / "index.json").write_bytes(orjson.dumps(facts, option=orjson.OPT_INDENT_2))


def _found_by_stem(index: Index) -> int:
    """Number of questions that have an n-gram, or are one, without their choices."""
    stem_lengths = np.array([len(question.stem) for question in index.benchmark])[index.questions]
    is_of_stem = (index.forms == _STEM) | ((index.forms == _LETTERED) & (index.ends <= stem_lengths))
    return len(np.unique(index.questions[is_of_stem]))


@dataclass(frozen=True)
class _Entries:
    """N-grams of some questions: arrays of one length, as in `Index`."""

    keys: np.ndarray
    anchors: np.ndarray
    questions: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    forms: np.ndarray
    lengths: np.ndarray

    def chosen(self, places: np.ndarray) -> "_Entries":
        """Those at some places."""
        return _Entries(*(getattr(self, name)[places] for name in self.__dataclass_fields__))


def _build(questions: Sequence[BenchmarkQuestion], settings: NgramSettings) -> Index:
    benchmark = tuple(
        replace(question, stem=unified(question.stem), choices=tuple(map(unified, question.choices)))
        for question in questions
    )
    anchor = anchor_length(settings.lengths)
    parts: list[_Entries] = []
    groups: dict[bytes, int] = {}
    group_of = np.empty(len(benchmark), np.int64)
    for first in range(0, len(benchmark), _QUESTIONS_AT_ONCE):
        some = benchmark[first : first + _QUESTIONS_AT_ONCE]
        forms = _Forms.of(some, first)
        for number, stem in zip(forms.questions[forms.forms == _STEM], forms.stem_hashes(), strict=True):
            group_of[number] = groups.setdefault(stem, len(groups))
        parts.append(_entries(forms, settings, anchor))
    found = _Entries(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in _Entries.__dataclass_fields__)
    )
    found = _counted(found, group_of, settings.most_questions)
    whole = np.bincount(found.questions[found.forms != _UNLETTERED], minlength=len(benchmark))
    ngrams = np.where(whole, whole, np.bincount(found.questions, minlength=len(benchmark)))
    return Index(
        found.keys,
        found.questions.astype(np.uint32),
        found.starts.astype(np.uint32),
        found.ends.astype(np.uint32),
        found.forms,
        ngrams.astype(np.uint32),
        tuple(length for length in settings.lengths if (found.lengths == length).any()),
        anchor,
        HashFilter.of(found.anchors),
        HashFilter.of(found.keys),
        benchmark,
    )


@dataclass(frozen=True)
class _Forms:
    """The tokens of some questions in all forms: with lettered choices, without letters, the stem.

    Attributes:
        tokens: of all texts.
        begins: first token of each text, and behind the last.
        questions: number of each text's question.
        forms: of each text.
    """

    tokens: Tokens
    begins: np.ndarray
    questions: np.ndarray
    forms: np.ndarray

    @classmethod
    def of(cls, some: Sequence[BenchmarkQuestion], first: int) -> "_Forms":
        """Finds the tokens of questions, of which the first has this number."""
        texts, questions, forms = [], [], []
        for number, question in enumerate(some, start=first):
            of_question = [(_LETTERED, question.lettered), (_STEM, question.stem)]
            of_question += [(_UNLETTERED, question.unlettered)] if question.choices else []
            for form, text in of_question:
                texts.append(text)
                questions.append(number)
                forms.append(form)
        tokens = tokens_of(texts)
        begins = np.searchsorted(tokens.starts, tokens.text_starts)
        return cls(tokens, begins, np.array(questions), np.array(forms, np.uint8))

    def stem_hashes(self) -> list[bytes]:
        """Hashes of the tokens of each stem."""
        texts = np.flatnonzero(self.forms == _STEM)
        return [self.tokens.hashes[self.begins[text] : self.begins[text + 1]].tobytes() for text in texts]


def _entries(forms: _Forms, settings: NgramSettings, anchor: int) -> _Entries:
    """All n-grams of questions that say something."""
    tokens = forms.tokens
    lengths_characters = tokens.ends - tokens.starts
    is_character = tokens.folded[tokens.starts] == CHARACTER
    letters = np.concatenate([[0], np.cumsum(tokens.folded >= _FIRST_NO_DIGIT)])
    says = is_character | ((lengths_characters > 1) & (letters[tokens.ends] > letters[tokens.starts]))
    characters, saying = (np.concatenate([[0], np.cumsum(flags)]) for flags in (is_character, says))
    text_of = np.repeat(np.arange(len(forms.forms)), np.diff(forms.begins))
    places, lengths = _ngram_places(forms, characters, text_of, settings)
    wholes, whole_lengths = _wholes(forms, characters, settings)
    places, lengths = np.concatenate([places, wholes]), np.concatenate([lengths, whole_lengths])
    kept = 2 * (saying[places + lengths] - saying[places]) >= lengths
    places, lengths = places[kept], lengths[kept]
    anchors = anchors_of(tokens.hashes, anchor)
    keys = np.zeros(len(places), np.uint64)
    varied = np.zeros(len(places), bool)
    for length in np.unique(lengths).tolist():
        of_length = np.flatnonzero(lengths == length)
        keys[of_length] = ngram_keys(anchors, places[of_length], length, anchor)
        varied[of_length] = 2 * _distinct(tokens.hashes, places[of_length], length) >= length
    texts = text_of[places]
    starts = tokens.starts[places] - tokens.text_starts[texts]
    ends = tokens.ends[places + lengths - 1] - tokens.text_starts[texts]
    found = _Entries(keys, anchors[places], forms.questions[texts], starts, ends, forms.forms[texts], lengths)
    return found.chosen(np.flatnonzero(varied))


def _ngram_places(
    forms: _Forms, characters: np.ndarray, text_of: np.ndarray, settings: NgramSettings
) -> tuple[np.ndarray, np.ndarray]:
    """First tokens and lengths of the n-grams of questions with their choices."""
    places = np.flatnonzero(forms.forms[text_of] != _STEM)
    ends = forms.begins[text_of[places] + 1]
    beginning = np.minimum(places + settings.words, ends)
    is_of_characters = 2 * (characters[beginning] - characters[places]) >= beginning - places
    lengths = np.where(is_of_characters, settings.characters, settings.words)
    fits = places + lengths <= ends
    return places[fits], lengths[fits]


def _wholes(forms: _Forms, characters: np.ndarray, settings: NgramSettings) -> tuple[np.ndarray, np.ndarray]:
    """First tokens and lengths of questions shorter than an n-gram, with choices if need be."""
    begins, ends = forms.begins[:-1], forms.begins[1:]
    lengths = ends - begins
    is_of_characters = 2 * (characters[ends] - characters[begins]) >= lengths
    shortest = np.where(is_of_characters, settings.shortest_characters, settings.shortest_words)
    ngram = np.where(is_of_characters, settings.characters, settings.words)
    long_stems = np.unique(forms.questions[(forms.forms == _STEM) & (lengths >= shortest)])
    is_stem = forms.forms == _STEM
    is_searched = is_stem | ~np.isin(forms.questions, long_stems)
    texts = np.flatnonzero((shortest <= lengths) & (lengths < ngram) & is_searched)
    return begins[texts], lengths[texts]


def _distinct(hashes: np.ndarray, places: np.ndarray, length: int) -> np.ndarray:
    """Number of different tokens of each n-gram."""
    windows = np.lib.stride_tricks.sliding_window_view(hashes, length)
    counts = np.empty(len(places), np.int64)
    for first in range(0, len(places), _DISTINCT_AT_ONCE):
        some = np.sort(windows[places[first : first + _DISTINCT_AT_ONCE]], axis=1)
        counts[first : first + len(some)] = 1 + (some[:, 1:] != some[:, :-1]).sum(axis=1)
    return counts


def _counted(found: _Entries, group_of: np.ndarray, most_questions: int) -> _Entries:
    """The n-grams that few different questions hold, each once for a question, by their hashes."""
    order = np.lexsort((found.forms, found.questions, found.keys))
    keys, questions = found.keys[order], found.questions[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (keys[1:] != keys[:-1]) | (questions[1:] != questions[:-1])
    found = found.chosen(order[is_first])
    by_group = np.lexsort((group_of[found.questions], found.keys))
    keys, groups = found.keys[by_group], group_of[found.questions][by_group]
    is_new_key = np.ones(len(keys), bool)
    is_new_key[1:] = keys[1:] != keys[:-1]
    is_new = is_new_key.copy()
    is_new[1:] |= groups[1:] != groups[:-1]
    number_of_key = np.cumsum(is_new_key) - 1
    questions_of_key = np.bincount(number_of_key, weights=is_new)
    # Sorted by keys either way: the places of a key are the same in both orders.
    return found.chosen(np.flatnonzero(questions_of_key[number_of_key] <= most_questions))
