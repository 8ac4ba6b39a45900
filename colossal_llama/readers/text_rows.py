"""Text files as rows: a file is a document."""

import io
from collections.abc import Callable, Iterator

from colossal_llama.readers.compression import blocks_of
from colossal_llama.readers.line_reader import LongLine, read_line
from colossal_llama.readers.record import BadRow, Row, encoding_problem

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # may begin a UTF-8 file
KEPT_BYTES = 400


def text_rows(stream: io.BufferedReader, max_bytes: int, on_bytes: Callable[[bytes], object]) -> Iterator[Row]:
    """Reads a text file as one row: `{"text": …}`, or an empty line if there is nothing in it.

    Args:
        stream: at its beginning.
        max_bytes: longest text that is read.
        on_bytes: called with everything that is read.
    """
    blocks: list[bytes] = []
    size_bytes = 0
    for block in blocks_of(stream, on_bytes):
        size_bytes += len(block)
        if size_bytes <= max_bytes:
            blocks.append(block)
        else:
            blocks = [b"".join(blocks)[:KEPT_BYTES] or block[:KEPT_BYTES]]
    content = b"".join(blocks).removeprefix(BYTE_ORDER_MARK)
    if size_bytes > max_bytes:
        yield LongLine(content[:KEPT_BYTES], size_bytes, max_bytes, "text")
    else:
        yield _row(content)


def _row(content: bytes) -> Row:
    return (checked_text(content) or {"text": content.decode("utf-8")}) if content.strip() else b""


def checked_text(content: bytes) -> BadRow | None:
    """Returns a bad row if bytes are not UTF-8 or no text, else None."""
    if problem := encoding_problem(content):
        return BadRow("wrong_encoding", problem, content[:KEPT_BYTES])
    if (position := content.find(b"\0")) >= 0:
        message = f"the byte at position {position} is 0, which no text has: is this a binary file?"
        return BadRow("binary_content", message, content[:KEPT_BYTES])
    return None


def text_blocks(stream: io.BufferedReader, block_bytes: int, max_line_bytes: int) -> Iterator[Row]:
    """Reads a text file of any size as rows of whole lines, each of about `block_bytes`."""
    block, is_first = b"", True
    while line := read_line(stream, max_line_bytes):
        if isinstance(line, LongLine):
            yield line
            continue
        block += line
        if len(block) > block_bytes:
            yield _row(block.removeprefix(BYTE_ORDER_MARK) if is_first else block)
            block, is_first = b"", False
    if block:
        yield _row(block.removeprefix(BYTE_ORDER_MARK) if is_first else block)
