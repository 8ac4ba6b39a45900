"""Boilerplate: lines that recur across the documents of a group, such as menus and footers.

A group is a domain where records have a `url`, else a file. A line recurs where enough documents of
its group have it: a number of documents and a share of the group, both. It is cut out of all of
them. Lines are compared without the white space around them, each once a document.

What is never cut, however often it recurs:

- brackets alone (`}`, `);`) and the fences of code blocks;
- recurring lines that follow each other (blank lines do not count) and have together less than
  `min_letters` letters, each line once: `---`, a heading, an author's name. A Han character counts
  as four;
- with `keep_code`: lines of fenced code blocks, headings, rows of tables, lines that look like
  code, and lines shorter than a sentence of five words or eight Han characters.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import regex

from colossal_llama.cleaning import hash_runs
from colossal_llama.cleaning.duplicates.document_index import DocumentIndex
from colossal_llama.cleaning.rule_settings import RuleSettings

_LETTER = regex.compile(r"\p{L}")
_WORD = regex.compile(r"(?<!\S)[\p{L}'’]+[,.;:!?)]*(?!\S)")
_IDEOGRAPH = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]")
_IDEOGRAPH_LETTERS = 4
_NEVER_CUT = regex.compile(r"[\s{}()\[\];,]*$|```|~~~")
_FENCE = regex.compile(r"(?P<mark>`{3,}|~{3,})(?P<info>[^`]*)$")
_MARKUP = regex.compile(r"\s*(#{1,6}\s|\||=+$|-+$|<)")
_CODE = regex.compile(
    r"(import|from|package|use|using|require|export|return|def|class|function|func|fn|public|private|protected|static"
    r"|const|let|var|if|for|while|select|insert|create)\b|.*[{}()\[\];=]$|[@#$]\w|//?\w"
)
_MIN_SENTENCE_WORDS, _MIN_SENTENCE_IDEOGRAPHS = 5, 8
_NO_KEYS, _NO_DOCUMENTS = np.empty(0, np.uint64), np.empty(0, np.int64)
_LENGTH_BITS = np.uint64(31)
_LINES, _GROUPS, _DOCUMENTS, CUTS = "lines", "groups", "documents", "cuts"
RUNS = (_LINES, _GROUPS, _DOCUMENTS)
"""Directories of what `write_lines` writes."""


@dataclass(frozen=True)
class Boilerplate:
    """Settings of the rule `boilerplate`.

    Attributes:
        min_documents: documents of a group that must have a line.
        min_document_share: of the documents of the group that must have it.
        min_letters: of recurring lines that follow each other; one Han character counts as four.
        keep_code: spares code, headings, tables and what is shorter than a sentence.
    """

    min_documents: int = 10
    min_document_share: float = 0.1
    min_letters: int = 16
    keep_code: bool = False

    @classmethod
    def of_rules(cls, settings: RuleSettings) -> "Boilerplate | None":
        """Returns what the rule `boilerplate` says; None where it is off."""
        rule = settings["boilerplate"]
        return cls(**rule.values) if rule.on else None


def write_lines(directory: Path, block: int, texts: Sequence[str], groups: Sequence[str]) -> None:
    """Writes the hashes of the lines of a block's documents, and of their groups.

    Args:
        directory: of this stage, for all blocks.
        block: number of the block: the high half of its documents' numbers.
        texts: of all its documents.
        groups: of the documents.
    """
    lines: list[str] = []
    counts = []
    for text in texts:
        distinct = set(map(str.strip, text.split("\n")))
        distinct.discard("")
        lines += distinct
        counts.append(len(distinct))
    documents = hash_runs.document_numbers(block, range(len(texts)))
    group_keys = _group_keys(groups)
    keys = _line_keys(lines, np.repeat(group_keys, counts))
    hash_runs.write_run(directory / _LINES, block, keys, np.repeat(documents, counts))
    hash_runs.write_run(directory / _GROUPS, block, group_keys, documents)
    hash_runs.write_run(directory / _DOCUMENTS, block, documents, group_keys)


def _line_keys(lines: Sequence[str], group_keys: np.ndarray) -> np.ndarray:
    """Hash of each line and its group, uint64; the lowest five bits are its length, at most 31."""
    lengths = np.fromiter(map(len, lines), np.uint64, len(lines))
    return (hash_runs.hash_texts(lines) ^ group_keys) & ~_LENGTH_BITS | np.minimum(lengths, _LENGTH_BITS)


def _group_keys(groups: Sequence[str]) -> np.ndarray:
    """Hash of each document's group, uint64."""
    distinct = list(dict.fromkeys(groups))
    keys = dict(zip(distinct, hash_runs.hash_texts(distinct).tolist(), strict=True))
    return np.array([keys[group] for group in groups], dtype=np.uint64)


