"""Repeated paragraphs: those of several documents stay in the first of these and are cut elsewhere.

Paragraphs lie between blank lines. A text without blank lines has a paragraph on each line. White
space around a paragraph does not count. A paragraph with the fence of a code block stays, as what
follows it would change its meaning. Lengths are bytes of UTF-8: three letters of English say about
as much as one Chinese character, which takes three bytes.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import regex

from colossal_llama.cleaning import hash_runs
from colossal_llama.cleaning.duplicates.document_index import DocumentIndex

CUT = "cut"
_MOST_BYTES = 4  # of a character in UTF-8
_BLANK_LINES = regex.compile(r"\n\s*\n")


class WithoutParagraphs(NamedTuple):
    """A text without its repeated paragraphs.

    Attributes:
        text: what is left.
        paragraphs: number of those that were cut.
        characters: by which the text is shorter.
    """

    text: str
    paragraphs: int
    characters: int


def paragraph_hashes(documents: Iterable[Sequence[str]], min_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Computes the hashes of the paragraphs of documents that are at least so long.

    Args:
        documents: the texts of each.
        min_bytes: shortest paragraph, in UTF-8, without white space around it.

    Returns:
        Hashes, uint64, and the position in `documents` of the document of each, int64.
    """
    found, positions = [], []
    for position, texts in enumerate(documents):
        for text in texts:
            if len(text) * _MOST_BYTES < min_bytes:
                continue
            contents = [_content(piece) for piece in _paragraphs(text) if len(piece) * _MOST_BYTES >= min_bytes]
            long = [content for content in contents if len(content) >= min_bytes and not _has_fence(content)]
            found += long
            positions += [position] * len(long)
    return hash_runs.hash_bytes(found), np.array(positions, dtype=np.int64)


def cut_paragraphs(text: str, hashes: frozenset[int], min_bytes: int) -> WithoutParagraphs:
    """Cuts the paragraphs with these hashes, and the blank lines before each, out of a text."""
    paragraphs = _paragraphs(text)
    separators = _separators(text)
    kept: list[str] = []
    count = 0
    for separator, paragraph in zip(["", *separators], paragraphs, strict=True):
        content = _content(paragraph)
        if len(content) >= min_bytes and int(hash_runs.hash_bytes([content])[0]) in hashes:
            count += 1
        else:
            kept += [separator, paragraph] if kept else [paragraph]
    rest = "".join(kept)
    return WithoutParagraphs(rest, count, len(text) - len(rest))


def write_signatures(directory: Path, chunk: int, hashes: np.ndarray, positions: np.ndarray) -> None:
    """Writes what `paragraph_hashes` returned about a chunk's documents, of all its batches."""
    hash_runs.write_run(directory, chunk, hashes, hash_runs.document_numbers(chunk, positions))


def merge(directory: Path, index: DocumentIndex, is_dropped: np.ndarray, memory_bytes: int) -> None:
    """Finds the paragraphs to cut: those that an earlier document has which stays.

    A paragraph whose first document is dropped as a duplicate stays in the next one, so that no
    text is lost.

    Args:
        directory: of the signatures; `read_cuts` reads there what is written.
        index: of all documents.
        is_dropped: True for documents that are dropped as duplicates, by position.
        memory_bytes: see `hash_runs.groups`.
    """
    hash_runs.remove_runs(directory / CUT)
    kept_key, keeper = None, None
    for number, groups in enumerate(hash_runs.groups(directory, memory_bytes)):
        stays = ~is_dropped[index.positions(groups.documents)]
        keys, documents = np.repeat(groups.keys, groups.sizes)[stays], groups.documents[stays]
        is_later = np.append(False, keys[1:] == keys[:-1])[: len(keys)]
        if len(keys) and keys[0] == kept_key and documents[0] != keeper:  # the key's next piece
            is_later[0] = True
        if not is_later.all():
            last = np.flatnonzero(~is_later)[-1]
            kept_key, keeper = keys[last], documents[last]
        hash_runs.write_run(directory / CUT, number, documents[is_later], keys[is_later])


def read_cuts(directory: Path, chunk: int) -> dict[int, frozenset[int]]:
    """Reads which paragraphs are cut out of a chunk's documents, by position in it."""
    documents, hashes = hash_runs.read_documents(directory / CUT, chunk)
    cuts: dict[int, set[int]] = {}
    for position, paragraph in zip(hash_runs.positions_in_chunk(documents), hashes.tolist(), strict=True):
        cuts.setdefault(position, set()).add(paragraph)
    return {position: frozenset(found) for position, found in cuts.items()}


def _has_fence(content: bytes) -> bool:
    return b"```" in content or b"~~~" in content


def _paragraphs(text: str) -> list[str]:
    """Splits a text at blank lines, or at line breaks where it has no blank lines."""
    paragraphs = _BLANK_LINES.split(text)
    return paragraphs if len(paragraphs) > 1 else text.split("\n")


def _content(paragraph: str) -> bytes:
    """Returns what is compared of a paragraph."""
    return paragraph.strip().encode("utf-8", "surrogatepass")


def _separators(text: str) -> list[str]:
    """Returns what lies between the paragraphs of a text."""
    return _BLANK_LINES.findall(text) or ["\n"] * text.count("\n")
