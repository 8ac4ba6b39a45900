"""Parses and checks input records: documents and conversations; names what is wrong with them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from colossal_llama.dataset.conversation import Message, Role
from colossal_llama.utils.line_reader import LongLine

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # may begin a UTF-8 file
DEFAULT_CATEGORY = "default"  # of a conversation without one


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
    """A record that cannot be used.

    Attributes:
        reason: one word, for counting.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def parse_row(row: bytes | LongLine | dict) -> dict:
    """Parses a line as a JSON object; a Parquet row is one already.

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
        raise RecordError("not_an_object", f"a JSON object is needed, not {_kind(record)}")
    return record


def document_of(record: dict) -> Document:
    """Checks a pre-training record.

    Raises:
        RecordError: a field is missing, null, not a string; the target or the category is empty.
    """
    source, target, category = (_string(record, name) for name in ("source", "target", "category"))
    if not target:
        raise RecordError("empty_target", '"target" is empty: there is nothing to learn')
    if not category:
        raise RecordError("empty_category", '"category" is empty: name the sub-dataset')
    return Document(source, target, category)


ROLES: dict[str, Role] = {
    "human": "human",
    "user": "human",
    "assistant": "assistant",
    "gpt": "assistant",
    "system": "system",
}


def conversation_of(record: dict) -> Conversation:
    """Checks a fine-tuning record, in any of the common formats.

        {"messages" or "conversations": [{"from" or "role": …, "content" or "value": …}, …]}
        {"instruction": …, "input": …, "output": …}                            (Alpaca)

    Each may have a "category" and a "system" message, which may be empty.

    Raises:
        RecordError: it has none of these formats, a message is empty or of an unknown role, or
            there is no assistant message.
    """
    system = [Message("system", _string(record, "system"))] if record.get("system") not in (None, "") else []
    category = _string(record, "category") if record.get("category") is not None else DEFAULT_CATEGORY
    if record.get("history"):
        raise RecordError("unknown_form", '"history" is not read: write the conversation as "messages"')
    names = [name for name in ("messages", "conversations") if record.get(name) is not None]
    if len(names) > 1:
        raise RecordError("unknown_form", 'both "messages" and "conversations" are given: leave one')
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
        if isinstance(item, dict) and len(item) == 2:  # the common format, checked in a fifth of the time
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
    field = f'"{name}" of {where}' if where else f'"{name}"'
    if name not in record:
        raise RecordError("missing_field", f"{field} is missing")
    value = record[name]
    if value is None:
        raise RecordError("null_field", f"{field} is null, a string is needed")
    if not isinstance(value, str):
        raise RecordError("wrong_type", f"{field} is {_kind(value)}, a string is needed")
    return value


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list"}
    return "null" if value is None else names.get(type(value), "an object")
