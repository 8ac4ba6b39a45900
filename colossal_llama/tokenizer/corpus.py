"""Reads texts to learn from or to measure on: directories of jsonl records and plain text files, streamed, perhaps sampled."""

import codecs
import gzip
import itertools
import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.directory_listing import list_files
from colossal_llama.utils.errors import UserError

RECORD_SUFFIXES = (".jsonl", ".jsonl.gz")
TEXT_SUFFIXES = (".txt", ".md")
UNREAD_SUFFIXES = (".jsonl.zst", ".parquet")
_TEXT_BLOCK_BYTES = 64 << 10  # a plain text file of any size is read as documents of about this length
_BEGINNING_BLOCKS = 8  # of 1 MiB: gzip reads up to 128 KiB ahead, a twentieth of what they take in compressed form


@dataclass(frozen=True)
class Text:
    """A document or a block of one."""

    text: str
    category: str
    """The record's own `category`, else the name of the directory its file lies in."""
    place: str
    """File and line of the document, which its blocks share."""


def find_files(directories: Sequence[Path]) -> list[Path]:
    """All readable files below the directories, sorted by path; it says so when there are others that preparation would read.

    Raises:
        UserError: a directory does not exist or holds no such file, or one cannot be reached.
    """
    files: list[Path] = []
    problems = []
    for directory in directories:
        if not directory.is_dir():
            problems.append(f"{directory} is not a directory")
            continue
        found, unreachable = list_files(directory, RECORD_SUFFIXES + TEXT_SUFFIXES)
        problems += unreachable
        unread = list_files(directory, UNREAD_SUFFIXES)[0]
        if unread:
            log_rank_zero(
                f"left out: {len(unread)} files of kinds that are read in preparation alone, the first of them "
                f"{unread[0]}"
            )
        if not found:
            problems.append(f"{directory} holds no file to read: {', '.join(RECORD_SUFFIXES + TEXT_SUFFIXES)} are read")
        files += found
    if problems:
        raise UserError(problems)
    return sorted(set(files))


def total_bytes(files: Sequence[Path]) -> int:
    """Size of the files' content; of compressed files as if all of one were as dense as its beginning.

    Raises:
        UserError: a compressed file is damaged at its beginning.
    """
    return sum(_content_bytes(path) if path.suffix == ".gz" else path.stat().st_size for path in files)


def _content_bytes(path: Path) -> int:
    with path.open("rb") as compressed, gzip.open(compressed, "rb") as file:
        beginning = b"".join(_whole(path, iter(lambda: file.read(1 << 20), b""), at_most=_BEGINNING_BLOCKS))
        share_read = compressed.tell() / max(1, path.stat().st_size)
    return round(len(beginning) / share_read) if beginning else 0


def read_texts(
    files: Sequence[Path], share: float = 1.0, seed: int = 0, block_characters: int | None = None
) -> Iterator[Text]:
    """Streams the documents, or a random share of them (chosen by `seed`, the same for the same files).

    A record's text is its `source` and `target` (pre-training), the contents of its `messages` line
    by line (conversations), or its `text`. One record at a time is in memory.

    Args:
        files: from `find_files`.
        share: with which each document is given.
        seed: of the choice.
        block_characters: a document that is longer counts in blocks of up to this length, each
            given with the same share, so that the share comes out however few and long the
            documents are. None: documents stay whole.

    Raises:
        UserError: names file and line of a record that is no JSON or has none of these, or a
            compressed file that is damaged.
    """
    chosen = random.Random(seed)
    for path in files:
        blocks = _lines(path) if path.name.endswith(RECORD_SUFFIXES) else _text_blocks(path)
        for number, block in enumerate(blocks, start=1):
            is_cut = share < 1.0 and block_characters is not None and len(block) > block_characters
            if not block.strip() or (share < 1.0 and not is_cut and chosen.random() >= share):
                continue
            document = _document(path, number, block)
            for text in blocks_of(document.text, block_characters) if is_cut else [document.text]:
                if text and (not is_cut or chosen.random() < share):
                    yield Text(text, document.category, document.place)


def _document(path: Path, number: int, block: bytes) -> Text:
    place = f"{path}:{number}"
    try:
        if path.name.endswith(RECORD_SUFFIXES):
            record = orjson.loads(block.removeprefix(codecs.BOM_UTF8) if number == 1 else block)
            return Text(_text_of(record), str(record.get("category") or path.parent.name), place)
        return Text(block.decode(), path.parent.name, place)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{place}: {_complaint(error)}") from error


def blocks_of(text: str, length_characters: int) -> Iterator[str]:
    """A text in blocks of up to a length, which together are the text; each ends at the last line, else word, that fits.

    >>> list(blocks_of("one two\\nthree four", 9))
    ['one two\\n', 'three ', 'four']
    """
    begin = 0
    while len(text) - begin > length_characters:
        limit = begin + length_characters
        end = text.rfind("\n", begin, limit) + 1 or text.rfind(" ", begin, limit) + 1 or limit
        yield text[begin:end]
        begin = end
    yield text[begin:]


def _lines(path: Path) -> Iterator[bytes]:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        yield from _whole(path, file)


def _text_blocks(path: Path) -> Iterator[bytes]:
    """Whole lines of a text file, in blocks."""
    with path.open("rb") as file:
        while lines := file.readlines(_TEXT_BLOCK_BYTES):
            yield b"".join(lines)


def _whole(path: Path, reading: Iterable, at_most: int | None = None) -> Iterator:
    """What is read, or so many items of it; a damaged file is named."""
    try:
        yield from itertools.islice(reading, at_most)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}): compress or copy it anew") from error


def _text_of(record: Any) -> str:
    if "messages" in record:
        return "\n".join(message["content"] for message in record["messages"])
    if "target" in record:
        return (record.get("source") or "") + record["target"]
    return "" + record["text"]


def _complaint(error: Exception) -> str:
    if isinstance(error, orjson.JSONDecodeError):
        return f"is not JSON: {error.msg} at column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8: {error.reason}"
    return (
        'holds no text: a record has "source" and "target", or "messages" with a "content" each, or "text", all strings'
    )
