"""From input directories to checked records: which files, in which order, and what is wrong with a line.

Files are read in chunks that depend on the input alone, never on the number of workers: a plain .jsonl file is cut into
byte ranges (a line belongs to the range its first byte lies in), any other file is one chunk.

    corpus.jsonl   |line|line|li ne|line|line|
                   ^ chunk 0    ^ chunk 1       the third line belongs to chunk 0
"""

import gzip
import hashlib
import io
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import zstandard

from colossal_llama.dataset.conversation import Message
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.files import files_below

FORMATS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
CHUNK_BYTES = 4 << 20
MOST_CHUNKS = 16_384  # larger inputs get larger chunks: 64 MiB for 1 TiB
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
DEFAULT_CATEGORY = "default"  # of a conversation without one


@dataclass(frozen=True)
class InputFile:
    """A file of records; `name` (directory name and path below it) decides its place in the order."""

    path: Path
    name: str
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Chunk:
    """A part of a file that one task reads: lines that begin in [start, end), at most `record_limit` records of them."""

    index: int
    file: InputFile
    start: int
    end: int | None
    record_limit: int | None


@dataclass(frozen=True)
class Document:
    """A pre-training record."""

    source: str
    target: str
    category: str


@dataclass(frozen=True)
class Conversation:
    """A fine-tuning record."""

    messages: tuple[Message, ...]
    category: str


class RecordError(Exception):
    """A record that cannot be used: `reason` is one word for counting, the message is for people."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class DamagedFileError(Exception):
    """A compressed or parquet file that cannot be read to its end."""


# ---------------------------------------------------------------------------------------------- files and chunks


def find_input_files(directories: Sequence[Path], excluded: Path) -> list[InputFile]:
    """Every input file below the directories, in the order of their names.

    Args:
        directories: searched with their subdirectories (`utils.files.files_below`); the order in which they are given does not matter.
        excluded: the output directory, whose files are no input even if it lies inside one of the directories.

    Raises:
        UserError: a directory holds no input file, or a file cannot be reached or is reached twice.
    """
    problems, found, excluded = [], {}, excluded.resolve()
    for directory in directories:
        paths, unreachable = files_below(directory, FORMATS)
        problems += [f"--data_input_dirs: {problem}" for problem in unreachable]
        outside = [path for path in paths if excluded not in path.resolve().parents]
        if not outside:
            missing = "but those in the output directory" if paths else f"that ends in {', '.join(FORMATS)}"
            problems.append(f"--data_input_dirs: {directory} holds no file {missing}")
        for path in outside:
            if path.resolve() in found:
                problems.append(f"--data_input_dirs: {path} is reached twice, its documents would be doubled")
            found[path.resolve()] = (path, directory)
    if problems:
        raise UserError(problems)
    names = _names_of(found.values())
    files = [_input_file(path, name) for (path, _), name in zip(found.values(), names, strict=True)]
    return sorted(files, key=lambda file: file.name)


def _input_file(path: Path, name: str) -> InputFile:
    stat = path.stat()
    return InputFile(path, name, stat.st_size, stat.st_mtime_ns)


def _names_of(files: Iterable[tuple[Path, Path]]) -> list[str]:
    """For each (file, input directory) the directory's name and the path below it; with more of the directory's path where two are alike.

    /corpus/zh/data/a.jsonl, /corpus/en/data/a.jsonl  →  zh/data/a.jsonl, en/data/a.jsonl
    """
    whole = [(directory.resolve() / path.relative_to(directory)).parts[1:] for path, directory in files]
    depths = [len(path.relative_to(directory).parts) + 1 for path, directory in files]
    while True:
        names = ["/".join(parts[-depth:]) for parts, depth in zip(whole, depths, strict=True)]
        counts = Counter(names)
        if max(counts.values(), default=1) == 1:
            return names
        depths = [depth + (counts[name] > 1) for depth, name in zip(depths, names, strict=True)]


def plan_chunks(files: Sequence[InputFile], limit: int | None) -> list[Chunk]:
    """Cuts the files into chunks. With a `limit`, at most that many records are read, as evenly from all files as it goes."""
    if limit is not None:
        shares = [limit // len(files) + (index < limit % len(files)) for index in range(len(files))]
        return [
            Chunk(index, file, 0, None, share) for index, (file, share) in enumerate(zip(files, shares, strict=True))
        ]
    chunk_bytes = max(CHUNK_BYTES, sum(file.size_bytes for file in files) // MOST_CHUNKS)
    chunks: list[Chunk] = []
    for file in files:
        if file.path.suffix != ".jsonl":
            chunks.append(Chunk(len(chunks), file, 0, None, None))
            continue
        for start in range(0, max(file.size_bytes, 1), chunk_bytes):
            chunks.append(Chunk(len(chunks), file, start, min(start + chunk_bytes, file.size_bytes), None))
    return chunks


# ------------------------------------------------------------------------------------------------------- reading


def read_rows(chunk: Chunk, digest: Any) -> Iterator[tuple[int, bytes | dict]]:
    """The rows of a chunk: (number within the chunk from 0, line of bytes without its end, or parquet row).

    Args:
        digest: a hashlib object, which is fed with everything that is read.

    Raises:
        DamagedFileError: the file cannot be read to its end; the rows before the damage have been given.
    """
    if chunk.file.path.suffix == ".parquet":
        yield from _parquet_rows(chunk, digest)
        return
    try:
        with _open_lines(chunk) as file:
            if chunk.start:
                file.seek(chunk.start - 1)
                file.readline()
            position = file.tell() if chunk.end is not None else 0
            number = 0
            while chunk.end is None or position < chunk.end:
                line = file.readline()
                if not line:
                    return
                position += len(line)
                digest.update(line)
                if number == 0 and chunk.start == 0:
                    line = line.removeprefix(BYTE_ORDER_MARK)
                yield number, line.rstrip(b"\r\n")
                number += 1
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise DamagedFileError(str(error)) from error


def content_digest(chunk: Chunk, rows: int) -> str:
    """SHA-256 of what `read_rows` reads for a chunk's first rows, for comparing with an earlier reading."""
    digest = hashlib.sha256()
    if chunk.record_limit == 0:
        return digest.hexdigest()  # nothing was read of it
    try:
        for number, _ in read_rows(chunk, digest):
            if number + 1 == rows or chunk.file.path.suffix == ".parquet":
                break
    except DamagedFileError:
        pass  # what could be read is compared
    return digest.hexdigest()


