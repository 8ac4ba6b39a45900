"""Reads and writes the files under cache/: tokens and segments of chunks, and the part plan.

cache/chunks/chunk-00000.tokens     flagged ids of all segments, int32
cache/chunks/chunk-00000.segments   one SEGMENT record each
cache/chunks/chunk-00000.rejected   the bad records, jsonl (only where there are any)
cache/chunks/chunk-00000.json       counts; written last: the chunk is finished
cache/plan/*.npy                    all segments in the order in which the parts take them
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from colossal_llama.dataset.tokenization import SEGMENT, TokenizedBatch
from colossal_llama.utils.atomic_io import atomic_file, fsync_path, temporary_path, write_bytes
from colossal_llama.utils.errors import UserError


class ChunkWriter:
    """Writes a chunk's files batch by batch; `finish` completes the chunk."""

    def __init__(self, directory: Path, index: int):
        directory.mkdir(parents=True, exist_ok=True)
        self._base = directory / f"chunk-{index:05d}"
        self._tokens_path = self._base.with_suffix(".tokens")
        self._temporary = temporary_path(self._tokens_path)
        self._tokens_file = self._temporary.open("wb")
        self._segments: list[np.ndarray] = []
        self._categories: dict[str, int] = {}
        self._statistics: dict[str, Counter] = {}
        self._documents = self._tokens = 0

    def add(self, batch: TokenizedBatch) -> None:
        """Appends a tokenized batch."""
        self._tokens_file.write(batch.tokens.data)
        self._tokens += len(batch.tokens)
        numbers = [self._categories.setdefault(name, len(self._categories)) for name in batch.categories]
        segments = batch.segments.copy()
        segments["category"] = np.array(numbers, np.int32)[segments["category"]] if len(segments) else 0
        segments["document"] += self._documents
        self._segments.append(segments)
        self._documents += batch.documents
        for name, counter in batch.statistics.items():
            self._statistics.setdefault(name, Counter()).update(counter)

    def finish(self, facts: dict, rejected: Sequence[dict]) -> dict:
        """Completes the files; returns the given facts of the chunk with the writer's counts."""
        self._tokens_file.close()
        fsync_path(self._temporary)
        self._temporary.replace(self._tokens_path)
        segments = np.concatenate(self._segments) if self._segments else np.empty(0, SEGMENT)
        write_bytes(self._base.with_suffix(".segments"), segments.tobytes())
        if rejected:
            lines = b"".join(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in rejected)
            write_bytes(self._base.with_suffix(".rejected"), lines)
        facts = {
            **facts,
            "documents": self._documents,
            "segments": len(segments),
            "tokens": self._tokens,
            "categories": list(self._categories),
            "statistics": {name: dict(counter) for name, counter in self._statistics.items()},
        }
        write_bytes(self._base.with_suffix(".json"), orjson.dumps(facts))
        return facts

    def discard(self) -> None:
        """Removes unfinished files."""
        self._tokens_file.close()
        self._temporary.unlink(missing_ok=True)


def chunk_facts(directory: Path, index: int) -> dict | None:
    """Facts of a finished chunk; None for an unfinished one."""
    try:
        return json.loads((directory / f"chunk-{index:05d}.json").read_bytes())
    except FileNotFoundError:
        return None


def chunk_rejected(directory: Path, index: int) -> list[dict]:
    """Bad records of a finished chunk; their row numbers count within the chunk from 0."""
    path = directory / f"chunk-{index:05d}.rejected"
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.is_file() else []


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
            with (self._directory / f"chunk-{chunk:05d}.tokens").open("rb", buffering=0) as file:
                offsets = 4 * (starts[group] - self._chunk_starts[chunk])
                targets, sizes = 4 * (ends[group] - lengths[group]), 4 * lengths[group].astype(np.int64)
                for target, size, offset in zip(targets.tolist(), sizes.tolist(), offsets.tolist(), strict=True):
                    if os.preadv(file.fileno(), [buffer[target : target + size]], offset) != size:
                        raise UserError(
                            f"{file.name} is shorter than it was when it was written: start afresh with --overwrite"
                        )
        return tokens


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

    def save(self, directory: Path) -> None:
        """Writes the arrays atomically; the workers map them, and a resumed run trusts them."""
        directory.mkdir(parents=True, exist_ok=True)
        for name in self.__dataclass_fields__:
            with atomic_file(directory / f"{name}.npy") as file:
                np.save(file, getattr(self, name))

    @classmethod
    def is_saved(cls, directory: Path) -> bool:
        """True when all arrays have been saved."""
        return all((directory / f"{name}.npy").is_file() for name in cls.__dataclass_fields__)

    @classmethod
    def load(cls, directory: Path) -> "PartPlan":
        """Maps the arrays that `save` wrote."""
        return cls(*(np.load(directory / f"{name}.npy", mmap_mode="r") for name in cls.__dataclass_fields__))
