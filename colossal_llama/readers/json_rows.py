"""Rows of .json files: elements of arrays, objects one after another, or an object a line.

The text is split into values without parsing it, in bounded memory, so that what is wrong with one
value is said of this value alone, as with JSON lines.
"""

import io
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import orjson

from colossal_llama.readers.compression import READ_BYTES, blocks_of
from colossal_llama.readers.damage import DamagedFileError, UnusableFileError
from colossal_llama.readers.file_range import BEGINNING, TextState
from colossal_llama.readers.line_reader import LongLine
from colossal_llama.readers.text_rows import BYTE_ORDER_MARK, KEPT_BYTES

_REST_OF_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_TO_BRACKET = re.compile(rb'(?:[^"{}\[\]]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
_BETWEEN = re.compile(rb"[\s,\x1e]*+")  # 0x1e begins the values of an RFC 7464 sequence
_LITERAL = re.compile(rb'[^\s,"{}\[\]]++')
_QUOTE, _OPENING, _CLOSING = b'"'[0], b"[{", b"]}"


def open_json(stream: io.BufferedReader) -> tuple[bool, io.BufferedReader]:
    """Looks at the beginning of a .json file.

    Returns:
        True if it has an object a line, of which the first is whole, and the stream from its
        beginning.
    """
    beginning = first = rest = b""
    while not rest and len(beginning) < READ_BYTES and (block := stream.read1(READ_BYTES)):
        beginning += block
        first, _, rest = beginning.removeprefix(BYTE_ORDER_MARK).strip().partition(b"\n")
    return bool(rest) and _is_object(first), io.BufferedReader(_Rejoined(beginning, stream), READ_BYTES)


class _Rejoined(io.RawIOBase):
    """A beginning that has been read, and the rest of its stream."""

    def __init__(self, beginning: bytes, rest: io.BufferedReader):
        self._beginning, self._rest = memoryview(beginning), rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._beginning[: len(buffer)] or self._rest.read1(len(buffer))
        self._beginning = self._beginning[len(block) :]
        buffer[: len(block)] = block
        return len(block)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False


def json_rows(
    stream: io.BufferedReader, max_row_bytes: int, on_bytes: Callable[[bytes], object]
) -> Iterator[bytes | LongLine]:
    """Reads the elements of the arrays of a file, and its objects outside of arrays.

    Args:
        stream: from `open_json`.
        max_row_bytes: longest value that is read.
        on_bytes: called with everything that is read.

    Raises:
        DamagedFileError: the file ends inside a value or an array.
        UnusableFileError: it is no JSON, or one object that has the records inside.
    """
    values = split_values(blocks_of(stream, on_bytes), max_row_bytes)
    lone: bytes | LongLine | None = None
    for number, (value, is_element) in enumerate(values):
        if number == 0 and not is_element:
            lone = value  # held back: if nothing follows, it may be no record
            continue
        if lone is not None:
            yield lone
            lone = None
        yield value
    if lone is not None:
        _refuse_wrapper(lone)
        yield lone


def _refuse_wrapper(value: bytes | LongLine) -> None:
    """Refuses the only object of a file if the records are inside it.

    Raises:
        UnusableFileError: they are.
    """
    if isinstance(value, LongLine):
        raise _long_object(value)
    try:
        record = orjson.loads(value)
    except orjson.JSONDecodeError:
        return  # a bad record
    if problem := wrapper_problem(record, len(value)):
        raise UnusableFileError(problem)


def wrapper_problem(record: dict, size_bytes: int) -> str | None:
    """Explains that the only object of a file is no record, but has the records inside.

    An object is a record if more than half of it is no list of objects, or one of messages.

    Args:
        record: the object.
        size_bytes: its size as JSON.
    """
    for name, value in record.items():
        items = value if isinstance(value, list) else []
        is_of_records = all(isinstance(item, dict) and not _MESSAGE_KEYS & item.keys() for item in items)
        if items and is_of_records and len(orjson.dumps(value)) > size_bytes // 2:
            return (
                f'it is one object with a list of objects in "{name}": write the list alone '
                f"(jq -c '.\"{name}\"[]' FILE.json > FILE.jsonl)"
            )
    values = list(record.values())
    if len(values) > 1 and all(isinstance(value, dict) for value in values):
        first = values[0]
        if all(name.isdigit() for name in first):
            return (
                "it is one object of columns, as pandas writes it: write the records "
                '(to_json("FILE.jsonl", orient="records", lines=True))'
            )
        return "it is one object of objects: write these alone (jq -c '.[]' FILE.json > FILE.jsonl)"
    has_columns = all(isinstance(value, list) and len(value) == len(values[0]) > 1 for value in values)
    if values and has_columns and not any(isinstance(item, dict | list) for value in values for item in value):
        return 'it is one object of columns: write an object for each row (pandas: orient="records", lines=True)'
    return None


_MESSAGE_KEYS = frozenset({"role", "from", "speaker"})


class _Value:
    """The text of a value as far as it is read, or its first bytes if it is too long."""

    def __init__(self, max_bytes: int):
        self.max_bytes, self.size_bytes = max_bytes, 0
        self.pieces: list[bytes] = []

    def add(self, piece: bytes) -> None:
        self.size_bytes += len(piece)
        if self.size_bytes <= self.max_bytes:
            self.pieces.append(piece)
        else:
            self.pieces = [b"".join((*self.pieces[:1], piece))[:KEPT_BYTES]]

    def take(self) -> bytes | LongLine:
        text, size_bytes = b"".join(self.pieces), self.size_bytes
        self.pieces, self.size_bytes = [], 0
        return text if size_bytes <= self.max_bytes else LongLine(text, size_bytes, self.max_bytes, "record")


def split_values(blocks: Iterable[bytes], max_bytes: int) -> Iterator[tuple[bytes | LongLine, bool]]:
    """Splits JSON text into the elements of its arrays, and its values outside of arrays.

    Only brackets and strings are looked at: whether a value is JSON is known when it is parsed.

    Args:
        blocks: of the text, of any size.
        max_bytes: longest value that is returned as text.

    Yields:
        A value, and True if it is an element of an array.

    Raises:
        DamagedFileError: the text ends inside a value or an array, or a bracket is out of place.
        UnusableFileError: the text does not begin with an array or an object.
    """
    splitter = _Splitter(max_bytes)
    yield from splitter.split(blocks)
    splitter.check_end()


def split_range(
    blocks: Iterable[bytes], read_more: Callable[[], bytes], state: TextState, max_bytes: int
) -> Iterator[bytes | LongLine]:
    """Splits a range of an array into the elements that begin in it.

    Args:
        blocks: of the range.
        read_more: reads on behind it, to the end of its last element.
        state: of the text where the range begins.
        max_bytes: longest element that is returned as text.
    """
    splitter = _Splitter(max_bytes, state)
    is_before = splitter.is_inside  # the end of an element of an earlier range
    is_behind = False

    def blocks_and_more() -> Iterator[bytes]:
        nonlocal is_behind
        yield from blocks
        is_behind = True
        while splitter.is_inside and not is_before and (block := read_more()):
            yield block

    for value, _ in splitter.split(blocks_and_more()):
        if not is_before:
            yield value
        is_before = False
        if is_behind:
            return
    if not is_before and splitter.is_inside:
        splitter.check_end()


class _Splitter:
    """State between two blocks.

    Attributes:
        base: 1 inside an array of records, else 0.
        depth: number of open brackets; a value ends when it is back at `base`.
        within: what the last block ended in: a string, a literal (a number, true), or neither.
        count: number of values so far.
        position: of the block's first byte.
    """

    def __init__(self, max_bytes: int, state: TextState = BEGINNING):
        self.value = _Value(max_bytes)
        self.depth, self.within = state.depth, "string" if state.in_string else ""
        self.base = min(self.depth, 1)
        self.count = self.position = 0

    @property
    def is_inside(self) -> bool:
        """True inside a value."""
        return bool(self.within) or self.depth > self.base

    def split(self, blocks: Iterable[bytes]) -> Iterator[tuple[bytes | LongLine, bool]]:
        """Splits the blocks of a file; see `split_values`."""
        carried = b""
        for number, block in enumerate(blocks):
            text = carried + (block if number or self.base else block.removeprefix(BYTE_ORDER_MARK))
            end = start = 0
            while end < len(text):
                if self.depth == self.base and not self.within:
                    start = end = self._between(text, end)
                    if end == len(text) or self._opened_or_closed_array(text, end):
                        end += end < len(text)
                        start = end
                        continue
                stopped = end
                end = self._step(text, end)
                if self.depth == self.base and not self.within:
                    self.value.add(text[start:end])
                    self.count += 1
                    yield self.value.take(), self.base == 1
                    start = end
                elif end == stopped:
                    break  # a backslash ends the block
            self.value.add(text[start:end])
            carried = text[end:]
            self.position += len(text) - len(carried)
            if not self.count and not self.base and self.value.size_bytes > self.value.max_bytes:
                raise _long_object(self.value.take())

    def check_end(self) -> None:
        """Refuses the end of a file inside a value or an array."""
        if self.depth or self.within:
            place = f"record {self.count + 1}" if self.is_inside else f"the array, after record {self.count}"
            raise DamagedFileError(f"it ends inside {place}, at byte {self.position:,}: it was not copied to its end")

    def _between(self, text: bytes, start: int) -> int:
        match = _BETWEEN.match(text, start)
        return match.end() if match else start

    def _opened_or_closed_array(self, text: bytes, place: int) -> bool:
        """Enters or leaves an array of records."""
        sign = text[place : place + 1]
        if sign == b"[" and not self.base:
            self.base = self.depth = 1
            return True
        if sign == b"]" and self.base:
            self.base = self.depth = 0
            return True
        if sign in (b"]", b"}"):
            raise DamagedFileError(f"{sign.decode()!r} at byte {self.position + place:,} closes nothing")
        if not self.base and sign != b"{":
            where = f"at byte {self.position + place:,} there is {text[place : place + 20]!r}"
            error = DamagedFileError if self.count else UnusableFileError
            raise error(f"it is no JSON: {where}, where an object or an array is expected")
        return False

    def _step(self, text: bytes, start: int) -> int:
        """Goes on to the place after the next bracket, or the end of a string or literal."""
        if self.within == "string":
            end = _end(_REST_OF_STRING, text, start)
            if text[end : end + 1] == b'"':
                self.within = ""
                end += 1
            return end
        if self.depth == self.base and (self.within or text[start] not in b'"{['):
            end = _end(_LITERAL, text, start)
            self.within = "literal" if end == len(text) else ""
            return end
        end = _end(_TO_BRACKET, text, start) if self.depth > self.base else start
        if end == len(text):
            return end
        sign = text[end]
        if sign == _QUOTE:
            self.within = "string"
        elif sign in _OPENING:
            self.depth += 1
        else:
            self.depth -= 1
        return end + 1


def _long_object(value: bytes | LongLine) -> UnusableFileError:
    return UnusableFileError(f"{value!s} write the records as an array, or raise --max_line_mb")


def _end(pattern: re.Pattern, text: bytes, start: int) -> int:
    match = pattern.match(text, start)
    return match.end() if match else start
