"""Rows of CSV files: the header names the fields, all of which are strings."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
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
        DamagedFileError: the first line or a cell is too long, or the last cell has no end.
        UnusableFileError: the header cannot be used.
    """
    csv.field_size_limit(max_row_bytes)
    lines = _Lines(stream, max_row_bytes, on_bytes)
    try:
        first, line_number = next(lines, None), 0
        if first is None:
            return
        if first.lower().startswith("sep=") and len(first.rstrip("\r\n")) == 5:  # Excel's
            separator, first, line_number = first[4], next(lines, ""), 1
    except _LongLineError as error:
        raise _damaged(error.line, lines) from None
    parse = partial(csv.reader, delimiter=separator or _separator_of(first), strict=True)
    reader = parse(chain([first], lines))
    header: list[str] | None = None
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            row: Row = _broken(error, line_number, header is None)
        except _LongLineError as error:
            if header is None:
                raise _damaged(error.line, lines) from None
            yield line_number, error.line
            line_number = lines.number
            row = _rest_of_row(lines, line_number)
            reader = parse(lines)
            if row == b"":
                continue
        else:
            if cells is None:
                return
            if header is None and cells:
                header = _checked_header(cells)
                line_number = lines.start_row()
                continue
            row = _row(header or [], cells)
        yield line_number, row
        line_number = lines.start_row()


class _LongLineError(Exception):
    def __init__(self, line: LongLine):
        super().__init__(str(line))
        self.line = line


class _Lines:
    """Lines of a file for the parser, which reads none ahead.

    Attributes:
        number: of lines that have been read.
        quotes: in those of the row that is being read.
    """

    def __init__(self, stream: io.BufferedReader, max_bytes: int, on_bytes: Callable[[bytes], object]):
        self._stream, self._max_bytes, self._on_bytes = stream, max_bytes, on_bytes
        self.number = self.quotes = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = read_line(self._stream, self._max_bytes, self._observe)
        if not line:
            raise StopIteration
        self.number += 1
        if isinstance(line, LongLine):
            raise _LongLineError(line)
        if self.number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        return line.decode("utf-8", "surrogateescape")

    def _observe(self, block: bytes) -> None:
        self._on_bytes(block)
        self.quotes += block.count(b'"')

    def start_row(self) -> int:
        """Begins a row; returns the number of the line in which it begins."""
        self.quotes = 0
        return self.number


def _damaged(line: LongLine, lines: _Lines) -> DamagedFileError:
    return DamagedFileError(f"line {lines.number}: {line} --max_line_mb sets the bound")


def _rest_of_row(lines: _Lines, line_number: int) -> Row:
    """Reads on behind a line that was too long, to the end of the quoted cell that is open there.

    Returns:
        A bad row for the lines that belong to the cell; an empty line if there are none.

    Raises:
        DamagedFileError: the cell has no end.
    """
    while lines.quotes % 2:
        try:
            next(lines)
        except _LongLineError:
            continue
        except StopIteration:
            raise DamagedFileError(f"the quoted cell that is open after line {line_number} has no end") from None
    count = lines.number - line_number
    message = f"{count:,} lines that end a quoted cell of the row before, of which a line is too long"
    return BadRow("line_too_long", message, b"") if count else b""


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
