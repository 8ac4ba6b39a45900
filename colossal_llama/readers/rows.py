"""Rows of input files of every format: JSON values that are not parsed yet, or parsed rows."""

import errno
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import cast

from colossal_llama.readers.compression import READ_BYTES, blocks_of, uncompressed, with_seek
from colossal_llama.readers.csv_rows import csv_rows
from colossal_llama.readers.damage import DamagedFileError, DamagedPartError, UnusableFileError
from colossal_llama.readers.file_range import BEGINNING, FileRange, ReadingProgress, TextState
from colossal_llama.readers.formats import TABLE_KINDS, TEXT_KINDS, Format, format_of, is_read_by_people
from colossal_llama.readers.json_ranges import RangeScan, range_values, scan_range
from colossal_llama.readers.json_rows import json_rows, open_json
from colossal_llama.readers.line_reader import BYTES_PER_MB, MAX_LINE_MB, LongLine, read_line
from colossal_llama.readers.listing import InputFile
from colossal_llama.readers.record import BadRow, Row
from colossal_llama.readers.remote import AnyPath
from colossal_llama.readers.table_rows import arrow_rows, parquet_rows, rows_before_group
from colossal_llama.readers.tar_rows import MemberRow, tar_members, with_samples
from colossal_llama.readers.text_rows import BYTE_ORDER_MARK, text_blocks, text_rows
from colossal_llama.utils.errors import UserError

_HELD_DESCRIPTIONS = 20  # of an archive of which nothing else is known yet
Observer = Callable[[bytes], object]
Rows = Iterator[tuple[int, Row]]


def read_rows(
    file_range: FileRange,
    max_row_bytes: int,
    on_bytes: Observer = lambda block: None,
    progress: ReadingProgress | None = None,
    on_unread: Callable[[str], object] = lambda name: None,
) -> Rows:
    """Reads the rows of a range of a file.

    Args:
        file_range: to read.
        max_row_bytes: longest line or text, or largest row of a table, that is read.
        on_bytes: called with everything that is read.
        progress: told how much is read.
        on_unread: called with the name of each member of an archive that is not read.

    Yields:
        Number of the row in the range, and the row. Numbers count lines from 0 where the file has
        lines, else rows.

    Raises:
        DamagedFileError: the file cannot be read to its end; the rows before the damage have been
            yielded.
        UserError: the system cannot read the file, or it has vanished.
    """
    file, progress = file_range.file, progress or ReadingProgress()
    with _errors_named(file.path), _opened(file.path) as opened:
        progress.share = lambda: (opened.tell() - file_range.start) / max(1, file_range.size_bytes)
        stream = opened if file_range.start else uncompressed(opened, file.format)
        if file.format.kind == ".tar":
            members = with_samples(_rows_of_archive(stream, max_row_bytes, on_bytes, on_unread))
            yield from ((count, member.row) for count, member in enumerate(members))
        elif file.format.kind == ".jsonl":
            yield from _lines(stream, file_range, max_row_bytes, on_bytes)
        elif file_range.is_part:
            _observe(opened, file_range, on_bytes)
            yield from _rows_of_part(opened, file_range, max_row_bytes, progress)
        else:
            plain = file.path if isinstance(file.path, Path) and not file.format.compression else None
            yield from _unit_and_rows(stream, file.format, max_row_bytes, on_bytes, plain, progress)[1]


def observe_part(file_range: FileRange, on_bytes: Observer) -> None:
    """Calls `on_bytes` as `read_rows` does for a range that `is_part`: with its bytes.

    Raises:
        UserError: see `read_rows`.
    """
    with _errors_named(file_range.file.path), _opened(file_range.file.path) as opened:
        _observe(opened, file_range, on_bytes)


def _observe(opened: io.BufferedReader, file_range: FileRange, on_bytes: Observer) -> None:
    opened.seek(file_range.start)
    left = (file_range.end or 0) - file_range.start
    while left and (block := opened.read(min(left, READ_BYTES))):
        on_bytes(block)
        left -= len(block)


def _rows_of_part(
    opened: io.BufferedReader, file_range: FileRange, max_row_bytes: int, progress: ReadingProgress
) -> Rows:
    """Rows of a range of a file that is divided, and not of JSON lines."""
    file, entry = file_range.file, file_range.entry
    opened.seek(0)
    if file_range.groups is not None:
        try:
            with _damage_named():
                if file.format.kind == ".parquet":
                    yield from enumerate(parquet_rows(opened, max_row_bytes, progress, file_range.groups))
                else:
                    yield from enumerate(arrow_rows(Path(str(file.path)), max_row_bytes, progress, file_range.groups))
        except DamagedFileError as error:
            raise DamagedPartError(*error.args) from error
    elif isinstance(entry, TextState):
        yield from enumerate(range_values(opened, file_range, entry, max_row_bytes))
    elif entry == "lines":
        yield from _lines(opened, file_range, max_row_bytes, lambda block: None)
    elif entry == "whole":
        stream = uncompressed(opened, file.format)
        yield from _unit_and_rows(stream, file.format, max_row_bytes, lambda block: None)[1]


