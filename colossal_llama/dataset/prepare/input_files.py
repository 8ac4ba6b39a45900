"""Divides the input files into chunks, the unit of work of a worker.

A plain .jsonl or .json file is divided into byte ranges; a line or record belongs to the range of
its first byte. Tables are divided into row groups or record batches. Any other file is one range.
Small ranges that follow each other are read by one chunk:

    a.jsonl  |line|line|li ne|line|line|       the third line belongs to chunk 0
             ^ chunk 0    ^ chunk 1
    b.txt    |    |  chunk 2
    c.json   |    |  chunk 2

Chunks depend on the input alone, never on the number of workers.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from colossal_llama.readers.file_range import FileRange
from colossal_llama.readers.formats import TABLE_KINDS
from colossal_llama.readers.listing import InputFile
from colossal_llama.readers.remote import RemotePath
from colossal_llama.readers.rows import DamagedFileError, observe_part, read_rows
from colossal_llama.readers.table_rows import group_weights

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
        return self.range.size_bytes


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


def plan_chunks(
    files: Sequence[InputFile], limit: int | None, grouped: bool = True, divided: bool = True
) -> list[Chunk]:
    """Divides the files into chunks.

    Args:
        files: in order.
        limit: maximum number of records, read as evenly as possible from all files; None for all.
        grouped: False for a chunk that has one range, as in preparations that earlier versions
            began.
        divided: False where these divided files of JSON lines alone.
    """
    pieces = list(_pieces(files, divided) if limit is None else _limited_pieces(files, limit))
    groups = _groups(pieces) if grouped else [[piece] for piece in pieces]
    return [Chunk(index, tuple(group)) for index, group in enumerate(groups)]


def _pieces(files: Sequence[InputFile], divided: bool) -> Iterator[Piece]:
    chunk_bytes = max(CHUNK_BYTES, sum(file.size_bytes for file in files) // MAX_CHUNKS)
    for file in files:
        has_ranges = not isinstance(file.path, RemotePath) or file.path.has_ranges
        is_large = divided and file.size_bytes > chunk_bytes and not file.format.compression
        if has_ranges and (file.format.is_divisible or (is_large and file.format.kind == ".json")):
            for start in range(0, max(file.size_bytes, 1), chunk_bytes):
                yield Piece(FileRange(file, start, min(start + chunk_bytes, file.size_bytes)))
        elif is_large and file.format.kind in TABLE_KINDS:
            yield from map(Piece, _table_ranges(file, chunk_bytes))
        else:
            yield Piece(FileRange(file))


def _table_ranges(file: InputFile, chunk_bytes: int) -> Iterator[FileRange]:
    """Ranges of about `chunk_bytes`, each of which has at least one row group or record batch."""
    weights = group_weights(file)
    if len(weights) < 2:
        yield FileRange(file)
        return
    total, read, first, start = sum(weights), 0, 0, 0
    for number, weight in enumerate(weights, start=1):
        read += weight
        end = file.size_bytes * read // max(1, total) if number < len(weights) else file.size_bytes
        if end - start >= chunk_bytes or number == len(weights):
            yield FileRange(file, start, end, (first, number))
            first, start = number, end


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
    if piece.range.is_part:
        observe_part(piece.range, digest.update)
        return digest.hexdigest()
    try:
        records = 0
        for number, row in read_rows(piece.range, max_row_bytes, digest.update):
            records += not isinstance(row, bytes) or bool(row.strip())
            if kind in TABLE_KINDS or (number + 1 == rows if kind == ".jsonl" else records == piece.record_limit):
                break
    except DamagedFileError:
        pass  # the readable content is compared
    return digest.hexdigest()
