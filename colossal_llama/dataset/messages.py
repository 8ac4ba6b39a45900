"""Parses lists of messages: names of roles and texts as data sets have them, contents in parts."""

import shlex
from typing import Any

from colossal_llama.dataset import record_keys
from colossal_llama.dataset.conversation import Message
from colossal_llama.dataset.role_names import KNOWN_ROLES, MEANINGS, RoleNames
from colossal_llama.readers.record import RecordError, kind_of, string_of

_ROLE_KEYS, _CONTENT_KEYS = ("from", "role"), ("content", "value")
_RARE_ROLE_KEYS, _RARE_CONTENT_KEYS = ("speaker", "author"), ("text", "utterance")
"""Names that are read where none of the common ones is there."""
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})


def messages_of(listed: Any, name: str, notes: list[str], roles: RoleNames = KNOWN_ROLES) -> list[Message]:
    """Parses listed messages, each in any of the common formats, without the rules of turns.

    Args:
        listed: the list.
        name: of its key, for messages.
        notes: receives the names of keys that are not read, and of messages that are dropped.
        roles: meanings of the roles' names.

    Raises:
        RecordError: it is no list, or a message is none or of an unknown role.
    """
    if not isinstance(listed, list):
        raise RecordError("wrong_type", f'"{name}" is {kind_of(listed)}, a list is needed')
    messages, known = [], roles.known
    for number, item in enumerate(listed, 1):
        if isinstance(item, dict) and len(item) == 2:  # the common formats, checked in a fifth of the time
            role = item.get("from") or item.get("role")
            content = item.get("content") or item.get("value")
            if isinstance(role, str) and isinstance(content, str) and role in known:
                messages.append(Message(known[role], content))
                if roles.given:
                    notes += roles.notes(role)
                continue
        message = _message(item, f"message {number}", notes, roles)
        if message is not None:
            messages.append(message)
    return messages


def is_message(item: Any) -> bool:
    """True for an object that says whose message it is."""
    return isinstance(item, dict) and any(item.get(name) is not None for name in (*_ROLE_KEYS, *_RARE_ROLE_KEYS))


def _message(item: Any, where: str, notes: list[str], roles: RoleNames) -> Message | None:
    """Parses a message; None for one of a role that is dropped, of which nothing else is read."""
    if not isinstance(item, dict):
        raise RecordError("wrong_type", f"{where} is {kind_of(item)}, an object is needed")
    role_key, content_key = (
        _one_name(item, names, rare, where)
        for names, rare in ((_ROLE_KEYS, _RARE_ROLE_KEYS), (_CONTENT_KEYS, _RARE_CONTENT_KEYS))
    )
    given = item.get(role_key)
    meaning = roles.meaning(given) if isinstance(given, str) else None
    notes += roles.notes(given) if isinstance(given, str) else []
    if meaning == "drop":
        notes.append(f"dropped_messages.{given}")
        return None
    read = {role_key, content_key, *_ROLE_KEYS, *_CONTENT_KEYS}
    is_trained = record_keys.read({k: v for k, v in item.items() if k not in read}, where, notes)
    role = string_of(item, role_key, where)
    if meaning is None:
        raise _unknown_role(role[:40], where, roles)
    content = _content(item, content_key, where, notes)
    if is_trained and meaning != "assistant":
        raise RecordError(
            "trains_another_role", f"{where} is from {role} and marked as trained: only the assistant's messages are"
        )
    return Message(meaning, content, is_trained is not False)


def _unknown_role(role: str, where: str, roles: RoleNames) -> RecordError:
    listed = ", ".join([*roles.known, *roles.dropped])
    others = ", ".join(meaning for meaning in MEANINGS if meaning != "assistant")
    return RecordError(
        "unknown_role",
        f"{where} is from {role!r}: the known roles are {listed}; in preparation and cleaning --roles "
        f"{shlex.quote(f'{role}=assistant')} (or {others}) says what another one is",
    )


def _one_name(item: dict, names: tuple[str, ...], rare: tuple[str, ...], where: str) -> str:
    present = [name for name in names if item.get(name) is not None]
    if len(present) > 1 and item[present[0]] != item[present[1]]:
        raise RecordError("unknown_form", f'{where} has "{names[0]}" and "{names[1]}", which differ: leave one')
    if not present:
        present = [name for name in rare if item.get(name) is not None]
    return present[0] if present else next((name for name in names if name in item), names[0])


def _content(item: dict, name: str, where: str, notes: list[str]) -> str:
    """Text of a message: a string, or a list of texts or of OpenAI's parts, which are joined."""
    if not isinstance(item.get(name), list):
        return string_of(item, name, where)
    parts = (_part(part, f"part {number} of {where}", notes) for number, part in enumerate(item[name], 1))
    return "".join(parts)


def _part(part: Any, where: str, notes: list[str]) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise RecordError("wrong_type", f"{where} is {kind_of(part)}, a text or an object with a type is needed")
    kind, text = string_of(part, "type", where), part.get("text")
    if len(part) == 2 and kind in _TEXT_PARTS and isinstance(text, str):
        return text
    if kind not in _TEXT_PARTS:
        raise RecordError("unsupported_part", f"{where} is of type {kind[:40]!r}, which is not read: only text is")
    others = {key: value for key, value in part.items() if key not in ("type", "text")}
    if record_keys.read(others, where, notes) is not None:
        raise RecordError("unsupported_part_flag", f"{where} has a flag: an answer is trained as a whole or not")
    return string_of(part, "text", where)
