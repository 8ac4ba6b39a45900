"""Reads and writes the files under cache/: tokens and segments of chunks, and the part plan.

cache/chunks/chunk-00000.tokens     flagged ids of all segments, int32
cache/chunks/chunk-00000.segments   one SEGMENT record each
cache/chunks/chunk-00000.rejected   the bad records, jsonl (only where there are any)
cache/chunks/chunk-00000.json       counts; written last: the chunk is finished
cache/plan/*.npy                    all segments in the order in which the parts take them
cache/plan/plan.json                checksum of the arrays; written last

The files of a chunk are not flushed to the disk: 50,000 small chunks would wait for 300,000
flushes. A killed process needs none. A loss of power may leave a file empty or cut off under its
final name; its checksum in the chunk's record tells, and the chunk is made anew.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import orjson

from colossal_llama.dataset.tokenization import SEGMENT, TokenizedBatch
from colossal_llama.readers.unread_keys import bound_names
from colossal_llama.utils.atomic_io import atomic_file, temporary_path, write_bytes, write_json
from colossal_llama.utils.checked_json import DamagedJsonError, has_checksum, read_checked, with_checksum
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.fingerprint import fingerprint_bytes, fingerprint_file

_CHUNK_SHAPE = {
    "index": int,
    "rows": int,
    "records": int,
    "empty_lines": int,
    "rejected_records": dict,
    "documents": int,
    "segments": int,
    "tokens": int,
    "categories": [str],
    "statistics": dict,
}


class ChunkWriter:
    """Writes a chunk's files batch by batch; `finish` completes the chunk.

    Attributes:
        documents: written so far.
        tokens: of these.
    """

    def __init__(self, directory: Path, index: int):
        directory.mkdir(parents=True, exist_ok=True)
        self._base = directory / f"chunk-{index:05d}"
        self._files = {name: GrowingFile(self._base.with_suffix(f".{name}")) for name in ("tokens", "segments")}
        self._categories: dict[str, int] = {}
        self._statistics: dict[str, Counter] = {}
        self.documents = self._segments = self.tokens = 0

    def add(self, batch: TokenizedBatch) -> None:
        """Appends a tokenized batch."""
        self._files["tokens"].write(batch.tokens.data)
        self.tokens += len(batch.tokens)
        numbers = [self._categories.setdefault(name, len(self._categories)) for name in batch.categories]
        segments = batch.segments.copy()
        segments["category"] = np.array(numbers, np.int32)[segments["category"]] if len(segments) else 0
        segments["document"] += self.documents
        self._files["segments"].write(segments.data)
        self._segments += len(segments)
        self.documents += batch.documents
        for name, counter in batch.statistics.items():
            self._statistics.setdefault(name, Counter()).update(counter)
            bound_names(self._statistics[name])

    def add_rejected(self, records: Sequence[dict]) -> None:
        """Appends bad records."""
        if records and "rejected" not in self._files:
            self._files["rejected"] = GrowingFile(self._base.with_suffix(".rejected"))
        for record in records:
            self._files["rejected"].write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))

    def finish(self, facts: dict) -> dict:
        """Completes the files; returns the given facts of the chunk with the writer's counts."""
        files_sha256 = {name: file.finish() for name, file in self._files.items()}
        facts = {
            **facts,
            "documents": self.documents,
            "segments": self._segments,
            "tokens": self.tokens,
            "categories": list(self._categories),
            "statistics": {name: dict(counter) for name, counter in self._statistics.items()},
            "files_sha256": files_sha256,
        }
        write_bytes(self._base.with_suffix(".json"), orjson.dumps(with_checksum(facts)), durable=False)
        return facts

    def discard(self) -> None:
        """Removes unfinished files."""
        for file in self._files.values():
            file.discard()


class Digest(Protocol):
    """A hash of `hashlib` or of xxhash."""

    def update(self, data: Any, /) -> None:
        """Adds bytes."""

    def hexdigest(self) -> str:
        """The hash so far."""


