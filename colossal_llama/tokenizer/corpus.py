"""Reads texts to learn from or to measure on: directories of jsonl records and plain text files, streamed, perhaps sampled."""

import gzip
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from colossal_llama.utils.errors import UserError

RECORD_SUFFIXES = (".jsonl", ".jsonl.gz")
TEXT_SUFFIXES = (".txt", ".md")
_TEXT_BLOCK_BYTES = 64 << 10  # a plain text file of any size is read as documents of about this length


@dataclass(frozen=True)
class Text:
    """A document and its category: the record's own `category`, else the name of the directory its file lies in."""

    text: str
    category: str


def find_files(directories: Sequence[Path]) -> list[Path]:
    """All readable files below the directories, sorted by path.

    Raises:
        UserError: a directory does not exist or holds no such file.
    """
    files: list[Path] = []
    problems = []
    for directory in directories:
        if not directory.is_dir():
            problems.append(f"{directory} is not a directory")
            continue
        found = [path for path in directory.rglob("*") if path.name.endswith(RECORD_SUFFIXES + TEXT_SUFFIXES)]
        if not found:
            problems.append(f"{directory} holds no file to read: {', '.join(RECORD_SUFFIXES + TEXT_SUFFIXES)} are read")
        files += found
    if problems:
        raise UserError(problems)
    return sorted(set(files))


def total_bytes(files: Sequence[Path]) -> int:
    """Size of the files on the disk."""
    return sum(path.stat().st_size for path in files)


def read_texts(
    files: Sequence[Path], share: float = 1.0, seed: int = 0, block_characters: int | None = None
) -> Iterator[Text]:
    """Streams the documents, or a random share of them (chosen by `seed`, the same for the same files).

    A record's text is its `source` and `target` (pre-training), the contents of its `messages` line by line
    (conversations), or its `text`. One record at a time is in memory.

    Args:
        files: from `find_files`.
        share: with which each document is given.
        seed: of the choice.
        block_characters: a document that is longer counts in blocks of up to this length, each given with the same share, so that
            the share comes out however few and long the documents are. None: documents stay whole.

    Raises:
        UserError: names file and line of a record that is no JSON or has none of these.
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
                    yield Text(text, document.category)


def _document(path: Path, number: int, block: bytes) -> Text:
    try:
        if path.name.endswith(RECORD_SUFFIXES):
            record = orjson.loads(block)
            return Text(_text_of(record), str(record.get("category") or path.parent.name))
        return Text(block.decode(), path.parent.name)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}:{number}: {_complaint(error)}") from error


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


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _lines(path: Path) -> Iterator[bytes]:
    with _open(path) as file:
        yield from file


def _text_blocks(path: Path) -> Iterator[bytes]:
    """Whole lines of a text file, in blocks."""
    with _open(path) as file:
        while lines := file.readlines(_TEXT_BLOCK_BYTES):
            yield b"".join(lines)


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
