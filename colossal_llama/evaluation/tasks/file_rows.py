"""Rows of benchmark files; a row that cannot be read keeps its number, with what is wrong."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from colossal_llama.readers.record import RecordError, encoding_problem, parse_row
from colossal_llama.utils.errors import UserError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


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
    text = content.decode("utf-8", "surrogateescape")
    problems = _csv_problems(path, text)
    reader = csv.reader(io.StringIO(text, newline=""))
    rows: list[CsvRow] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:  # a cell is too long
            rows.append(CsvRow(line, [], f"not valid csv: {error}"))
            continue
        if cells is None:
            break
        if cells:  # a row of commas only is one, too, so that the rows behind it keep their numbers
            problem = next((problems[at] for at in range(line, reader.line_num + 1) if at in problems), None)
            rows.append(_checked(line, cells, problem))
    if not any(any(row.cells) or row.problem for row in rows):
        raise UserError(f"{path} is empty: copy it again")
    return rows


def _csv_problems(path: Path, text: str) -> dict[int, str]:
    """Names what is no strict csv, by line; it is read all the same, as Python's csv reads it.

    Raises:
        UserError: a quoted cell has no end, so that all behind it would be one cell.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    problems: dict[int, str] = {}
    while True:
        line = reader.line_num + 1
        try:
            if next(reader, None) is None:
                return problems
        except csv.Error as error:
            if "unexpected end" in str(error):
                where = f"{path}: the quoted cell in the row that begins in line {line}"
                raise UserError(f"{where} has no end: copy the file again, or close the quote") from None
            problems[reader.line_num] = f"not valid csv: {error}"


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
        problem = str(rows[0][1]).partition(": an array")[0]
        raise UserError(f"{path} holds no JSON object a line: line {rows[0][0]}: {problem}")
    return rows


def read_bytes(path: Path) -> bytes:
    """Reads a file without its byte order mark.

    Raises:
        UserError: it cannot be read, or is in UTF-16.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is {'a directory' if path.is_dir() else 'no regular file'}, a file is needed")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if content.startswith(_UTF_16_MARKS):
        raise UserError(f"{path} is in UTF-16, and only UTF-8 is read: convert it (iconv -f UTF-16 -t UTF-8)")
    return content.removeprefix(_BYTE_ORDER_MARK)


def _refuse_other_encoding(path: Path, content: bytes) -> None:
    """Refuses a file of which most lines that are not ASCII are not UTF-8."""
    problem = encoding_problem(content)
    if problem is None:
        return
    lines = [line for line in content.split(b"\n") if not line.isascii()]
    if 2 * sum(encoding_problem(line) is not None for line in lines) > len(lines) and len(lines) > 1:
        raise UserError(f"{path} is not in UTF-8: {problem}")


def _checked(line: int, cells: list[str], problem: str | None) -> CsvRow:
    joined = "".join(cells).encode("utf-8", "surrogateescape")
    if encoding_problem(joined) is None:
        return CsvRow(line, cells, problem)
    decoded = [cell.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for cell in cells]
    return CsvRow(line, decoded, "a byte is not UTF-8")
