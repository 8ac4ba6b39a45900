"""Counts of keys that are not read: their names, and a bound on how many there are."""

from collections import Counter

UNREAD_KEYS = "unread_keys."
"""Prefix of the names of counts of keys that are not read."""
MOST_COUNTED_KEYS = 1000
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
