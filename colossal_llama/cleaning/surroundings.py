"""Surroundings of a number in a text: they tell a telephone number from an order number."""

import re
from typing import NamedTuple

CONTEXT_CHARACTERS = 24

_SINCE_SENTENCE_OR_NUMBER = re.compile(r"[^\n0-9。！？；!?;]*\Z")


class Span(NamedTuple):
    """Personal data of a kind, by the positions of its characters."""

    kind: str
    start: int
    end: int


def context_before(text: str, start: int) -> str:
    """Returns what stands before a position in its sentence, back to the number before it."""
    match = _SINCE_SENTENCE_OR_NUMBER.search(text[max(0, start - CONTEXT_CHARACTERS) : start])
    assert match is not None  # it matches nothing at least
    return match[0]
