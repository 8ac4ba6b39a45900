"""Divides the input files into chunks, the unit of work of a worker.

A plain .jsonl file is divided into byte ranges; a line belongs to the range of its first byte. Any
other file is one chunk. Chunks depend on the input alone, never on the number of workers:

    corpus.jsonl   |line|line|li ne|line|line|
                   ^ chunk 0    ^ chunk 1       the third line belongs to chunk 0
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from colossal_llama.readers.formats import TABLE_KINDS
from colossal_llama.readers.listing import InputFile
from colossal_llama.readers.rows import DamagedFileError, FileRange, read_rows

CHUNK_BYTES = 4 << 20
MAX_CHUNKS = 16_384  # larger inputs get larger chunks: 64 MiB for 1 TiB


@dataclass(frozen=True)
class Chunk:
    """A range of a file, read by one task.

    Attributes:
        index: number of the chunk in the preparation.
        file: that the chunk belongs to.
        start: first byte; lines that begin in [start, end) belong to the chunk.
        end: byte after the last; None to read to the end of the file.
        record_limit: maximum number of records; None without a limit.
    """

    index: int
    file: InputFile
    start: int
    end: int | None
    record_limit: int | None

    @property
    def range(self) -> FileRange:
        """The range of its file."""
        return FileRange(self.file, self.start, self.end)


def plan_chunks(files: Sequence[InputFile], limit: int | None) -> list[Chunk]:
    """Divides the files into chunks.

    Args:
        files: in order.
        limit: maximum number of records, read as evenly as possible from all files; None for all.
    """
    if limit is not None:
        shares = [limit // len(files) + (index < limit % len(files)) for index in range(len(files))]
        return [
            Chunk(index, file, 0, None, share) for index, (file, share) in enumerate(zip(files, shares, strict=True))
        ]
    chunk_bytes = max(CHUNK_BYTES, sum(file.size_bytes for file in files) // MAX_CHUNKS)
    chunks: list[Chunk] = []
    for file in files:
        if not file.format.is_divisible:
            chunks.append(Chunk(len(chunks), file, 0, None, None))
            continue
        for start in range(0, max(file.size_bytes, 1), chunk_bytes):
            chunks.append(Chunk(len(chunks), file, start, min(start + chunk_bytes, file.size_bytes), None))
    return chunks


def content_digest(chunk: Chunk, rows: int, max_row_bytes: int) -> str:
    """SHA-256 of what `read_rows` reads for a chunk's first rows, to detect changed content."""
    digest, kind = hashlib.sha256(), chunk.file.format.kind
    if chunk.record_limit == 0:
        return digest.hexdigest()  # nothing was read
    try:
        records = 0
        for number, row in read_rows(chunk.range, max_row_bytes, digest.update):
            records += not isinstance(row, bytes) or bool(row.strip())
            if kind in TABLE_KINDS or (number + 1 == rows if kind == ".jsonl" else records == chunk.record_limit):
                break
    except DamagedFileError:
        pass  # the readable content is compared
    return digest.hexdigest()
