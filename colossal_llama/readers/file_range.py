"""A range of an input file, how its reading begins, and the progress in it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from colossal_llama.readers.listing import InputFile


class TextState(NamedTuple):
    """State of a JSON text at a position.

    Attributes:
        depth: number of open brackets.
        in_string: True inside a string.
    """

    depth: int
    in_string: bool


BEGINNING = TextState(0, False)
"""State at the beginning of a text."""
Entry = TextState | Literal["lines", "whole", "nothing"]
"""Beginning of a range of a .json file: the state of its text, a line, or none.

Where a file cannot be divided, its first range is read as the whole file, and the others not.
"""


@dataclass(frozen=True)
class FileRange:
    """A range of an input file.

    Attributes:
        file: the file.
        start: first byte; rows that begin in [start, end) belong to the range.
        end: byte after the last; None to read to the end of the file.
        groups: first of the row groups or record batches of a table that belong to the range, and
            the one after the last; None for all.
        entry: of a range of a .json file, see `json_ranges`.
    """

    file: InputFile
    start: int = 0
    end: int | None = None
    groups: tuple[int, int] | None = None
    entry: Entry | None = None

    @property
    def is_part(self) -> bool:
        """True for a range of a divided file that is not of JSON lines."""
        return self.end is not None and self.file.format.kind != ".jsonl"

    @property
    def needs_entry(self) -> bool:
        """True for a range of a divided .json file, which cannot be read without an entry."""
        return self.is_part and self.file.format.kind == ".json"

    @property
    def size_bytes(self) -> int:
        """Size of what is read in its file."""
        if self.entry in ("whole", "nothing"):
            return self.file.size_bytes if self.entry == "whole" else 0
        return (self.file.size_bytes if self.end is None else self.end) - self.start


class ReadingProgress:
    """Share of a range that is read so far: its reader sets it, and who takes its rows asks.

    Attributes:
        share: gives it, from 0 to 1.
    """

    def __init__(self) -> None:
        self.share: Callable[[], float] = lambda: 0.0

    def set(self, share: float) -> None:
        """Sets a share that stays until the next."""
        self.share = lambda: share