def write_cuts(
    directory: Path, index: DocumentIndex, is_dropped: np.ndarray, settings: Boilerplate, memory_bytes: int
) -> int:
    """Finds the boilerplate of each group, and writes which documents have which of its lines.

    Args:
        directory: into which `write_lines` has written all blocks.
        index: of all documents.
        is_dropped: True for documents that are dropped as duplicates, by position. They do not
            count: all lines of a document with ten copies would recur.
        settings: when a line recurs.
        memory_bytes: see `hash_runs.groups`.

    Returns:
        The number of different lines that recur.
    """
    recurring = _recurring_lines(directory, _Staying(index, is_dropped), settings, memory_bytes)
    if recurring.size:
        for number, part in enumerate(hash_runs.groups(directory / _LINES, memory_bytes)):
            keys = np.repeat(part.keys, part.sizes)
            found = _is_in(keys, recurring)
            hash_runs.write_run(directory / CUTS, number, part.documents[found], keys[found])
    return len(recurring)


def read_cuts(directory: Path, block: int, settings: Boilerplate) -> dict[int, frozenset[int]]:
    """Returns the hashes of the recurring lines of the documents of a block that lose some.

    Args:
        directory: after `write_cuts`.
        block: number of the block.
        settings: as of `write_cuts`. Left out are documents whose recurring lines are too short
            to be cut: an author's name in each of 10,000 poems.

    Returns:
        Position of a document → hashes of lines.
    """
    documents, keys = hash_runs.read_documents(directory / CUTS, block)
    distinct, starts = np.unique(documents, return_index=True)
    lengths = (keys & _LENGTH_BITS).astype(np.int64)
    letters = np.where(lengths == _LENGTH_BITS, settings.min_letters, _IDEOGRAPH_LETTERS * lengths)
    may_be_cut = np.add.reduceat(letters, starts) >= settings.min_letters if len(starts) else np.empty(0, bool)
    parts = np.split(keys, starts[1:])
    return {
        position: frozenset(part.tolist())
        for position, part, may in zip(hash_runs.positions_in_chunk(distinct), parts, may_be_cut, strict=False)
        if may
    }


@dataclass(frozen=True)
class _Staying:
    """Documents that are not dropped as duplicates."""

    index: DocumentIndex
    is_dropped: np.ndarray

    def counts(self, groups: hash_runs.Groups) -> np.ndarray:
        """Number of these documents in each group, int64."""
        stays = ~self.is_dropped[self.index.positions(groups.documents)]
        return np.add.reduceat(stays, groups.starts[:-1], dtype=np.int64)


def _recurring_lines(directory: Path, staying: _Staying, settings: Boilerplate, memory_bytes: int) -> np.ndarray:
    """Hashes of the lines that recur in their group, ascending, uint64."""
    keys, counts, firsts = _key_counts(directory / _LINES, staying, settings.min_documents, memory_bytes)
    if not keys.size:
        return keys
    group_keys, sizes, _ = _key_counts(directory / _GROUPS, staying, settings.min_documents, memory_bytes)
    groups = _groups_of_documents(directory / _DOCUMENTS, firsts)
    return keys[counts >= settings.min_document_share * sizes[np.searchsorted(group_keys, groups)]]


