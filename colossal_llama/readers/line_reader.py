"""Reads lines whose length is bounded: one that is longer is passed over in blocks, and named."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Literal

BYTES_PER_MB = 1_000_000
MAX_LINE_MB = 256
"""Default bound: far above any document, and such a line can be parsed in memory."""
_BLOCK_BYTES = 1 << 20
_KEPT_BYTES = 200
_QUESTIONS = {
    "line": ": is a line feed missing?",
    "row": ";",
    "record": ":",
    "text": ", and a text file is one document: split it;",
}


@dataclass(frozen=True)
class LongLine:
    """A line, a row of a table, a record or a text that is too long to be read.

    Attributes:
        beginning: the first bytes; none of a row.
        size_bytes: its length, with the line feed.
        max_bytes: the bound.
        what: one of the keys of `_QUESTIONS`.
    """

    beginning: bytes
    size_bytes: int
    max_bytes: int
    what: Literal["line", "row", "record", "text"] = "line"

    def __len__(self) -> int:
        return self.size_bytes

    def __str__(self) -> str:
        size_mb, max_mb = self.size_bytes / BYTES_PER_MB, self.max_bytes / BYTES_PER_MB
        if self.what == "line" and self.beginning.lstrip().startswith(b"["):
            return f"the line has {size_mb:,.0f} MB, more than {max_mb:,.0f}: if it is an array, name the file .json."
        return f"the {self.what} has {size_mb:,.0f} MB, more than {max_mb:,.0f}{_QUESTIONS[self.what]}"


def read_line(
    file: BinaryIO, max_bytes: int, observe: Callable[[bytes], object] = lambda block: None
) -> bytes | LongLine:
    """Reads the next line, with its line feed; `b""` at the end of the file.

    Args:
        file: buffered.
        max_bytes: bound of the line, and so of the memory that is taken.
        observe: called with each block that is read, also of a line that is too long.
    """
    block = file.readline(_BLOCK_BYTES)
    observe(block)
    blocks, size_bytes = [block], len(block)
    while len(block) == _BLOCK_BYTES and not block.endswith(b"\n"):
        block = file.readline(_BLOCK_BYTES)
        observe(block)
        size_bytes += len(block)
        if size_bytes <= max_bytes:
            blocks.append(block)
        else:
            del blocks[1:]
    if size_bytes > max_bytes:
        return LongLine(blocks[0][:_KEPT_BYTES], size_bytes, max_bytes)
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)