class GrowingFile:
    """A file that is written piece by piece, and gets its name when it is whole."""

    def __init__(self, target: Path, digest: Digest | None = None):
        """Begins the file.

        Args:
            target: its name in the end.
            digest: takes its bytes; SHA-256 by default.
        """
        self._target, self._temporary = target, temporary_path(target)
        self._file, self._digest = self._temporary.open("wb"), digest or hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        """Appends bytes."""
        self._file.write(data)
        self._digest.update(data)

    def finish(self) -> str:
        """Renames the file; returns the hash of its content."""
        self._file.close()
        self._temporary.replace(self._target)
        return self._digest.hexdigest()

    def discard(self) -> None:
        """Removes the file, unless it is finished."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def chunk_facts(directory: Path, index: int) -> dict | None:
    """Facts of a finished chunk; None for an unfinished one.

    A chunk of an earlier version is one range, whose number of rows and SHA-256 are the chunk's.

    Raises:
        DamagedJsonError: its record is not what was written.
    """
    path = directory / f"chunk-{index:05d}.json"
    try:
        facts = read_checked(path, _CHUNK_SHAPE)
    except FileNotFoundError:
        return None
    if facts["index"] != index:
        raise DamagedJsonError(path, f"is that of chunk {facts['index']}")
    if not {"pieces", "sha256"} & facts.keys():
        raise DamagedJsonError(path, "lacks the checksums of the input")
    return {"pieces": [(facts["rows"], facts.get("sha256"))], **facts}


def chunk_problem(directory: Path, index: int, num_pieces: int) -> str | None:
    """Names what has changed of a finished chunk since it was written; None where it is whole.

    Of a chunk of an earlier version, without checksums, sizes alone are compared.

    Args:
        directory: of the chunks.
        index: of the chunk.
        num_pieces: number of the ranges that it reads.
    """
    try:
        facts = chunk_facts(directory, index)
    except DamagedJsonError as error:
        return f"{_chunk_file(index, 'json')} {error.reason}"
    if facts is None:
        return None
    if len(facts["pieces"]) != num_pieces:
        return f"{_chunk_file(index, 'json')} is that of other ranges of the input"
    sizes = {"tokens": 4 * facts["tokens"], "segments": SEGMENT.itemsize * facts["segments"]}
    names = [*sizes, "rejected"] if facts["rejected_records"] else sizes
    for name in names:
        path = directory / _chunk_file(index, name)
        if not path.is_file():
            return f"{path.name} is missing"
        try:
            if name in sizes and path.stat().st_size != sizes[name]:
                return f"{path.name} has another length than it was written with"
            if has_checksum(facts) and fingerprint_file(path) != facts["files_sha256"][name]:
                return f"{path.name} has changed since it was written"
        except FileNotFoundError:  # another shard's job empties the cache
            return f"{path.name} is missing"
    return None


def remove_chunk(directory: Path, index: int) -> None:
    """Removes a chunk, its record first, so that it is made anew."""
    for name in ("json", "tokens", "segments", "rejected"):
        remove_own(directory / _chunk_file(index, name))


def _chunk_file(index: int, suffix: str) -> str:
    return f"chunk-{index:05d}.{suffix}"


def remove_own(path: Path) -> None:
    """Removes a file that these scripts wrote; a directory in its place only where it is empty.

    Raises:
        UserError: it is a directory that holds something.
    """
    try:
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path} is in the way and cannot be removed ({error.strerror}): move it away") from error


def chunk_rejected(directory: Path, index: int) -> Iterator[dict]:
    """Bad records of a finished chunk; their row numbers count within the chunk from 0."""
    with suppress(FileNotFoundError), (directory / _chunk_file(index, "rejected")).open("rb") as file:
        yield from map(orjson.loads, file)


def chunk_segments(directory: Path, index: int) -> np.ndarray:
    """Segments of a finished chunk, of dtype SEGMENT."""
    return np.fromfile(directory / f"chunk-{index:05d}.segments", SEGMENT)


class TokenStore:
    """Reads flagged tokens by their position among the tokens of all chunks.

    Reads files instead of mapping them: a memory map of scattered short documents loads 64 KiB for
    each of them (900 MB in a worker on a 1.2 GB corpus).
    """

    def __init__(self, directory: Path, chunk_starts: np.ndarray):
        """Locates the chunks.

        Args:
            directory: of the chunks.
            chunk_starts: (chunks + 1,) position of each chunk's first token among all tokens, and
                the number of all tokens.
        """
        self._directory, self._chunk_starts = directory, chunk_starts

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Gathers the tokens of segments, one after the other.

        Args:
            starts: (segments,) position of each among all tokens.
            lengths: (segments,) length of each in tokens.
        """
        ends = np.cumsum(lengths, dtype=np.int64)
        tokens = np.empty(int(ends[-1]) if len(ends) else 0, np.int32)
        buffer = memoryview(tokens.data).cast("B") if len(tokens) else memoryview(b"")
        chunks = np.searchsorted(self._chunk_starts, starts, side="right") - 1
        order = np.argsort(starts, kind="stable")  # every chunk is opened once
        boundaries = np.flatnonzero(np.diff(chunks[order])) + 1
        for group in np.split(order, boundaries) if len(order) else []:
            chunk = int(chunks[group[0]])
            with _opened(self._directory / _chunk_file(chunk, "tokens")) as file:
                offsets = 4 * (starts[group] - self._chunk_starts[chunk])
                targets, sizes = 4 * (ends[group] - lengths[group]), 4 * lengths[group].astype(np.int64)
                for target, size, offset in zip(targets.tolist(), sizes.tolist(), offsets.tolist(), strict=True):
                    if os.preadv(file.fileno(), [buffer[target : target + size]], offset) != size:
                        raise UserError(
                            f"{file.name} is shorter than it was when it was written: run the same command again, "
                            "which makes it anew"
                        )
        return tokens


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb", buffering=0)
    except FileNotFoundError:
        raise UserError(f"{path} has gone: run the same command again, which makes it anew") from None