def _is_in(keys: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """True for keys that are among the others, of which there is at least one."""
    return ascending[np.minimum(np.searchsorted(ascending, keys), len(ascending) - 1)] == keys


def _key_counts(
    directory: Path, staying: _Staying, min_documents: int, memory_bytes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys with enough documents that stay, ascending; how many these are; the first of all."""
    keys, counts, firsts = [_NO_KEYS], [_NO_DOCUMENTS], [_NO_KEYS]
    last_key = None
    for part in hash_runs.groups(directory, memory_bytes):
        if not part.keys.size:
            continue
        part_counts, first_documents = staying.counts(part), part.documents[part.starts[:-1]]
        continued = part.keys[0] == last_key
        if continued:  # its first document is counted already
            part_counts[0] -= not staying.is_dropped[staying.index.positions(first_documents[:1])][0]
        chosen = part_counts >= min_documents
        chosen[0] |= continued
        chosen[-1] = True  # the next part may continue it
        keys.append(part.keys[chosen])
        counts.append(part_counts[chosen])
        firsts.append(first_documents[chosen])
        last_key = part.keys[-1]
    unique, first_indices, inverse = np.unique(np.concatenate(keys), return_index=True, return_inverse=True)
    summed = np.bincount(inverse, weights=np.concatenate(counts), minlength=len(unique)).astype(np.int64)
    enough = summed >= min_documents
    return unique[enough], summed[enough], np.concatenate(firsts)[first_indices][enough]


def _groups_of_documents(directory: Path, documents: np.ndarray) -> np.ndarray:
    """The group's key of each document, uint64."""
    groups = np.empty(len(documents), dtype=np.uint64)
    order = np.argsort(documents, kind="stable")
    blocks, starts = np.unique(documents[order] >> np.uint64(32), return_index=True)
    for block, here in zip(blocks.tolist(), np.split(order, starts[1:]), strict=False):
        numbers, keys = hash_runs.read_run(directory, block)
        groups[here] = keys[np.searchsorted(numbers, documents[here])]
    return groups


def cut_lines(text: str, group: str, hashes: frozenset[int], settings: Boilerplate) -> tuple[str, int]:
    """Cuts recurring lines out of a text.

    Args:
        text: of a document.
        group: of the document.
        hashes: of the lines that recur, from `read_cuts`.
        settings: what is never cut.

    Returns:
        The text as it is left, and the number of lines with letters that were cut.
    """
    lines = text.split("\n")
    stripped = [line.strip() for line in lines]
    keys = _line_keys(stripped, _group_keys([group])).tolist()
    recurring = {i for i, key in enumerate(keys) if key in hashes and not _NEVER_CUT.match(stripped[i])}
    if settings.keep_code:
        recurring = {i for i in recurring if not _is_code(stripped[i])}
        recurring = recurring and recurring.difference(_fenced(stripped))
    dropped: set[int] = set()
    cut = 0
    for run in _runs(stripped, recurring):
        if sum(_letters(line) for line in {stripped[i] for i in run}) >= settings.min_letters:
            dropped.update(_with_blank_lines(stripped, run[0], run[-1] + 1))
            cut += len(run)
    return "\n".join([line for i, line in enumerate(lines) if i not in dropped]) if dropped else text, cut


def _runs(stripped: list[str], recurring: set[int]) -> Iterator[list[int]]:
    """Indices of recurring lines that follow each other, with only blank lines between them."""
    run: list[int] = []
    for index in sorted(recurring):
        if run and any(stripped[run[-1] + 1 : index]):
            yield run
            run = []
        run.append(index)
    if run:
        yield run


def _with_blank_lines(stripped: list[str], start: int, end: int) -> range:
    """Lines to cut, with the blank ones around them that no longer separate anything."""
    following = next((i for i in range(end, len(stripped)) if stripped[i]), len(stripped))
    if following == len(stripped):
        while start and not stripped[start - 1]:
            start -= 1
        return range(start, following)
    return range(start, end if start and stripped[start - 1] else following)


def _fenced(stripped: list[str]) -> Iterator[int]:
    """Yields the lines of fenced code blocks, with their fences (CommonMark 0.31, section 4.5)."""
    start, opening = 0, ""
    for index, line in enumerate(stripped):
        if not line.startswith(("```", "~~~")) or (match := _FENCE.match(line)) is None:
            continue
        mark, info = match["mark"], match["info"].strip()
        if not opening and not _is_underline(line, stripped[index - 1] if index else ""):
            start, opening = index, mark
        elif opening and mark.startswith(opening) and not info:
            yield from range(start, index + 1)
            opening = ""
    if opening:
        yield from range(start, len(stripped))


def _is_underline(line: str, above: str) -> bool:
    """True for tildes below a heading of reStructuredText, which are as long as it."""
    return set(line) == {"~"} and 0 < len(above) <= len(line) + 1


@lru_cache(maxsize=1 << 16)
def _letters(line: str) -> int:
    return len(_LETTER.findall(line)) + (_IDEOGRAPH_LETTERS - 1) * len(_IDEOGRAPH.findall(line))


@lru_cache(maxsize=1 << 16)
def _is_code(line: str) -> bool:
    """True for lines that look like code or markup, and for those shorter than a sentence."""
    is_sentence = (
        len(_IDEOGRAPH.findall(line)) >= _MIN_SENTENCE_IDEOGRAPHS or len(_WORD.findall(line)) >= _MIN_SENTENCE_WORDS
    )
    return not is_sentence or bool(_MARKUP.match(line)) or bool(_CODE.match(line))
