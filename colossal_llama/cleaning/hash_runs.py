"""Hashes of documents, paragraphs, lines and bands on disk, and what several documents share.

Each chunk of the input writes one sorted run into a directory. A run has at least two columns of
64 bits: `keys`, ascending, and one or more columns of values. `groups` merges all runs of a
directory: it yields the keys that lie in more than one document, range of keys by range of keys,
so that its memory is bounded. `read_range` reads the entries of some keys, for instance all that
was decided about the documents of a chunk, which are keys then.

A document's number is `chunk << 32 | position in the chunk`: ascending in the order of the input.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from colossal_llama.utils import atomic_io

_BYTES_PER_ENTRY = 96  # columns as read and in order, the order, the groups, pages of the files
_LARGEST_GROUP = 1 << 16
_END_OF_KEYS = 1 << 64


@dataclass(frozen=True)
class Groups:
    """Keys that lie in more than one document, and these documents.

    Attributes:
        keys: [groups], uint64.
        starts: [groups + 1], int64; group g has `documents[starts[g]:starts[g + 1]]`.
        documents: numbers, ascending within a group, uint64.
    """

    keys: np.ndarray
    starts: np.ndarray
    documents: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Number of documents of each group, int64."""
        return np.diff(self.starts)


def document_numbers(chunk: int, positions: np.ndarray | Sequence[int]) -> np.ndarray:
    """Returns the numbers of documents of a chunk, by their positions in it, as uint64."""
    return np.asarray(positions, dtype=np.uint64) | np.uint64(chunk << 32)


def positions_in_chunk(documents: np.ndarray) -> list[int]:
    """Returns the positions of documents, given by number, in their chunks."""
    return (documents & np.uint64(0xFFFFFFFF)).tolist()


def hash_texts(texts: Sequence[str]) -> np.ndarray:
    """Returns the 64 bits of XXH3 of each text in UTF-8."""
    return hash_bytes([text.encode("utf-8", "surrogatepass") for text in texts])


