"""Finds the input files, divides them into chunks and reads their rows.

A plain .jsonl file is divided into byte ranges; a line belongs to the range of its first byte. Any
other file is one chunk. Chunks depend on the input alone, never on the number of workers:

    corpus.jsonl   |line|line|li ne|line|line|
                   ^ chunk 0    ^ chunk 1       the third line belongs to chunk 0
"""

import errno
import gzip
import hashlib
import io
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from colossal_llama.dataset.records import BYTE_ORDER_MARK
from colossal_llama.utils.directory_listing import (
    FoundFile,
    Listing,
    displayed,
    list_files,
    unread_message,
    unread_record,
)
from colossal_llama.utils.errors import UserError, truncate_problems
from colossal_llama.utils.line_reader import LongLine, read_line

FORMATS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
CHUNK_BYTES = 4 << 20
READ_BYTES = 1 << 20
PARQUET_ROWS = 32  # in memory at once: a dictionary of 1 MB on the disk may be a cell of every row
MAX_CHUNKS = 16_384  # larger inputs get larger chunks: 64 MiB for 1 TiB


@dataclass(frozen=True)
class InputFile:
    """A file of records; `name`, the directory's name and the path below it, decides the order."""

    path: Path
    name: str
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Chunk:
    """A range of a file, read by one task.

    Attributes:
        index: number of the chunk in the preparation.
        file: that the chunk belongs to.
        start: first byte; lines that begin in [start, end) belong to the chunk.
        end: byte after the last; None to read to the end of the file.
        record_limit: maximum number of records; None without a limit.
    """

    index: int
    file: InputFile
    start: int
    end: int | None
    record_limit: int | None


class DamagedFileError(Exception):
    """A compressed or parquet file that cannot be read to its end."""


def find_input_files(directories: Sequence[Path], excluded: Path) -> tuple[list[InputFile], dict]:
    """Lists all input files below the directories, in the order of their names.

    Args:
        directories: searched with their subdirectories (`utils.directory_listing.list_files`); the
            order in which they are given does not matter.
        excluded: the output directory, whose files are not read even if it is inside one of the
            directories.

    Returns:
        The files, and a record of the files that are not read (`directory_listing.unread_record`).

    Raises:
        UserError: a directory holds no input file, or a file cannot be reached or is reached twice.
    """
    problems: list[str] = []
    reached: dict[str, tuple[FoundFile, Path]] = {}
    listings = [(directory, list_files(directory, FORMATS, excluded)) for directory in sorted(directories)]
    for directory, listing in listings:
        problems += [f"--data_input_dirs: {problem}" for problem in listing.problems]
        if not listing.files and not listing.problems:
            endings = f"that ends in {', '.join(FORMATS)}"
            missing = "but those in the output directory" if listing.has_excluded else endings
            problems.append(f"--data_input_dirs: {directory} holds no file {missing}{_instead(directory, listing)}")
        for file in listing.files:
            if file.real_path in reached:
                problems.append(f"--data_input_dirs: {file.path} is reached twice, its documents would be doubled")
            reached[file.real_path] = (file, directory)
    if problems:
        raise UserError(truncate_problems(problems))
    names = _names_of([(file.path, directory) for file, directory in reached.values()])
    files = [
        InputFile(file.path, displayed(name), file.size_bytes, file.modified_ns)
        for (file, _), name in zip(reached.values(), names, strict=True)
    ]
    return sorted(files, key=lambda file: file.name), unread_record(listings)


def _instead(directory: Path, listing: Listing) -> str:
    message = unread_message(unread_record([(directory, listing)]))
    return f" ({message.splitlines()[0]})" if message else ""


def _names_of(files: Sequence[tuple[Path, Path]]) -> list[str]:
    """Names each (file, input directory): the directory's name and the path below it.

    Equal names get more of the directory's path:

    /corpus/zh/data/a.jsonl, /corpus/en/data/a.jsonl  →  zh/data/a.jsonl, en/data/a.jsonl
    """
    parents = {directory: directory.resolve().parts[1:] for _, directory in files}
    below = [path.parts[len(directory.parts) :] for path, directory in files]
    whole = [(*parents[directory], *parts) for (_, directory), parts in zip(files, below, strict=True)]
    depths = [len(parts) + 1 for parts in below]
    while True:
        names = ["/".join(parts[-depth:]) for parts, depth in zip(whole, depths, strict=True)]
        counts = Counter(names)
        if max(counts.values(), default=1) == 1:
            return names
        depths = [depth + (counts[name] > 1) for depth, name in zip(depths, names, strict=True)]


