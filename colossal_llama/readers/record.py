"""A row as a record: a JSON object, or an error that says why it is none."""

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


def parse_row(row: bytes | LongLine | dict) -> dict:
    """Parses a line as a JSON object; a row of a table is one already.

    Raises:
        RecordError: the line is too long, not UTF-8, not JSON, or not an object.
    """
    if isinstance(row, dict):
        return row
    if isinstance(row, LongLine):
        raise RecordError("line_too_long", f"{row} --max_line_mb sets the bound")
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
        raise RecordError("not_an_object", f"a JSON object is needed, not {kind_of(record)}")
    return record


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
    return "null" if value is None else names.get(type(value), "an object")
