"""Divides the input files into chunks, the unit of work of a worker.

A plain .jsonl file is divided into byte ranges; a line belongs to the range of its first byte. Any
other file is one range. Small ranges that follow each other are read by one chunk:

    a.jsonl  |line|line|li ne|line|line|       the third line belongs to chunk 0
             ^ chunk 0    ^ chunk 1
    b.txt    |    |  chunk 2
    c.json   |    |  chunk 2

Chunks depend on the input alone, never on the number of workers.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from colossal_llama.readers.formats import TABLE_KINDS
from colossal_llama.readers.listing import InputFile
from colossal_llama.readers.remote import RemotePath
from colossal_llama.readers.rows import DamagedFileError, FileRange, read_rows

CHUNK_BYTES = 4 << 20
MAX_CHUNKS = 16_384  # larger inputs get larger chunks: 64 MiB for 1 TiB
GROUP_BYTES = 1 << 20  # of small ranges that one chunk reads: compressed ones may grow tenfold
MIN_GROUPS = 64  # a small input is still work for as many workers
RANGE_COST_BYTES = 4096  # opening a file and closing it counts as so many bytes of its content


@dataclass(frozen=True)
class Piece:
    """A range of a file, and how many of its records are read.

    Attributes:
        range: the range.
        record_limit: maximum number of records; None without a limit.
    """

    range: FileRange
    record_limit: int | None = None

    @property
    def size_bytes(self) -> int:
        """Size of the range in its file."""
        end = self.range.file.size_bytes if self.range.end is None else self.range.end
        return end - self.range.start


@dataclass(frozen=True)
class Chunk:
    """Ranges of files, read by one task.

    Attributes:
        index: number of the chunk in the preparation.
        pieces: the ranges, in order.
    """

    index: int
    pieces: tuple[Piece, ...]

    @property
    def size_bytes(self) -> int:
        """Size of all ranges in their files."""
        return sum(piece.size_bytes for piece in self.pieces)

    @property
    def files(self) -> str:
        """Name of the file, or names of the first file and the last."""
        first, last = self.pieces[0].range.file.name, self.pieces[-1].range.file.name
        return first if first == last else f"{first} to {last}"


def plan_chunks(files: Sequence[InputFile], limit: int | None, grouped: bool = True) -> list[Chunk]:
    """Divides the files into chunks.

    Args:
        files: in order.
        limit: maximum number of records, read as evenly as possible from all files; None for all.
        grouped: False for a chunk that has one range, as in preparations that earlier versions
            began.
    """
    pieces = list(_pieces(files) if limit is None else _limited_pieces(files, limit))
    groups = _groups(pieces) if grouped else [[piece] for piece in pieces]
    return [Chunk(index, tuple(group)) for index, group in enumerate(groups)]


def _pieces(files: Sequence[InputFile]) -> Iterator[Piece]:
    chunk_bytes = max(CHUNK_BYTES, sum(file.size_bytes for file in files) // MAX_CHUNKS)
    for file in files:
        if not file.format.is_divisible or (isinstance(file.path, RemotePath) and not file.path.has_ranges):
            yield Piece(FileRange(file))
            continue
        for start in range(0, max(file.size_bytes, 1), chunk_bytes):
            yield Piece(FileRange(file, start, min(start + chunk_bytes, file.size_bytes)))


def _limited_pieces(files: Sequence[InputFile], limit: int) -> Iterator[Piece]:
    share, left = divmod(limit, len(files))
    for index, file in enumerate(files):
        yield Piece(FileRange(file), share + (index < left))


def _groups(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Groups neighbours, as long as a group is small."""
    costs = [RANGE_COST_BYTES + (0 if piece.record_limit == 0 else piece.size_bytes) for piece in pieces]
    total = sum(costs)
    bound = max(min(GROUP_BYTES, total // MIN_GROUPS), total // MAX_CHUNKS)
    group: list[Piece] = []
    group_cost = 0
    for piece, cost in zip(pieces, costs, strict=True):
        if group and group_cost + cost > bound:
            yield group
            group, group_cost = [], 0
        group.append(piece)
        group_cost += cost
    if group:
        yield group


def content_digest(piece: Piece, rows: int, max_row_bytes: int) -> str:
    """SHA-256 of what `read_rows` reads for a range's first rows, to detect changed content."""
    digest, kind = hashlib.sha256(), piece.range.file.format.kind
    if piece.record_limit == 0:
        return digest.hexdigest()  # nothing was read
    try:
        records = 0
        for number, row in read_rows(piece.range, max_row_bytes, digest.update):
            records += not isinstance(row, bytes) or bool(row.strip())
            if kind in TABLE_KINDS or (number + 1 == rows if kind == ".jsonl" else records == piece.record_limit):
                break
    except DamagedFileError:
        pass  # the readable content is compared
    return digest.hexdigest()
