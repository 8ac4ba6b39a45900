"""Lists of words by category: documents that hold one are dropped, tagged or routed.

A list is a text file with one word or phrase a line. All lists are searched at once, by one
automaton (Aho and Corasick 1975, as the package ahocorasick-rs compiles it). Case does not count,
and a line feed counts as a space. In scripts that put spaces between words a word is found as a
whole word only.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import regex

from colossal_llama.cleaning.document import Verdict
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.fingerprint import fingerprint_bytes
from colossal_llama.utils.suggestion import did_you_mean

ACTIONS = ("drop", "tag", "route")
_COMMENT = "#"
_MAX_WORD_CHARACTERS = 100
# Up to this size of all words the automaton is a whole table: 25 MB for 10,000 words, searched at 4
# ns a byte. With 100,000 words it would take 198 MB, and be no faster than the 13 MB of the other.
_MAX_TABLE_BYTES = 200_000
_SHOWN_WORDS = 5

# Characters of words in scripts that put spaces between words. Thai, Lao, Khmer and others do not.
_SPACED = regex.compile(
    r"[[\p{L}\p{M}\p{N}]--[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
    r"\p{Tibetan}\p{Javanese}\p{Balinese}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}]]",
    regex.VERSION1,
)
_HANGUL = regex.compile(r"\p{Hangul}")
_CATEGORY = regex.compile(r"[\p{L}\p{M}\p{N}_][\p{L}\p{M}\p{N}_ .-]{0,59}")


@dataclass(frozen=True)
class Blocklist:
    """The words of one category, and what is done with documents that hold them.

    Attributes:
        category: name of the list.
        path: its file.
        action: one of `ACTIONS`.
        words: as they are compared, each once.
        comments: lines of the file that begin with `#`.
    """

    category: str
    path: Path
    action: str
    words: tuple[str, ...]
    comments: int

    def __str__(self) -> str:
        comments = f" ({self.comments:,} lines are comments)" if self.comments else ""
        return f"{self.category}: {len(self.words):,} words of {self.path}{comments}, {self.action}"


@dataclass(frozen=True)
class Decision:
    """Decision of the lists about one document.

    Attributes:
        verdict: why it is dropped; None where it is not.
        category: the category that it is routed to; None where it keeps its own.
        tags: categories that are noted in the document.
    """

    verdict: Verdict | None = None
    category: str | None = None
    tags: tuple[str, ...] = ()


_NO_DECISION = Decision()


@dataclass(frozen=True)
class Blocklists:
    """All lists of a run, searched together. Pickled without its automaton, which is built again.

    Attributes:
        lists: in the order in which they were given: it decides between categories.
    """

    lists: tuple[Blocklist, ...] = field(default=())

    @classmethod
    def open(cls, specs: Sequence[str], normalize: Callable[[str], str] = str) -> "Blocklists":
        """Reads the lists of `--blocklist CATEGORY[:ACTION]=FILE`.

        Args:
            specs: values of the option.
            normalize: what the texts have gone through; the words go through it, too.

        Raises:
            UserError: values, files or lines that cannot be used, all at once.
        """
        lists: dict[str, Blocklist] = {}
        problems: list[str] = []
        for spec in specs:
            try:
                read = _read_list(spec, normalize)
                lists[read.category] = _merged(lists.get(read.category), read)
            except UserError as error:
                problems += error.problems
        if problems:
            raise UserError(problems)
        if lists:
            _require_package()
        return cls(tuple(lists.values()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.lists,)

    def content(self) -> list[dict[str, str]]:
        """The lists for a report: category, action and a hash of the words of each."""
        return [
            {
                "category": entry.category,
                "action": entry.action,
                "words": fingerprint_bytes(*(word.encode() for word in entry.words)),
            }
            for entry in self.lists
        ]

    def found(self, text: str) -> dict[str, Counter[str]]:
        """Counts the words of each category in a text; categories without one are absent.

        Words that overlap in a text count once: the first, and of those the longest.
        """
        folded = text.casefold().replace("\n", " ")
        matches = self._automaton.find_matches_as_indexes(folded, overlapping=True)
        if not matches:
            return {}
        counts: dict[str, Counter[str]] = {}
        ends: dict[str, int] = {}
        for index, start, end in sorted(matches, key=lambda match: (match[1], -match[2])):
            if not _is_whole(folded, start, end):
                continue
            for category in self._categories[index]:
                if start >= ends.get(category, 0):
                    ends[category] = end
                    counts.setdefault(category, Counter())[folded[start:end]] += 1
        return {entry.category: counts[entry.category] for entry in self.lists if entry.category in counts}

    def hits(self, text: str) -> dict[str, int]:
        """Counts the hits of each category in a text; categories without one are absent."""
        return {category: words.total() for category, words in self.found(text).items()}

    def decide(self, text: str, min_hits: int = 1) -> Decision:
        """Decides about a document: the first list that drops it, else routes it, and all tags.

        Args:
            text: the whole text of the document.
            min_hits: hits of a category from which on its list decides.
        """
        found = self.found(text)
        if not found:
            return _NO_DECISION
        by_action: dict[str, list[str]] = {action: [] for action in ACTIONS}
        for entry in self.lists:
            if entry.category in found and found[entry.category].total() >= min_hits:
                by_action[entry.action].append(entry.category)
        dropped, routed = by_action["drop"][:1], by_action["route"][:1]
        return Decision(
            verdict=_verdict(dropped[0], found[dropped[0]], min_hits) if dropped else None,
            category=routed[0] if routed else None,
            tags=tuple(by_action["tag"]),
        )

    @cached_property
    def _words(self) -> Mapping[str, tuple[str, ...]]:
        """Word → categories."""
        categories: dict[str, list[str]] = {}
        for entry in self.lists:
            for word in entry.words:
                categories.setdefault(word, []).append(entry.category)
        return {word: tuple(names) for word, names in categories.items()}

    @cached_property
    def _categories(self) -> list[tuple[str, ...]]:
        return list(self._words.values())

    @cached_property
    def _automaton(self) -> Any:
        from ahocorasick_rs import AhoCorasick, Implementation

        size_bytes = sum(len(word.encode()) for word in self._words)
        kind = Implementation.DFA if size_bytes <= _MAX_TABLE_BYTES else Implementation.ContiguousNFA
        return AhoCorasick(list(self._words), implementation=kind, store_patterns=False)


def _verdict(category: str, words: Counter[str], min_hits: int) -> Verdict:
    shown = [word if count == 1 else f"{word} ×{count}" for word, count in words.most_common(_SHOWN_WORDS)]
    more = f" and {len(words) - len(shown)} more words" if len(words) > len(shown) else ""
    return Verdict(f"blocklist.{category}", f"{words.total()}: {', '.join(shown)}{more}", f"min_hits {min_hits}")


def _is_whole(text: str, start: int, end: int) -> bool:
    """True unless the match is a part of a longer word of a script with spaces.

    Korean particles follow a noun without a space, so that a word of Hangul may go on.
    """
    if start and _joins(text[start - 1], text[start]):
        return False
    return end == len(text) or not _joins(text[end - 1], text[end]) or bool(_HANGUL.match(text[end]))


@lru_cache(maxsize=1 << 16)
def _joins(left: str, right: str) -> bool:
    return bool(_SPACED.match(left) and _SPACED.match(right))


def _read_list(spec: str, normalize: Callable[[str], str]) -> Blocklist:
    name, equals, file = spec.partition("=")
    category, colon, action = name.partition(":")
    category, action = category.strip(), action.strip() if colon else "drop"
    option = f"--blocklist {spec}"
    problems = []
    if not equals or not file.strip():
        raise UserError(f"{option} names no file: give CATEGORY=FILE, or CATEGORY:ACTION=FILE")
    if not _CATEGORY.fullmatch(category):
        problems.append(
            f"{option}: {category!r} is no name of a category: it takes up to 60 letters, digits, spaces and _ . -"
        )
    if action not in ACTIONS:
        problems.append(f"{option}: {action!r} is no action{did_you_mean(action, ACTIONS) or ''}; {_ACTIONS_HELP}")
    try:
        words, comments = _read_words(Path(file), normalize)
    except UserError as error:
        problems += [f"{option}: {problem}" for problem in error.problems]
    if problems:
        raise UserError(problems)
    return Blocklist(category, Path(file), action, words, comments)


_ACTIONS_HELP = "drop (the default), tag or route can follow the category: CATEGORY:tag=FILE"


def _merged(earlier: Blocklist | None, later: Blocklist) -> Blocklist:
    if earlier is None:
        return later
    if earlier.action != later.action:
        raise UserError(
            f"--blocklist: the category {later.category} has the actions {earlier.action} ({earlier.path}) and"
            f" {later.action} ({later.path}): give both files the same"
        )
    words = tuple(dict.fromkeys(earlier.words + later.words))
    return Blocklist(earlier.category, later.path, later.action, words, earlier.comments + later.comments)


def _read_words(path: Path, normalize: Callable[[str], str]) -> tuple[tuple[str, ...], int]:
    """Words of a file as they are compared, each once, and the number of comments."""
    if not path.is_file():
        raise UserError(
            f"{path} is {'a directory' if path.is_dir() else 'not there'}: give a file of words, one a line"
        )
    words: dict[str, None] = {}
    comments, problems = 0, []
    for number, line in enumerate(_decoded(path).split("\n"), 1):
        entry = line.strip()
        if entry.startswith(_COMMENT):
            comments += 1
            continue
        word = " ".join(normalize(entry.removeprefix("\\") if entry.startswith("\\#") else entry).casefold().split())
        if len(word) > _MAX_WORD_CHARACTERS:
            problems.append(f"{path}, line {number}, has {len(word):,} characters: write one word or phrase a line")
        elif entry and not word:
            problems.append(f"{path}, line {number}: normalisation leaves nothing of {entry!r}: remove the line")
        elif word:
            words[word] = None
    if not words and not problems:
        problems.append(f"{path} has no words ({comments:,} lines of comments): write one a line")
    if problems:
        raise UserError(problems[:5] + [f"{path}: {len(problems) - 5:,} more lines"] * (len(problems) > 5))
    return tuple(words), comments


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        kind = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "GB18030"
        raise UserError(
            f"{path}, line {line}, is not UTF-8: convert the file, for example with 'iconv -f {kind} -t UTF-8'"
        ) from error
    if "\0" in text:
        raise UserError(f"{path} has NUL bytes, as no text has: give a file of words, one a line, in UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _require_package() -> None:
    try:
        import ahocorasick_rs  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            "--blocklist needs the package ahocorasick-rs, which is not installed: pip install ahocorasick-rs"
        ) from error
