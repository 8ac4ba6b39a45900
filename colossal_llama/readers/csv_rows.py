"""Rows of CSV files: the header names the fields, all of which are strings."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from colossal_llama.readers.damage import DamagedFileError, UnusableFileError
from colossal_llama.readers.line_reader import LongLine, read_line
from colossal_llama.readers.record import BadRow, Row
from colossal_llama.readers.text_rows import BYTE_ORDER_MARK, KEPT_BYTES, checked_text

_SEPARATORS = ",;\t|"


def csv_rows(
    stream: io.BufferedReader, max_row_bytes: int, on_bytes: Callable[[bytes], object], separator: str | None = None
) -> Iterator[tuple[int, Row]]:
    """Reads the rows of a CSV file.

    Args:
        stream: at its beginning.
        max_row_bytes: longest line and longest cell.
        on_bytes: called with everything that is read.
        separator: of cells; None: the one of `,` `;` tab `|` that the header has most of.

    Yields:
        Number of the line in which the row begins, from 0, and the row.

    Raises:
        DamagedFileError: a line or a cell is too long, or the last cell has no end.
        UnusableFileError: the header cannot be used.
    """
    csv.field_size_limit(max_row_bytes)
    lines = _lines(stream, max_row_bytes, on_bytes)
    first = next(lines, None)
    if first is None:
        return
    begin = 0
    if first.lower().startswith("sep=") and len(first.rstrip("\r\n")) == 5:  # Excel's
        separator, first, begin = first[4], next(lines, ""), 1
    reader = csv.reader(_chained(first, lines), delimiter=separator or _separator_of(first), strict=True)
    header: list[str] | None = None
    while True:
        line_number = begin + reader.line_num
        try:
            cells = next(reader, None)
        except csv.Error as error:
            row: Row = _broken(error, line_number, header is None)
        else:
            if cells is None:
                return
            if header is None and cells:
                header = _checked_header(cells)
                continue
            row = _row(header or [], cells)
        yield line_number, row


def _lines(stream: io.BufferedReader, max_bytes: int, on_bytes: Callable[[bytes], object]) -> Iterator[str]:
    number = 0
    while line := read_line(stream, max_bytes, on_bytes):
        if isinstance(line, LongLine):
            raise DamagedFileError(f"line {number + 1}: {line} --max_line_mb sets the bound")
        if not number:
            line = line.removeprefix(BYTE_ORDER_MARK)
        number += 1
        yield line.decode("utf-8", "surrogateescape")


def _chained(first: str, lines: Iterator[str]) -> Iterator[str]:
    yield first
    yield from lines


def _separator_of(header: str) -> str:
    """The separator that a header has most of, outside of quotes; a comma if it has none."""
    outside = "".join(header.split('"')[::2])
    return max(_SEPARATORS, key=lambda sign: (outside.count(sign), -_SEPARATORS.index(sign)))


def _checked_header(cells: list[str]) -> list[str]:
    if problem := _text_problem(cells):
        raise UnusableFileError(f"its header: {problem.message}")
    if doubled := [name for name, count in Counter(cells).items() if count > 1]:
        raise UnusableFileError(f"its header names {doubled[0]!r} twice: rename or remove one of the columns")
    return cells


def _row(header: list[str], cells: list[str]) -> Row:
    if not cells:
        return b""
    if problem := _text_problem(cells):
        return problem
    if len(cells) != len(header):
        what = f"the row has {len(cells)} cells, and the header {len(header)}: is a quote or a separator missing?"
        return BadRow("wrong_number_of_cells", what, _shown(cells))
    return dict(zip(header, cells, strict=True))


def _text_problem(cells: list[str]) -> BadRow | None:
    joined = ",".join(cells)
    if joined.isascii() and "\0" not in joined:
        return None
    return checked_text(joined.encode("utf-8", "surrogateescape"))


def _broken(error: Any, line_number: int, is_header: bool) -> BadRow:
    """The bad row that an error of the parser stands for.

    Raises:
        DamagedFileError: nothing can be read after it.
    """
    message = str(error)
    if "unexpected end of data" in message:
        raise DamagedFileError(f"the quoted cell in the row that begins in line {line_number + 1} has no end")
    if "field limit" in message:
        raise DamagedFileError(
            f"a cell of the row that begins in line {line_number + 1} is longer than --max_line_mb: is its closing "
            "quote missing?"
        )
    if "new-line character" in message:
        raise UnusableFileError(
            f"line {line_number + 1} has a carriage return without a line feed: convert the line ends (tr '\\r' '\\n')"
        )
    if is_header:
        raise UnusableFileError(f"its header is not valid CSV: {message}")
    return BadRow("broken_csv", f"not valid CSV: {message}; a quote inside a quoted cell is written twice", b"")


def _shown(cells: list[str]) -> bytes:
    return ",".join(cells).encode("utf-8", "surrogateescape")[:KEPT_BYTES]