@dataclass(frozen=True)
class PartPlan:
    """Assignment of all segments to parts.

    Segments are in the order of the parts, inside a part by category, then length.

    Attributes:
        starts: (segments,) position of each segment among the tokens of all chunks.
        lengths: (segments,) length of each in tokens.
        categories: (segments,) category number of each.
        first_of_document: (segments,) True where a segment begins its document.
        part_starts: (parts + 1,) segments of part i are part_starts[i] to part_starts[i + 1].
        chunk_starts: see `TokenStore`.
    """

    starts: np.ndarray
    lengths: np.ndarray
    categories: np.ndarray
    first_of_document: np.ndarray
    part_starts: np.ndarray
    chunk_starts: np.ndarray

    def save(self, directory: Path, record: dict | None = None) -> None:
        """Writes the arrays and their checksum atomically; the workers map them.

        Args:
            directory: of the plan.
            record: of the mixture that it has, see `mixture.plan_record`; None without one.
        """
        directory.mkdir(parents=True, exist_ok=True)
        for name in self.__dataclass_fields__:
            with atomic_file(directory / f"{name}.npy") as file:
                np.save(file, getattr(self, name))
        mixture = {} if record is None else {"mixture": record}
        write_json(directory / "plan.json", with_checksum({"plan_sha256": self.fingerprint(), **mixture}))

    @classmethod
    def load(cls, directory: Path) -> "PartPlan":
        """Maps the arrays that `save` wrote.

        Raises:
            UserError: one of them cannot be read.
        """
        try:
            return cls(*(np.load(directory / f"{name}.npy", mmap_mode="r") for name in cls.__dataclass_fields__))
        except Exception as error:  # NumPy raises what its several parsers of a damaged header raise
            raise UserError(f"{directory} cannot be read ({error})") from error

    def fingerprint(self) -> str:
        """SHA-256 of the content of all arrays."""
        arrays = [getattr(self, name) for name in self.__dataclass_fields__]
        return fingerprint_bytes(*(part for array in arrays for part in (array.dtype.str.encode(), _bytes_of(array))))


def _bytes_of(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).view(np.uint8).data


def saved_plan(directory: Path, chunk_starts: np.ndarray) -> tuple[PartPlan | None, str | None]:
    """Opens the plan in a directory, if there is one, and compares it with its checksum.

    Args:
        directory: of the plan.
        chunk_starts: what it must say about the chunks, see `TokenStore`.

    Returns:
        The plan, and what is wrong with it; both None where none was saved. A plan of an earlier
        version, without a checksum, is taken as it is.
    """
    present = [directory / f"{name}.npy" for name in PartPlan.__dataclass_fields__]
    record = directory / "plan.json"
    if not any(path.exists() for path in present) or not (record.exists() or all(path.exists() for path in present)):
        return None, None  # killed before it was saved
    try:
        plan = PartPlan.load(directory)
        recorded = read_checked(record, {"plan_sha256": str})["plan_sha256"] if record.exists() else None
    except UserError as error:
        return None, str(error)
    if recorded not in (None, plan.fingerprint()):
        return None, f"{directory} has changed since it was written"
    if not np.array_equal(plan.chunk_starts, chunk_starts):
        return None, f"{directory} was made of other chunks"
    return plan, None


def saved_plan_record(directory: Path) -> dict | None:
    """Record of the mixture of a plan that `saved_plan` has opened; None without one."""
    try:
        return read_checked(directory / "plan.json", {}).get("mixture")
    except FileNotFoundError:  # a plan of an earlier version
        return None
