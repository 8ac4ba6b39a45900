"""Streams the documents of a corpus, or a random sample of them.

A corpus is directories of jsonl records and plain text files.
"""

import codecs
import gzip
import itertools
import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

from colossal_llama.readers.directory_listing import list_files, unread_message, unread_record
from colossal_llama.readers.line_reader import BYTES_PER_MB, MAX_LINE_MB, LongLine, read_line
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.errors import UserError

RECORD_SUFFIXES = (".jsonl", ".jsonl.gz")
TEXT_SUFFIXES = (".txt", ".md")
UNREAD_SUFFIXES = (".jsonl.zst", ".parquet")
_TEXT_BLOCK_BYTES = 64 << 10  # a plain text file of any size is read as documents of about this length
# Of 1 MiB: gzip reads up to 128 KiB ahead, a twentieth of their compressed size.
_PROBED_BLOCKS = 8


@dataclass(frozen=True)
class CorpusText:
    """A document or a block of one.

    Attributes:
        text: the text.
        category: the record's own `category`, else the name of the file's directory.
        location: `file:line` of the document, which its blocks share.
    """

    text: str
    category: str
    location: str


def find_files(directories: Sequence[Path]) -> list[Path]:
    """Lists all readable files below the directories, sorted by path.

    Logs how many files there are of other formats, and the first of them.

    Raises:
        UserError: a directory does not exist or holds no such file, or one cannot be reached.
    """
    files: list[Path] = []
    problems = []
    for directory in directories:
        if not directory.is_dir():
            problems.append(f"{directory} is not a directory")
            continue
        listing = list_files(directory, RECORD_SUFFIXES + TEXT_SUFFIXES)
        problems += listing.problems
        if unread := [path for path in listing.unread if path.name.endswith(UNREAD_SUFFIXES)]:
            log_rank_zero(
                f"left out: {len(unread)} files of formats that only preparation reads, the first of them {unread[0]}"
            )
            listing.unread = [path for path in listing.unread if not path.name.endswith(UNREAD_SUFFIXES)]
        if message := unread_message(unread_record([(directory, listing)])):
            log_rank_zero(message)
        if not listing.files and not listing.problems:
            problems.append(f"{directory} holds no file to read: {', '.join(RECORD_SUFFIXES + TEXT_SUFFIXES)} are read")
        files += [file.path for file in listing.files]
    if problems:
        raise UserError(problems)
    return sorted(set(files))


def total_bytes(files: Sequence[Path]) -> int:
    """Returns the uncompressed size of the files.

    A compressed file's is estimated from the compression ratio of its first 8 MiB.

    Raises:
        UserError: a compressed file is damaged at its beginning.
    """
    return sum(_content_bytes(path) if path.suffix == ".gz" else path.stat().st_size for path in files)


def _content_bytes(path: Path) -> int:
    with path.open("rb") as compressed, gzip.open(compressed, "rb") as file:
        probe = b"".join(_read_undamaged(path, iter(lambda: file.read(1 << 20), b""), at_most=_PROBED_BLOCKS))
        share_read = compressed.tell() / max(1, path.stat().st_size)
    return round(len(probe) / share_read) if probe else 0


def read_texts(
    files: Sequence[Path], share: float = 1.0, seed: int = 0, block_characters: int | None = None
) -> Iterator[CorpusText]:
    """Streams the documents, or a random sample of them.

    A record's text is its `source` and `target` (pre-training), the contents of its `messages` line
    by line (conversations), or its `text`. One record at a time is in memory.

    Args:
        files: from `find_files`.
        share: the probability with which a document is sampled.
        seed: of the sample, which is the same for the same files.
        block_characters: longer documents are split into blocks of at most this length, which are
            sampled one by one. The sample then has the expected size however few and long the
            documents are. None: documents stay whole.

    Raises:
        UserError: names file and line of a record that is not JSON, has none of these or is too
            long, or a compressed file that is damaged.
    """
    generator = random.Random(seed)
    for path in files:
        blocks = _lines(path) if path.name.endswith(RECORD_SUFFIXES) else _text_blocks(path)
        for number, block in enumerate(blocks, start=1):
            longest = block_characters or len(block)
            is_split = share < 1.0 and len(block) > longest
            if not block.strip() or (share < 1.0 and not is_split and generator.random() >= share):
                continue
            document = _document(path, number, block)
            for text in split_into_blocks(document.text, longest) if is_split else [document.text]:
                if text and (not is_split or generator.random() < share):
                    yield CorpusText(text, document.category, document.location)


def _document(path: Path, number: int, block: bytes) -> CorpusText:
    location = f"{path}:{number}"
    try:
        if path.name.endswith(RECORD_SUFFIXES):
            record = orjson.loads(block.removeprefix(codecs.BOM_UTF8) if number == 1 else block)
            return CorpusText(_text_of(record), str(record.get("category") or path.parent.name), location)
        return CorpusText(block.decode(), path.parent.name, location)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{location}: {_parse_problem(error)}") from error


def split_into_blocks(text: str, max_characters: int) -> Iterator[str]:
    r"""Splits a text into blocks, each of which ends at the last line, else word, that fits.

    >>> list(split_into_blocks("one two\nthree four", 9))
    ['one two\n', 'three ', 'four']
    """
    begin = 0
    while len(text) - begin > max_characters:
        limit = begin + max_characters
        end = text.rfind("\n", begin, limit) + 1 or text.rfind(" ", begin, limit) + 1 or limit
        yield text[begin:end]
        begin = end
    yield text[begin:]


def _lines(path: Path) -> Iterator[bytes]:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        yield from _bounded_lines(path, cast(BinaryIO, file))


def _bounded_lines(path: Path, file: BinaryIO) -> Iterator[bytes]:
    lines = iter(lambda: read_line(file, MAX_LINE_MB * BYTES_PER_MB), b"")
    for number, line in enumerate(_read_undamaged(path, lines), start=1):
        if isinstance(line, LongLine):
            raise UserError(f"{path}:{number}: {line} Split it")
        yield line


def _text_blocks(path: Path) -> Iterator[bytes]:
    """Yields blocks of whole lines of a text file."""
    with path.open("rb") as file:
        block = b""
        for line in _bounded_lines(path, file):
            block += line
            if len(block) > _TEXT_BLOCK_BYTES:
                yield block
                block = b""
        if block:
            yield block


def _read_undamaged(path: Path, reading: Iterable, at_most: int | None = None) -> Iterator:
    """Yields what is read, or the first items of it; a damaged file becomes a `UserError`."""
    try:
        yield from itertools.islice(reading, at_most)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}): compress or copy it again") from error


def _text_of(record: Any) -> str:
    if "messages" in record:
        return "\n".join(message["content"] for message in record["messages"])
    if "target" in record:
        return (record.get("source") or "") + record["target"]
    return "" + record["text"]


def _parse_problem(error: Exception) -> str:
    if isinstance(error, orjson.JSONDecodeError):
        return f"is not JSON: {error.msg} at column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8: {error.reason}"
    return (
        'holds no text: a record has "source" and "target", or "messages" with a "content" each, or "text", all strings'
    )