def scanned_range(file_range: FileRange) -> RangeScan | None:
    """Scans a range of a .json file, see `json_ranges`.

    Raises:
        UserError: see `read_rows`.
    """
    with _errors_named(file_range.file.path), _opened(file_range.file.path) as opened:
        return scan_range(opened, file_range)


def read_text_blocks(file: InputFile, block_bytes: int, max_line_bytes: int) -> Rows:
    """Reads a plain text file of any size as rows of whole lines, each of about `block_bytes`.

    Raises:
        DamagedFileError: see `read_rows`.
        UserError: see `read_rows`.
    """
    with _errors_named(file.path), _opened(file.path) as opened:
        yield from enumerate(text_blocks(uncompressed(opened, file.format), block_bytes, max_line_bytes))


def _unit_and_rows(
    stream: io.BufferedReader,
    format: Format,
    max_row_bytes: int,
    on_bytes: Observer,
    plain: Path | None = None,
    progress: ReadingProgress | None = None,
) -> tuple[str, Rows]:
    """Returns what the numbers of a file's rows count ("line", "row", "record"), and the rows.

    Args:
        stream: the uncompressed file, at its beginning.
        format: of the file.
        max_row_bytes: as in `read_rows`.
        on_bytes: as in `read_rows`.
        plain: path of the file, if the stream is its bytes.
        progress: told of the rows of a table, which is not read from its beginning to its end.
    """
    kind = format.kind
    if kind in TEXT_KINDS:
        return "", enumerate(text_rows(stream, max_row_bytes, on_bytes))
    if kind in (".csv", ".tsv"):
        return "line", csv_rows(stream, max_row_bytes, on_bytes, "\t" if kind == ".tsv" else None)
    if kind in TABLE_KINDS:
        return "row", enumerate(_table_rows(stream, kind, max_row_bytes, on_bytes, plain, progress))
    has_lines = kind == ".jsonl"
    if kind == ".json":
        has_lines, stream = open_json(stream)
    if has_lines:
        return "line", _lines(stream, None, max_row_bytes, on_bytes)
    return "record", enumerate(json_rows(stream, max_row_bytes, on_bytes))


def _table_rows(
    stream: io.BufferedReader,
    kind: str,
    max_row_bytes: int,
    on_bytes: Observer,
    plain: Path | None,
    progress: ReadingProgress | None,
) -> Iterator[Row]:
    """Rows of a file that is read from any place, and of whose bytes all are observed before."""
    if plain is None:
        with with_seek(stream, on_bytes) as copy:
            yield from (parquet_rows if kind == ".parquet" else arrow_rows)(copy, max_row_bytes, progress)
        return
    for _ in blocks_of(stream, on_bytes):
        pass
    if kind == ".parquet":
        yield from parquet_rows(stream, max_row_bytes, progress)
    else:
        yield from arrow_rows(plain, max_row_bytes, progress)


def _rows_of_archive(
    archive: io.BufferedReader,
    max_row_bytes: int,
    on_bytes: Observer = lambda block: None,
    on_unread: Callable[[str], object] = lambda name: None,
) -> Iterator[MemberRow]:
    """Rows of the files in an archive; what is wrong with one of them is a bad row.

    A README before the first other file is held back until that tells: next to records it is not
    read, next to texts it is one of them.
    """
    held: list[tuple[str, list[MemberRow]]] = []
    has_records: bool | None = None
    with _damage_named():
        for name, member in tar_members(archive, on_bytes):
            format = format_of(name)
            is_description = is_read_by_people(PurePosixPath(name).name)
            if (format is None and member is not None) or (is_description and has_records):
                on_unread(name)
                continue
            if is_description and has_records is None and len(held) < _HELD_DESCRIPTIONS:
                held.append((name, list(_rows_of_member(name, member, max_row_bytes))))
                continue
            if has_records is None and member is not None and format is not None:
                has_records = not is_description and format.kind not in TEXT_KINDS
                for earlier, rows in held:
                    if has_records:
                        on_unread(earlier)
                    else:
                        yield from rows
            yield from _rows_of_member(name, member, max_row_bytes)
        for _, rows in held if has_records is None else ():
            yield from rows


def _rows_of_member(name: str, member: io.BufferedReader | None, max_row_bytes: int) -> Iterator[MemberRow]:
    try:
        yield from _rows_to_damage(name, member, max_row_bytes)
    except DamagedFileError as error:
        yield MemberRow(name, "", 0, BadRow(error.reason, f"{name} in the archive: {error}", b""))


