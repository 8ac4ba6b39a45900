"""Suggests a known name for one that is not known."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns `: did you mean 'NAME'?` for a close known name; an empty text without one."""
    by_folded = {candidate.casefold(): candidate for candidate in sorted(known)}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return f": did you mean {by_folded[close[0]]!r}?" if close else ""
