"""Counts of what is not read: keys, with a bound on their names, and members of archives."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

UNREAD_KEYS = "unread_keys."
"""Prefix of the names of counts of keys that are not read."""
MOST_COUNTED_KEYS = 1000
SHOWN_MEMBERS = 20
_OTHER_KEYS = f"{UNREAD_KEYS}(other keys)"
_SHOWN_CHARACTERS = 60


def unread(name: str) -> str:
    """Name of the count of a key that is not read."""
    shown = "".join(sign if sign.isprintable() else "?" for sign in name[:_SHOWN_CHARACTERS])
    return f"{UNREAD_KEYS}{shown}{'…' if len(name) > _SHOWN_CHARACTERS else ''}"


def bound_names(counts: Counter[str]) -> Counter[str]:
    """Counts the rarest of the keys that are not read as one, if their names are too many."""
    if len(counts) > MOST_COUNTED_KEYS:
        names = [name for name in counts if name.startswith(UNREAD_KEYS) and name != _OTHER_KEYS]
        for name in sorted(names, key=lambda name: (-counts[name], name))[MOST_COUNTED_KEYS:]:
            counts[_OTHER_KEYS] += counts.pop(name)
    return counts


class UnreadMembers:
    """Counts the members of archives that are not read, and keeps the first names."""

    def __init__(self) -> None:
        self._endings: Counter[str] = Counter()
        self._first: list[str] = []

    def add(self, archive: str, name: str) -> None:
        """Counts a member of an archive."""
        path = PurePosixPath(name)
        self._endings[_displayed(path.suffix or path.name)] += 1
        if len(self._first) < SHOWN_MEMBERS:
            self._first.append(f"{archive}:{_displayed(name)}")

    def add_record(self, record: Mapping[str, Any]) -> None:
        """Adds what another one has counted."""
        self._endings.update(record["by_ending"])
        self._first = [*self._first, *record["first"]][:SHOWN_MEMBERS]

    def record(self) -> dict:
        """A JSON object of all of them; empty if there are none."""
        endings = dict(sorted(self._endings.items()))
        return {"count": self._endings.total(), "by_ending": endings, "first": self._first} if endings else {}


def unread_members_message(record: Mapping[str, Any]) -> str:
    """Formats `UnreadMembers.record` as a line; empty if all members are read."""
    if not record:
        return ""
    endings = ", ".join(f"{ending} {count:,}" for ending, count in record["by_ending"].items())
    hidden = record["count"] - len(record["first"])
    names = ", ".join(record["first"]) + (f", and {hidden:,} more" if hidden else "")
    return f"members of archives that are not read: {record['count']:,} ({endings}): {names}"


def _displayed(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")