def _rows_to_damage(name: str, member: io.BufferedReader | None, max_row_bytes: int) -> Iterator[MemberRow]:
    format = format_of(name)
    if member is None or format is None or format.kind == ".tar":
        what = "a link" if member is None else "an archive itself"
        message = f"{name} in the archive is {what}, which is not read: unpack the archive and give its directory"
        yield MemberRow(name, "", 0, BadRow("unread_member", message, b""))
        return
    with _damage_named():
        unit, rows = _unit_and_rows(uncompressed(member, format), format, max_row_bytes, lambda block: None)
        for number, row in rows:
            yield MemberRow(name, unit, number, row)


def _opened(path: AnyPath) -> io.BufferedReader:
    return cast(io.BufferedReader, path.open("rb", buffering=READ_BYTES))


@contextmanager
def _damage_named() -> Iterator[None]:
    """Turns the errors of damaged content into `DamagedFileError`."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, tarfile.TarError) as error:
        raise DamagedFileError(str(error)) from error
    except OSError as error:
        if error.errno is not None:
            raise
        if "too much memory for decoding" in str(error):
            remedy = "decompress it with zstd -d --long=31, and compress it again without --long"
            raise UnusableFileError(f"its zstd window is larger than 128 MB: {remedy}") from error
        raise DamagedFileError(str(error)) from error  # of gzip, bz2 and pyarrow


@contextmanager
def _errors_named(path: AnyPath) -> Iterator[None]:
    """Turns errors of a file into `DamagedFileError`, and those of the system into `UserError`."""
    try:
        with _damage_named():
            yield
    except OSError as error:
        vanished = "it was there when the run began; put it back, or start afresh with --overwrite"
        remedy = vanished if error.errno == errno.ENOENT else "run the same command again when it can be read"
        raise UserError(f"{path} cannot be read: {error.strerror}: {remedy}") from error


def _lines(
    stream: io.BufferedReader, file_range: FileRange | None, max_line_bytes: int, on_bytes: Observer
) -> Iterator[tuple[int, bytes | LongLine]]:
    start, end = (0, None) if file_range is None else (file_range.start, file_range.end)
    position, number = _skip_to_first_line(stream, start, end), 0
    while end is None or position < end:
        line = read_line(stream, max_line_bytes, on_bytes)
        if not line:
            return
        position += len(line)
        if isinstance(line, bytes):
            line = line.removeprefix(BYTE_ORDER_MARK) if number == 0 and start == 0 else line
            line = line.rstrip(b"\r\n")
        yield number, line
        number += 1


def _skip_to_first_line(stream: io.BufferedReader, start: int, end: int | None) -> int:
    """Skips the end of the line before the range; returns the position, at most about its end."""
    if not start or end is None:
        return 0
    position = start - 1
    stream.seek(position)
    while position < end:
        block = stream.readline(READ_BYTES)
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


def row_places(file_range: FileRange, numbers: Sequence[int]) -> list[str]:
    """Names the places of rows for messages: `path:line`, `path, record 7`, `path:member:line`.

    Args:
        file_range: that has been read.
        numbers: of rows, as `read_rows` gives them.
    """
    file = file_range.file
    if file.format.kind == ".jsonl":
        before = rows_before(file_range)
        return [_place(str(file.path), "line", before + number) for number in numbers]
    if file.format.kind == ".tar":
        return _places_in_archive(file, numbers)
    unit = ""
    with suppress(DamagedFileError), _errors_named(file.path), _opened(file.path) as opened:
        if file_range.is_part and file_range.entry != "whole":
            unit, before = _before_part(opened, file_range)
            return [_place(str(file.path), unit, before + number) for number in numbers]
        unit, _ = _unit_and_rows(uncompressed(opened, file.format), file.format, 0, lambda block: None)
    return [_place(str(file.path), unit, number) for number in numbers]


def _before_part(opened: io.BufferedReader, file_range: FileRange) -> tuple[str, int]:
    """The unit of the rows of a divided file, and the number of those before a range."""
    if file_range.entry == "lines":
        return "line", rows_before(file_range)
    if file_range.groups is not None:
        return "row", rows_before_group(file_range.file, file_range.groups[0])
    earlier = replace(file_range, start=0, end=file_range.start)
    values = range_values(opened, earlier, BEGINNING, MAX_LINE_MB * BYTES_PER_MB)
    return "record", sum(1 for _ in values) if file_range.start else 0


def _places_in_archive(file: InputFile, numbers: Sequence[int]) -> list[str]:
    places = {number: f"{file.path}, record {number + 1}" for number in numbers}
    with suppress(DamagedFileError), _errors_named(file.path), _opened(file.path) as opened:
        stream = uncompressed(opened, file.format)
        members = with_samples(_rows_of_archive(stream, MAX_LINE_MB * BYTES_PER_MB))
        for count, member in zip(range(max(numbers) + 1), members, strict=False):
            if count in places:
                places[count] = _place(f"{file.path}:{member.name}", member.unit, member.number)
    return [places[number] for number in numbers]


def _place(path: str, unit: str, number: int) -> str:
    return f"{path}:{number + 1}" if unit == "line" else f"{path}, {unit} {number + 1}" if unit else path
