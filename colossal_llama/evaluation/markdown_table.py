"""Tables in Markdown of any texts: what a cell holds is shown as it is."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

_LINE_ENDS = re.compile("\r\n|[\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029]")
_MARKS = re.compile(r"[\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_INDENT = re.compile("^ +")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""Formats a table of GitHub's Markdown.

    >>> print(markdown_table(["a", "b"], [["x|y", "two\nlines"]]))
    | a | b |
    | --- | --- |
    | x\|y | two<br>lines |
    """
    cells = [[cell_of(cell) for cell in row] for row in (header, *rows)]
    lines = [cells[0], ["---"] * len(header), *cells[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell_of(text: str) -> str:
    """Writes a text so that it is shown as it is in a cell, its lines below each other.

    Marks of Markdown get a backslash, and so does `|`, which would end the cell. Signs that HTML
    reads become entities, ends of lines `<br>`. A control character is U+FFFD.
    """
    shown = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = _MARKS.sub(r"\\\g<0>", shown)
    lines = (_INDENT.sub(lambda found: "&nbsp;" * len(found[0]), line) for line in _LINE_ENDS.split(shown))
    return "<br>".join("".join(map(_printable, line)) for line in lines)


def _printable(sign: str) -> str:
    if sign == "\t":
        return "&emsp;"
    return "\ufffd" if unicodedata.category(sign) == "Cc" else sign