def hash_bytes(values: Sequence[bytes]) -> np.ndarray:
    """Returns the 64 bits of XXH3 of each value."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, values), np.uint64, len(values))


def write_run(directory: Path, number: int, keys: np.ndarray, *values: np.ndarray) -> None:
    """Writes the sorted run of a chunk, in place of an earlier one; repeated entries become one.

    Args:
        directory: holds runs of one kind; is made.
        number: of the run, that of the chunk where a chunk writes it.
        keys: uint64, in any order.
        values: one or more columns of 64 bits, as long as `keys`. The first is of document numbers
            where `groups` is to read the run.
    """
    columns = np.stack([keys, *(column.view(np.uint64) for column in values)]).astype(np.uint64, copy=False)
    columns = columns[:, np.lexsort(columns[::-1])]
    if columns.shape[1]:
        is_new = np.append(True, (columns[:, 1:] != columns[:, :-1]).any(axis=0))
        columns = np.ascontiguousarray(columns[:, is_new])
    directory.mkdir(parents=True, exist_ok=True)
    # Not flushed: a chunk is finished when the record of its run directory is on the disk.
    with atomic_io.atomic_file(run_path(directory, number), durable=False) as file:
        # Not by np.save, whose error on a full disk lacks the error number.
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(columns))
        file.write(columns.data)


def remove_runs(directory: Path) -> None:
    """Removes all runs of a directory, so that those of an interrupted merge do not count."""
    for run in _run_files(directory):
        run.unlink()


def groups(directory: Path, memory_bytes: int) -> Iterator[Groups]:
    """Yields the keys that lie in more than one document.

    A key of more than 65,536 documents comes in several groups, each of which begins with the key's
    first document. Where they begin does not depend on the memory.

    Args:
        directory: of the runs; may be missing.
        memory_bytes: what the entries in memory may take; groups are yielded in parts of this size.
    """
    runs = _run_files(directory)
    capacity = max(memory_bytes // _BYTES_PER_ENTRY, _LARGEST_GROUP)
    sizes = np.array([_open(run).shape[1] for run in runs], dtype=np.int64)
    yield from _groups_of_range(runs, 0, _END_OF_KEYS, np.zeros_like(sizes), sizes, capacity)


def read_range(directory: Path, first: int, last: int) -> np.ndarray:
    """Returns the entries of all runs with `first <= key < last`, by key: [columns, entries].

    Args:
        directory: of the runs; may be missing.
        first: smallest key.
        last: key behind the largest.
    """
    parts = []
    for run in _run_files(directory):
        columns = _open(run)
        parts.append(_read_slice(run, _position(columns[0], first), _position(columns[0], last)))
    if not parts:
        return np.empty((2, 0), dtype=np.uint64)
    entries = np.concatenate(parts, axis=1)
    return entries[:, np.argsort(entries[0], kind="stable")]


def read_documents(directory: Path, chunk: int) -> np.ndarray:
    """Returns the entries whose keys are documents of a chunk: [columns, entries]."""
    return read_range(directory, chunk << 32, (chunk + 1) << 32)


def read_run(directory: Path, number: int) -> np.ndarray:
    """Returns the entries of one run: [columns, entries]."""
    return np.array(_open(run_path(directory, number)))


def run_path(directory: Path, number: int) -> Path:
    """Path of the run of a number."""
    return directory / f"run-{number:08d}.npy"


def _run_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("run-*.npy"))


def _open(run: Path) -> np.memmap:
    """Returns the columns of a run; what is read of them comes from the disk then."""
    return np.load(run, mmap_mode="r")


def _read_slice(run: Path, low: int, high: int) -> np.ndarray:
    """Reads the entries between two positions of a run: [columns, entries].

    Not from a mapping: a page that is read maps up to 2 MB of the file's cached pages, so that a
    hundred runs seemed to take 400 MB.
    """
    mapped = _open(run)
    offsets = mapped.offset + 8 * (mapped.shape[1] * np.arange(mapped.shape[0]) + low)
    return np.stack([np.fromfile(run, np.uint64, high - low, offset=offset) for offset in offsets.tolist()])


def _position(keys: np.ndarray, key: int) -> int:
    """Returns the position of the first of ascending keys that is not below `key`."""
    return len(keys) if key >= _END_OF_KEYS else int(np.searchsorted(keys, np.uint64(key)))


def _groups_of_range(
    runs: Sequence[Path], first: int, last: int, lows: np.ndarray, highs: np.ndarray, capacity: int
) -> Iterator[Groups]:
    """Yields the groups with `first <= key < last`; halves a range that does not fit into memory.

    Args:
        runs: files.
        first: smallest key.
        last: key behind the largest.
        lows: position in each run of the range's first entry.
        highs: position in each run behind the range's last entry.
        capacity: number of entries that may be in memory.
    """
    if (highs - lows).sum() <= capacity:
        yield from _grouped(_read(runs, lows, highs))
    elif last - first == 1:
        yield from _pieces_of_key(runs, lows, highs)
    else:
        middle = (first + last) // 2
        cuts = np.array(
            [
                low + _position(_open(run)[0, low:high], middle) if high > low else low
                for run, low, high in zip(runs, lows, highs, strict=True)
            ]
        )
        yield from _groups_of_range(runs, first, middle, lows, cuts, capacity)
        yield from _groups_of_range(runs, middle, last, cuts, highs, capacity)


def _read(runs: Sequence[Path], lows: np.ndarray, highs: np.ndarray) -> np.ndarray:
    """Reads keys and documents between two positions of each run: [2, entries]."""
    slices = zip(runs, lows.tolist(), highs.tolist(), strict=True)
    parts = [_read_slice(run, low, high)[:2] for run, low, high in slices if high > low]
    return np.concatenate(parts, axis=1) if parts else np.empty((2, 0), dtype=np.uint64)


def _grouped(entries: np.ndarray) -> Iterator[Groups]:
    """Groups entries by key. Runs come by number, so documents ascend where the sort is stable."""
    order = np.argsort(entries[0], kind="stable")
    keys, documents = entries[0][order], entries[1][order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])
    sizes = np.diff(np.append(starts, len(keys)))
    is_plain = (sizes > 1) & (sizes <= _LARGEST_GROUP)
    plain_starts = np.append(0, np.cumsum(sizes[is_plain]))
    yield Groups(keys[starts[is_plain]], plain_starts, documents[np.repeat(is_plain, sizes)])
    for group in np.flatnonzero(sizes > _LARGEST_GROUP).tolist():
        start, end = int(starts[group]), int(starts[group] + sizes[group])
        for first in range(start, end, _LARGEST_GROUP):
            yield _piece(keys[start], documents[start], documents[first : min(first + _LARGEST_GROUP, end)])


def _pieces_of_key(runs: Sequence[Path], lows: np.ndarray, highs: np.ndarray) -> Iterator[Groups]:
    """Yields the documents of a single key, which do not fit into memory together."""
    sizes = highs - lows
    starts = np.cumsum(sizes) - sizes
    leader = None
    for position in range(0, int(sizes.sum()), _LARGEST_GROUP):
        piece_lows, piece_highs = (
            lows + np.clip(end - starts, 0, sizes) for end in (position, position + _LARGEST_GROUP)
        )
        keys, documents = _read(runs, piece_lows, piece_highs)
        leader = documents[0] if leader is None else leader
        yield _piece(keys[0], leader, documents)


def _piece(key: np.uint64, leader: np.uint64, documents: np.ndarray) -> Groups:
    """A group of some of a key's documents, which begins with the key's first one."""
    if documents[0] != leader:
        documents = np.append(leader, documents)
    return Groups(np.array([key]), np.array([0, len(documents)]), documents)
