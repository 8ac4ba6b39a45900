"""Finds out how the reading of each range of large .json files begins, on all workers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from colossal_llama.dataset.prepare.input_files import Chunk, Piece
from colossal_llama.dataset.prepare.worker_pool import WorkerPool
from colossal_llama.readers.file_range import Entry, FileRange
from colossal_llama.readers.json_ranges import RangeScan, range_entries
from colossal_llama.readers.listing import InputFile
from colossal_llama.readers.rows import scanned_range
from colossal_llama.utils.console import progress_bar


def with_entries(pending: Sequence[Chunk], chunks: Sequence[Chunk], pool: WorkerPool) -> list[Chunk]:
    """Returns the pending chunks, with the entries of their ranges of .json files.

    Args:
        pending: chunks that are to be read.
        chunks: all chunks, as a range's entry depends on all ranges before it.
        pool: scans the files of which something is pending.
    """
    files = {piece.range.file for chunk in pending for piece in chunk.pieces if piece.range.needs_entry}
    ranges: dict[InputFile, list[FileRange]] = {}
    for piece in (piece for chunk in chunks for piece in chunk.pieces if piece.range.file in files):
        ranges.setdefault(piece.range.file, []).append(piece.range)
    entries = _entries([file_range for listed in ranges.values() for file_range in listed], pool)
    return [replace(chunk, pieces=tuple(_with_entry(piece, entries) for piece in chunk.pieces)) for chunk in pending]


def _entries(ranges: Sequence[FileRange], pool: WorkerPool) -> dict[FileRange, Entry]:
    scans: dict[InputFile, list[RangeScan | None]] = {}
    total = sum(file_range.size_bytes for file_range in ranges)
    with progress_bar(total=total, desc="find records", unit="B", unit_scale=True) as bar:
        for file_range, scan in zip(ranges, pool.map(_scan, ranges), strict=True):
            scans.setdefault(file_range.file, []).append(scan)
            bar.update(file_range.size_bytes)
    entries = [entry for listed in scans.values() for entry in range_entries(listed)]
    return dict(zip(ranges, entries, strict=True))


def _scan(_: Any, file_range: FileRange) -> RangeScan | None:
    return scanned_range(file_range)


def _with_entry(piece: Piece, entries: dict[FileRange, Entry]) -> Piece:
    entry = entries.get(piece.range)
    return piece if entry is None else replace(piece, range=replace(piece.range, entry=entry))
