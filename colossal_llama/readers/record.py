"""A row as a record: a JSON object, or an error that says why it is none."""

from dataclasses import dataclass
from typing import Any

import orjson

from colossal_llama.readers.line_reader import LongLine


class RecordError(Exception):
    """A record that cannot be used.

    Attributes:
        reason: one word, for counting.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class BadRow:
    """A row that is no record whatever its fields are: of other columns, or in another encoding.

    Attributes:
        reason: one word, for counting.
        message: what is wrong.
        beginning: the first bytes.
    """

    reason: str
    message: str
    beginning: bytes


Row = bytes | dict | LongLine | BadRow
"""A JSON value as text, a parsed row of a table or text, or one that cannot be used."""


def parse_row(row: Row) -> dict:
    """Parses a line as a JSON object; a row of a table is one already.

    Raises:
        RecordError: the line is too long, not UTF-8, not JSON, or not an object.
    """
    if isinstance(row, dict):
        return row
    if isinstance(row, LongLine):
        raise RecordError("line_too_long", f"{row} --max_line_mb sets the bound")
    if isinstance(row, BadRow):
        raise RecordError(row.reason, row.message)
    try:
        record = orjson.loads(row)
    except orjson.JSONDecodeError as error:
        if message := encoding_problem(row):
            raise RecordError("wrong_encoding", message) from None
        is_spread = row.strip() in (b"[", b"{")
        hint = ": one array or object over several lines is read from files that end in .json" if is_spread else ""
        raise RecordError("broken_json", f"not valid JSON: {error}{hint}") from None
    if not isinstance(record, dict):
        is_array = isinstance(record, list) and record and isinstance(record[0], dict)
        hint = ": an array of records is read from files that end in .json" if is_array else ""
        raise RecordError("not_an_object", f"a JSON object is needed, not {kind_of(record)}{hint}")
    return record


def encoding_problem(content: bytes) -> str | None:
    """Explains where bytes are not UTF-8; None if they are."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as wrong:
        place = f"byte 0x{content[wrong.start]:02x} at position {wrong.start} is not UTF-8"
        hint = " (it seems to be GB18030: iconv -f GB18030 -t UTF-8)" if _is_chinese(content) else ""
        return f"{place}: save the file as UTF-8{hint}"
    return None


def _is_chinese(content: bytes) -> bool:
    """True where most of what is not ASCII is common Chinese in the encoding of the mainland."""
    try:
        signs = [sign.encode("gb18030") for sign in content.decode("gb18030") if sign > "\x7f"]
    except UnicodeDecodeError:
        return False
    return 2 * sum(0xB0 <= sign[0] <= 0xD7 for sign in signs) > len(signs)


def string_of(record: dict, name: str, where: str = "") -> str:
    """Returns a field of a record that has to be a string.

    Args:
        record: the record, or a message of it.
        name: of the field.
        where: `message 2`; empty for the record.

    Raises:
        RecordError: it is missing, null or no string.
    """
    field = f'"{name}" of {where}' if where else f'"{name}"'
    if name not in record:
        raise RecordError("missing_field", f"{field} is missing")
    value = record[name]
    if value is None:
        raise RecordError("null_field", f"{field} is null, a string is needed")
    if not isinstance(value, str):
        raise RecordError("wrong_type", f"{field} is {kind_of(value)}, a string is needed")
    return value


def kind_of(value: Any) -> str:
    """Names the kind of a JSON value for messages."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list"}
    names |= {bytes: "binary data"}
    return "null" if value is None else names.get(type(value), "an object")