def plan_chunks(files: Sequence[InputFile], limit: int | None) -> list[Chunk]:
    """Divides the files into chunks.

    Args:
        files: in order.
        limit: maximum number of records, read as evenly as possible from all files; None for all.
    """
    if limit is not None:
        shares = [limit // len(files) + (index < limit % len(files)) for index in range(len(files))]
        return [
            Chunk(index, file, 0, None, share) for index, (file, share) in enumerate(zip(files, shares, strict=True))
        ]
    chunk_bytes = max(CHUNK_BYTES, sum(file.size_bytes for file in files) // MAX_CHUNKS)
    chunks: list[Chunk] = []
    for file in files:
        if file.path.suffix != ".jsonl":
            chunks.append(Chunk(len(chunks), file, 0, None, None))
            continue
        for start in range(0, max(file.size_bytes, 1), chunk_bytes):
            chunks.append(Chunk(len(chunks), file, start, min(start + chunk_bytes, file.size_bytes), None))
    return chunks


def read_rows(chunk: Chunk, digest: Any, max_line_bytes: int) -> Iterator[tuple[int, bytes | LongLine | dict]]:
    """Reads the rows of a chunk.

    Args:
        chunk: to read.
        digest: a hashlib object, updated with everything that is read.
        max_line_bytes: longest line that is read.

    Yields:
        Number of the row in the chunk, from 0, and a line without its end, or a Parquet row.

    Raises:
        DamagedFileError: the file cannot be read to its end; the rows before the damage have been
            yielded.
        UserError: the system cannot read the file, or it has vanished.
    """
    path = chunk.file.path
    try:
        yield from (
            _parquet_rows(path, digest, max_line_bytes)
            if path.suffix == ".parquet"
            else _lines(chunk, digest, max_line_bytes)
        )
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DamagedFileError(str(error)) from error
    except OSError as error:
        if error.errno is None:  # pyarrow's, of damaged content
            raise DamagedFileError(str(error)) from error
        vanished = "it was there when the run began; put it back, or start afresh with --overwrite"
        remedy = vanished if error.errno == errno.ENOENT else "run the same command again when it can be read"
        raise UserError(f"{path} cannot be read: {error.strerror}: {remedy}") from error


def _lines(chunk: Chunk, digest: Any, max_line_bytes: int) -> Iterator[tuple[int, bytes | LongLine]]:
    with _open_lines(chunk.file.path) as file:
        position, number = _skip_to_first_line(file, chunk), 0
        while chunk.end is None or position < chunk.end:
            line = read_line(file, max_line_bytes, digest.update)
            if not line:
                return
            position += len(line)
            if isinstance(line, bytes):
                line = line.removeprefix(BYTE_ORDER_MARK) if number == 0 and chunk.start == 0 else line
                line = line.rstrip(b"\r\n")
            yield number, line
            number += 1


def refuse_files_that_changed(files: Sequence[InputFile]) -> None:
    """Compares files with their listing, once they have been read.

    Raises:
        UserError: one has another size or modification time now, or is gone.
    """
    changes = [(file.path, change) for file in files if (change := _change_of(file))]
    if changes:
        remedy = "run the same command again when nothing writes to the input any more"
        raise UserError([*truncate_problems([f"{path} {change}" for path, change in changes]), remedy])


def _change_of(file: InputFile) -> str | None:
    try:
        status = file.path.stat()
    except OSError as error:
        return f"can no longer be read: {error.strerror}"
    if status.st_size != file.size_bytes:
        return f"has changed from {file.size_bytes:,} to {status.st_size:,} bytes while it was read"
    return None if status.st_mtime_ns == file.modified_ns else "was written or replaced while it was read"


def content_digest(chunk: Chunk, rows: int) -> str:
    """SHA-256 of what `read_rows` reads for a chunk's first rows, to detect changed content."""
    digest = hashlib.sha256()
    if chunk.record_limit == 0:
        return digest.hexdigest()  # nothing was read
    try:
        for number, _ in read_rows(chunk, digest, READ_BYTES):  # long lines, too, in blocks
            if number + 1 == rows or chunk.file.path.suffix == ".parquet":
                break
    except DamagedFileError:
        pass  # the readable content is compared
    return digest.hexdigest()


def rows_before(chunk: Chunk) -> int:
    """Number of lines that begin before the chunk in its file, counted by reading them."""
    if not chunk.start:
        return 0
    # A line feed just before the chunk begins the chunk's own first line.
    count, left = 1, chunk.start - 1
    with chunk.file.path.open("rb") as file:
        while left:
            block = file.read(min(left, READ_BYTES))
            count += block.count(b"\n")
            left -= len(block)
    return count


def _open_lines(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    file = path.open("rb", buffering=READ_BYTES)
    if path.suffix == ".zst":
        import pyarrow

        # Reads all frames in blocks, and raises when the last one is truncated.
        stream = pyarrow.CompressedInputStream(file, "zstd")
        return cast(BinaryIO, io.BufferedReader(stream, READ_BYTES))
    return file


def _skip_to_first_line(file: BinaryIO, chunk: Chunk) -> int:
    """Skips the end of the line before the chunk; returns the position, at most about its end."""
    if not chunk.start or chunk.end is None:
        return 0
    position = chunk.start - 1
    file.seek(position)
    while position < chunk.end:
        block = file.readline(READ_BYTES)
        position += len(block)
        if not block or block.endswith(b"\n"):
            break
    return position


def _parquet_rows(path: Path, digest: Any, max_row_bytes: int) -> Iterator[tuple[int, LongLine | dict]]:
    import pyarrow
    from pyarrow import parquet

    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
        number = 0
        try:
            for batch in parquet.ParquetFile(file).iter_batches(batch_size=PARQUET_ROWS):
                for row in _bounded_rows(batch, max_row_bytes):
                    yield number, row
                    number += 1
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise DamagedFileError(str(error)) from error


def _bounded_rows(batch: Any, max_bytes: int) -> Iterator[LongLine | dict]:
    """Rows of a record batch, one at a time where one of them may be too long."""
    if batch.nbytes <= max_bytes:
        yield from batch.to_pylist()
        return
    for index in range(batch.num_rows):
        row = batch.slice(index, 1)
        yield LongLine(b"", row.nbytes, max_bytes) if row.nbytes > max_bytes else row.to_pylist()[0]
