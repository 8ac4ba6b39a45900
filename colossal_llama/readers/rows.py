"""Rows of input files of every format: lines that are not parsed yet, or parsed rows of tables."""

import errno
import gzip
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from colossal_llama.readers.compression import READ_BYTES, open_stream
from colossal_llama.readers.damage import DamagedFileError
from colossal_llama.readers.line_reader import LongLine, read_line
from colossal_llama.readers.listing import InputFile
from colossal_llama.readers.parquet_rows import parquet_rows
from colossal_llama.utils.errors import UserError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # may begin a UTF-8 file
Row = bytes | LongLine | dict


@dataclass(frozen=True)
class FileRange:
    """A range of an input file.

    Attributes:
        file: the file.
        start: first byte; lines that begin in [start, end) belong to the range.
        end: byte after the last; None to read to the end of the file.
    """

    file: InputFile
    start: int = 0
    end: int | None = None


def read_rows(
    file_range: FileRange, max_row_bytes: int, on_bytes: Callable[[bytes], object] = lambda block: None
) -> Iterator[tuple[int, Row]]:
    """Reads the rows of a range of a file.

    Args:
        file_range: to read.
        max_row_bytes: longest line, or largest row of a table, that is read.
        on_bytes: called with everything that is read.

    Yields:
        Number of the row in the range, from 0, and a line without its end, or a row of a table.

    Raises:
        DamagedFileError: the file cannot be read to its end; the rows before the damage have been
            yielded.
        UserError: the system cannot read the file, or it has vanished.
    """
    path = file_range.file.path
    try:
        if file_range.file.format.kind == ".parquet":
            with path.open("rb") as file:
                while block := file.read(READ_BYTES):
                    on_bytes(block)
                yield from enumerate(parquet_rows(file, max_row_bytes))
        else:
            yield from _lines(file_range, max_row_bytes, on_bytes)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DamagedFileError(str(error)) from error
    except OSError as error:
        if error.errno is None:  # pyarrow's, of damaged content
            raise DamagedFileError(str(error)) from error
        vanished = "it was there when the run began; put it back, or start afresh with --overwrite"
        remedy = vanished if error.errno == errno.ENOENT else "run the same command again when it can be read"
        raise UserError(f"{path} cannot be read: {error.strerror}: {remedy}") from error


def _lines(
    file_range: FileRange, max_line_bytes: int, on_bytes: Callable[[bytes], object]
) -> Iterator[tuple[int, bytes | LongLine]]:
    start, end = file_range.start, file_range.end
    with open_stream(file_range.file.path, file_range.file.format) as file:
        position, number = _skip_to_first_line(file, file_range), 0
        while end is None or position < end:
            line = read_line(file, max_line_bytes, on_bytes)
            if not line:
                return
            position += len(line)
            if isinstance(line, bytes):
                line = line.removeprefix(BYTE_ORDER_MARK) if number == 0 and start == 0 else line
                line = line.rstrip(b"\r\n")
            yield number, line
            number += 1


def _skip_to_first_line(file: BinaryIO, file_range: FileRange) -> int:
    """Skips the end of the line before the range; returns the position, at most about its end."""
    if not file_range.start or file_range.end is None:
        return 0
    position = file_range.start - 1
    file.seek(position)
    while position < file_range.end:
        block = file.readline(READ_BYTES)
        position += len(block)
        if not block or block.endswith(b"\n"):
            break
    return position


def rows_before(file_range: FileRange) -> int:
    """Number of lines that begin before the range in its file, counted by reading them."""
    if not file_range.start:
        return 0
    # A line feed just before the range begins the range's own first line.
    count, left = 1, file_range.start - 1
    with file_range.file.path.open("rb") as file:
        while left:
            block = file.read(min(left, READ_BYTES))
            count += block.count(b"\n")
            left -= len(block)
    return count
