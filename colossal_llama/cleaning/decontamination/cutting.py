"""Cuts questions out of documents: the lines around n-grams, at most 200 characters on either side.

GPT-3's decontamination cut 200 characters on either side, too (Brown et al. 2020, appendix C); the
border is the end of a line, where one is nearer.
"""

from collections.abc import Iterable, Sequence

_MOST_AROUND = 200


def spans_to_cut(text: str, ngrams: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Widens the places of n-grams to their lines; joins those that overlap."""
    spans: list[tuple[int, int]] = []
    for begin, end in sorted((_line_begin(text, begin), _line_end(text, end)) for begin, end in ngrams):
        if spans and begin <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((begin, end))
    return spans


def cut(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """Returns a text without the spans, which are in order."""
    kept, behind = [], 0
    for begin, end in spans:
        kept.append(text[behind:begin])
        behind = end
    return "".join([*kept, text[behind:]])


def _line_begin(text: str, place: int) -> int:
    """The beginning of the line of a place, or of a word 200 characters before it."""
    line = text.rfind("\n", 0, place) + 1
    if place - line <= _MOST_AROUND:
        return line
    blank = text.find(" ", place - _MOST_AROUND, place)
    return place - _MOST_AROUND if blank < 0 else blank + 1


def _line_end(text: str, place: int) -> int:
    """Behind the line of a place, its line feed included, or a word 200 characters behind it."""
    line = text.find("\n", place)
    line = len(text) if line < 0 else line + 1
    if line - place <= _MOST_AROUND:
        return line
    blank = text.rfind(" ", place, place + _MOST_AROUND)
    return place + _MOST_AROUND if blank < 0 else blank + 1
