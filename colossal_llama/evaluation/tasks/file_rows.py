"""Rows of benchmark files; a row that cannot be read keeps its number, with what is wrong."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from colossal_llama.readers.record import RecordError, encoding_problem, parse_row
from colossal_llama.utils.errors import UserError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class CsvRow:
    """A row of a csv file.

    Attributes:
        line: in which it begins, from 1.
        cells: of the row; bytes that are not UTF-8 are U+FFFD.
        problem: why it cannot be read, or what its encoding lost; None if all is well.
    """

    line: int
    cells: list[str]
    problem: str | None


def read_csv(path: Path) -> list[CsvRow]:
    """Reads all rows of a csv file but empty lines, the header included.

    Raises:
        UserError: the file is empty, or not in UTF-8.
    """
    content = read_bytes(path)
    _refuse_other_encoding(path, content)
    reader = csv.reader(io.StringIO(content.decode("utf-8", "surrogateescape"), newline=""), strict=True)
    rows: list[CsvRow] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            rows.append(CsvRow(line, [], f"not valid csv: {error}"))
            continue
        if cells is None:
            break
        if any(cells):
            rows.append(_checked(line, cells))
    if not rows:
        raise UserError(f"{path} is empty: copy it again")
    return rows


def read_json_lines(path: Path) -> list[tuple[int, dict | str]]:
    """Reads the lines of a .jsonl file but empty ones: number from 1, and object or what is wrong.

    Raises:
        UserError: the file is empty, or no line holds a JSON object.
    """
    content = read_bytes(path)
    rows: list[tuple[int, dict | str]] = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append((number, parse_row(line)))
        except RecordError as error:
            rows.append((number, str(error)))
    if not rows:
        raise UserError(f"{path} is empty: copy it again")
    if all(isinstance(row, str) for _, row in rows):
        raise UserError(f"{path} holds no JSON object a line: line {rows[0][0]}: {rows[0][1]}")
    return rows


def read_bytes(path: Path) -> bytes:
    """Reads a file without its byte order mark.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return path.read_bytes().removeprefix(_BYTE_ORDER_MARK)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _refuse_other_encoding(path: Path, content: bytes) -> None:
    """Refuses a file of which most lines that are not ASCII are not UTF-8."""
    problem = encoding_problem(content)
    if problem is None:
        return
    lines = [line for line in content.split(b"\n") if not line.isascii()]
    if 2 * sum(encoding_problem(line) is not None for line in lines) > len(lines) and len(lines) > 1:
        raise UserError(f"{path} is not in UTF-8: {problem}")


def _checked(line: int, cells: list[str]) -> CsvRow:
    joined = "".join(cells).encode("utf-8", "surrogateescape")
    if encoding_problem(joined) is None:
        return CsvRow(line, cells, None)
    decoded = [cell.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for cell in cells]
    return CsvRow(line, decoded, "a byte is not UTF-8")
