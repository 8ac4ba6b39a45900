"""The files under cache/: each chunk's tokens and segments, written when it is done, and the plan of the parts.

cache/chunks/chunk-00000.tokens     marked ids of all segments, int32
cache/chunks/chunk-00000.segments   one SEGMENT record each
cache/chunks/chunk-00000.rejected   the bad records, jsonl (only where there are any)
cache/chunks/chunk-00000.json       counts; written last: it says that the chunk is done
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
from colossal_llama.utils.atomic_io import fsync_path, temporary_path, write_bytes
from colossal_llama.utils.errors import UserError


class ChunkWriter:
    """Writes a chunk's files batch by batch; `finish` makes the chunk count as done."""

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

    def add(self, samples: TokenizedBatch) -> None:
        """Appends what a batch of records became."""
        self._tokens_file.write(samples.tokens.data)
        self._tokens += len(samples.tokens)
        numbers = [self._categories.setdefault(name, len(self._categories)) for name in samples.categories]
        segments = samples.segments.copy()
        segments["category"] = np.array(numbers, np.int32)[segments["category"]] if len(segments) else 0
        segments["document"] += self._documents
        self._segments.append(segments)
        self._documents += samples.documents
        for name, counter in samples.statistics.items():
            self._statistics.setdefault(name, Counter()).update(counter)

    def finish(self, facts: dict, rejected: Sequence[dict]) -> dict:
        """Closes the files and returns the chunk's facts, with what is counted here added to those given."""
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
        """Removes what was written."""
        self._tokens_file.close()
        self._temporary.unlink(missing_ok=True)


def chunk_facts(directory: Path, index: int) -> dict | None:
    """The facts of a finished chunk, None while it is not finished."""
    try:
        return json.loads((directory / f"chunk-{index:05d}.json").read_bytes())
    except FileNotFoundError:
        return None


def chunk_rejected(directory: Path, index: int) -> list[dict]:
    """The bad records of a finished chunk; their line numbers count within the chunk from 0."""
    path = directory / f"chunk-{index:05d}.rejected"
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.is_file() else []


def chunk_segments(directory: Path, index: int) -> np.ndarray:
    """The segments of a finished chunk, of dtype SEGMENT."""
    return np.fromfile(directory / f"chunk-{index:05d}.segments", SEGMENT)


class TokenStore:
    """Reads marked tokens by their position in all chunks.

    By plain reads, not through memory maps: a map of scattered short documents brings 64 KiB into
    memory for each of them (900 MB in a worker on a 1.2 GB corpus).
    """

    def __init__(self, directory: Path, chunk_starts: np.ndarray):
        """Args:
        directory: of the chunks.
        chunk_starts: (chunks + 1,) position of each chunk's first token among all tokens, and
            their number.
        """
        self._directory, self._chunk_starts = directory, chunk_starts

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The tokens of segments, one after the other.

        Args:
            starts: (segments,) position of each among all tokens.
            lengths: (segments,) in tokens.
        """
        ends = np.cumsum(lengths, dtype=np.int64)
        tokens = np.empty(int(ends[-1]) if len(ends) else 0, np.int32)
        buffer = memoryview(tokens).cast("B") if len(tokens) else memoryview(b"")
        chunks = np.searchsorted(self._chunk_starts, starts, side="right") - 1
        order = np.argsort(starts, kind="stable")  # so that every chunk is opened once
        borders = np.flatnonzero(np.diff(chunks[order])) + 1
        for group in np.split(order, borders) if len(order) else []:
            chunk = int(chunks[group[0]])
            with (self._directory / f"chunk-{chunk:05d}.tokens").open("rb", buffering=0) as file:
                offsets = 4 * (starts[group] - self._chunk_starts[chunk])
                places, sizes = 4 * (ends[group] - lengths[group]), 4 * lengths[group].astype(np.int64)
                for place, size, offset in zip(places.tolist(), sizes.tolist(), offsets.tolist(), strict=True):
                    if os.preadv(file.fileno(), [buffer[place : place + size]], offset) != size:
                        raise UserError(
                            f"{file.name} is shorter than it was when it was written: start afresh with --overwrite"
                        )
        return tokens


@dataclass(frozen=True)
class PartPlan:
    """Which segments each part takes.

    Attributes:
        starts, lengths, categories: for every segment, in the order of the parts (inside a part by category, then length):
            position among all tokens, tokens, category number.
        first_of_document: for every segment whether it begins its document.
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
        """Writes the arrays for the workers, which map them."""
        directory.mkdir(parents=True, exist_ok=True)
        for name in self.__dataclass_fields__:
            temporary = temporary_path(directory / f"{name}.npy")
            with temporary.open("wb") as file:  # given a name, np.save would add .npy to it
                np.save(file, getattr(self, name))
            temporary.replace(directory / f"{name}.npy")

    @classmethod
    def load(cls, directory: Path) -> "PartPlan":
        """Maps the arrays that `save` wrote."""
        return cls(*(np.load(directory / f"{name}.npy", mmap_mode="r") for name in cls.__dataclass_fields__))
