"""Ranges of a large .json file, which several processes read.

In which state of the text a range begins, inside a string or at which depth of brackets, is known
when all ranges before it are. Each is scanned by itself, for both cases, a string or none, at its
beginning; then the states follow from each other.

Files of one array are divided, and files of an object a line. Any other file is read as a whole.
"""

import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from colossal_llama.readers.compression import READ_BYTES
from colossal_llama.readers.file_range import Entry, FileRange, TextState
from colossal_llama.readers.json_rows import open_json, split_range
from colossal_llama.readers.line_reader import LongLine
from colossal_llama.readers.text_rows import BYTE_ORDER_MARK

_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_BETWEEN_RECORDS = frozenset(b' \t\n\r\f\v,"{}[]')
_MAX_BACKSLASHES = 1024  # in a row, where a range begins


class _Brackets(NamedTuple):
    """Brackets of a range.

    Attributes:
        lowest: lowest depth before the last bracket, where it is 0 at the beginning.
        change: of the depth by all of them.
        is_sound: False if there is a backslash outside of strings.
    """

    lowest: int
    change: int
    is_sound: bool


class RangeScan(NamedTuple):
    """Facts of the text of a range.

    Attributes:
        has_lines: True for the beginning of a file with an object a line.
        is_begin: True if it begins as an array does.
        is_end: True if it ends as an array does.
        previous: the byte before it.
        quotes: number of quotes that are not escaped.
        outside: of brackets, if the range begins outside of a string.
        inside: of brackets, if it begins inside a string.
    """

    has_lines: bool
    is_begin: bool
    is_end: bool
    previous: int
    quotes: int
    outside: _Brackets
    inside: _Brackets


def scan_range(stream: io.BufferedReader, file_range: FileRange) -> RangeScan | None:
    """Scans a range of a file; None if no range can begin or end there.

    Args:
        stream: the file.
        file_range: of it, with an end.
    """
    start, end = _cuts(stream, file_range)
    if start is None or end is None:
        return None
    stream.seek(max(0, start - 1))
    text = stream.read(end - stream.tell())
    previous, text = (text[0], text[1:]) if start else (0, text)
    has_lines = False
    if not start:
        has_lines = open_json(io.BufferedReader(io.BytesIO(text), READ_BYTES))[0]  # type: ignore[arg-type]
        text = text.removeprefix(BYTE_ORDER_MARK)
    is_begin, is_end = text.lstrip().startswith(b"["), text.rstrip().endswith(b"]")
    if b"\\" in text:
        text = text.replace(b"\\\\", b"\\.").replace(b'\\"', b"\\.")
    pieces = text.split(b'"')
    outside, inside = (_brackets(b"".join(pieces[first::2])) for first in (0, 1))
    return RangeScan(has_lines, is_begin, is_end, previous, len(pieces) - 1, outside, inside)


def _brackets(text: bytes) -> _Brackets:
    signs = np.frombuffer(text.translate(None, _NO_BRACKETS), np.uint8)
    depths = ((signs & 2).astype(np.int64) - 1).cumsum()  # opening ones have the bit of 2
    change = int(depths[-1]) if len(depths) else 0
    return _Brackets(int(depths[:-1].min(initial=len(text))), change, b"\\" not in text)


def _cuts(stream: io.BufferedReader, file_range: FileRange) -> Iterator[int | None]:
    """First byte of a range and the byte after its last, moved on to where no escape is open."""
    for place in (file_range.start, file_range.end or 0):
        stream.seek(max(0, place - 1))
        around = stream.read(1 + _MAX_BACKSLASHES)
        if not place or not around.startswith(b"\\"):
            yield place
            continue
        backslashes = len(around) - len(around.lstrip(b"\\"))
        yield place + backslashes if backslashes < len(around) else None


def range_entries(scans: Sequence[RangeScan | None]) -> list[Entry]:
    """Decides how the reading of each range of a file begins.

    Args:
        scans: of all ranges of the file, in order.
    """
    if scans[0] is not None and scans[0].has_lines:
        return ["lines"] * len(scans)
    states = _states(scans)
    if states is None:
        rest: list[Entry] = ["nothing"] * (len(scans) - 1)
        return ["whole", *rest]
    return list(states)


def _states(scans: Sequence[RangeScan | None]) -> list[TextState] | None:
    """States in which the ranges of an array begin; None for any other text."""
    states: list[TextState] = []
    depth, in_string = 0, False
    for number, scan in enumerate(scans, start=1):
        if scan is None or not (states or scan.is_begin):
            return None
        is_between = scan.previous in _BETWEEN_RECORDS
        if states and (depth < 1 or (depth == 1 and not in_string and not is_between)):
            return None  # a number or word may end there
        states.append(TextState(depth, in_string))
        brackets = scan.inside if in_string else scan.outside
        last = 0 if number == len(scans) else 1
        if not brackets.is_sound or depth + brackets.lowest < 1 or depth + brackets.change < last:
            return None
        depth += brackets.change
        in_string ^= scan.quotes % 2 == 1
    return states if depth == 0 and not in_string and scans[-1] is not None and scans[-1].is_end else None


def range_values(
    stream: io.BufferedReader, file_range: FileRange, state: TextState, max_bytes: int
) -> Iterator[bytes | LongLine]:
    """Reads the elements of an array that begin in a range.

    Args:
        stream: the file.
        file_range: of it.
        state: in which the range begins.
        max_bytes: longest value that is read.
    """
    start, end = _cuts(stream, file_range)
    assert start is not None, "the range has been scanned"
    assert end is not None, "the range has been scanned"
    stream.seek(start)
    yield from split_range(_blocks(stream, end), lambda: stream.read1(READ_BYTES), state, max_bytes)


def _blocks(stream: io.BufferedReader, end: int) -> Iterator[bytes]:
    while block := stream.read(min(READ_BYTES, end - stream.tell())):
        yield block