def first_row_number(chunk: Chunk) -> int:
    """How many lines of the file begin before the chunk (counted by reading them)."""
    if not chunk.start:
        return 0
    count, left = 1, chunk.start - 1  # a line feed just before the chunk begins the chunk's own first line
    with chunk.file.path.open("rb") as file:
        while left:
            block = file.read(min(left, 1 << 20))
            count += block.count(b"\n")
            left -= len(block)
    return count


def _open_lines(chunk: Chunk) -> io.BufferedIOBase:
    path = chunk.file.path
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".zst":
        return io.BufferedReader(_ZstandardFile(path), 1 << 20)
    return path.open("rb", buffering=1 << 20)


class _ZstandardFile(io.RawIOBase):
    """Reads all frames of a file, and complains, as gzip does, when the last one is cut off: `zstandard.open` ends there in silence."""

    def __init__(self, path: Path):
        self._file = path.open("rb")
        self._frame: Any = None
        self._compressed = self._content = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """
        Raises:
            EOFError: the file ends inside a frame.
        """
        while not self._content:
            self._compressed = self._compressed or self._file.read(zstandard.DECOMPRESSION_RECOMMENDED_INPUT_SIZE)
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError("the file ends inside a compressed frame")
                return 0
            frame = self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._content = frame.decompress(self._compressed)
            self._compressed = b""
            if frame.eof:
                self._compressed, self._frame = frame.unused_data, None
        size = min(len(buffer), len(self._content))
        buffer[:size], self._content = self._content[:size], self._content[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def _parquet_rows(chunk: Chunk, digest: Any) -> Iterator[tuple[int, dict]]:
    import pyarrow
    from pyarrow import parquet

    with chunk.file.path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    number = 0
    try:
        with parquet.ParquetFile(chunk.file.path) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    yield number, row
                    number += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DamagedFileError(str(error)) from error


# ------------------------------------------------------------------------------------------------------- checking


def parse_row(row: bytes | dict) -> dict:
    """The JSON object of a line; a parquet row is one already.

    Raises:
        RecordError: the line is not UTF-8, not JSON, or not an object.
    """
    if isinstance(row, dict):
        return row
    try:
        record = orjson.loads(row)
    except orjson.JSONDecodeError as error:
        try:
            row.decode("utf-8")
        except UnicodeDecodeError as wrong:
            message = f"byte 0x{row[wrong.start]:02x} at position {wrong.start} is not UTF-8: save the file as UTF-8"
            raise RecordError("wrong_encoding", message) from None
        raise RecordError("broken_json", f"not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise RecordError("not_an_object", f"a JSON object is needed, not {_kind(record)}")
    return record


def document_of(record: dict) -> Document:
    """The checked pre-training document of a record.

    Raises:
        RecordError: a field is missing, null, not a string; the target or the category is empty.
    """
    source, target, category = (_string(record, name) for name in ("source", "target", "category"))
    if not target:
        raise RecordError("empty_target", '"target" is empty: there is nothing to learn')
    if not category:
        raise RecordError("empty_category", '"category" is empty: name the sub-dataset')
    return Document(source, target, category)


ROLES = {"human": "human", "user": "human", "assistant": "assistant", "gpt": "assistant", "system": "system"}


def conversation_of(record: dict) -> Conversation:
    """The checked conversation of a record, in any of the forms people have.

        {"messages" or "conversations": [{"from" or "role": …, "content" or "value": …}, …]}
        {"instruction": …, "input": …, "output": …}                            (alpaca)

    Each may have a "category" and a "system" text, which may be empty.

    Raises:
        RecordError: it has none of these forms, a message is empty or of an unknown role, or the assistant never speaks.
    """
    system = [Message("system", _string(record, "system"))] if record.get("system") not in (None, "") else []
    category = _string(record, "category") if record.get("category") is not None else DEFAULT_CATEGORY
    if record.get("history"):
        raise RecordError("unknown_form", '"history" is not read: write the conversation as "messages"')
    names = [name for name in ("messages", "conversations") if record.get(name) is not None]
    if len(names) > 1:
        raise RecordError("unknown_form", '"messages" and "conversations" together: leave one')
    if names:
        messages = [*system, *_messages(record[names[0]], names[0])]
    elif "instruction" in record and "output" in record:
        messages = [*system, *_alpaca_messages(record)]
    else:
        known = ", ".join(f'"{name}"' for name in record) or "nothing"
        raise RecordError("missing_field", f'neither "messages" nor "instruction" and "output", but {known[:80]}')
    _check_messages(messages)
    return Conversation(tuple(messages), category or DEFAULT_CATEGORY)


def _messages(listed: Any, name: str) -> list[Message]:
    if not isinstance(listed, list):
        raise RecordError("wrong_type", f'"{name}" is {_kind(listed)}, a list is needed')
    messages = []
    for number, item in enumerate(listed, 1):
        if isinstance(item, dict) and len(item) == 2:  # the common form, checked in a fifth of the time
            role, content = item.get("from"), item.get("content")
            if isinstance(role, str) and isinstance(content, str) and role in ROLES:
                messages.append(Message(ROLES[role], content))
                continue
        where = f"message {number}"
        if not isinstance(item, dict):
            raise RecordError("wrong_type", f"{where} is {_kind(item)}, an object is needed")
        role = _string(item, _one_name(item, ("from", "role"), where), where)
        if role not in ROLES:
            known = ", ".join(ROLES)
            raise RecordError("unknown_role", f"{where} is from {role[:40]!r}: the known roles are {known}")
        messages.append(Message(ROLES[role], _string(item, _one_name(item, ("content", "value"), where), where)))
    return messages


def _one_name(item: dict, names: tuple[str, str], where: str) -> str:
    present = [name for name in names if item.get(name) is not None]
    if len(present) > 1 and item[present[0]] != item[present[1]]:
        raise RecordError("unknown_form", f'{where} has "{names[0]}" and "{names[1]}", which differ: leave one')
    return present[0] if present else next((name for name in names if name in item), names[0])


def _alpaca_messages(record: dict) -> list[Message]:
    instruction, output = _string(record, "instruction"), _string(record, "output")
    extra = _string(record, "input") if record.get("input") is not None else ""
    return [Message("human", f"{instruction}\n\n{extra}" if extra else instruction), Message("assistant", output)]


def _check_messages(messages: Sequence[Message]) -> None:
    for number, message in enumerate(messages, 1):
        if not message.content:
            raise RecordError("empty_message", f"message {number} (from {message.role}) is empty")
        if message.role == "system" and number > 1:
            raise RecordError("misplaced_system", f"message {number} is a system message: only the first may be")
    if not any(message.role == "assistant" for message in messages):
        raise RecordError("no_assistant_message", "the assistant never speaks: there is nothing to learn")


def _string(record: dict, name: str, where: str = "") -> str:
    place = f'"{name}" of {where}' if where else f'"{name}"'
    if name not in record:
        raise RecordError("missing_field", f"{place} is missing")
    value = record[name]
    if value is None:
        raise RecordError("null_field", f"{place} is null, a string is needed")
    if not isinstance(value, str):
        raise RecordError("wrong_type", f"{place} is {_kind(value)}, a string is needed")
    return value


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list"}
    return "null" if value is None else names.get(type(value), "an object")
