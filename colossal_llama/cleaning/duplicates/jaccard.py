"""Exact Jaccard index of pairs of documents, from their sets of shingles on disk."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from colossal_llama.cleaning.duplicates.document_index import DocumentIndex
from colossal_llama.cleaning.duplicates.shingles import shingle_batches
from colossal_llama.utils.atomic_io import atomic_file

TextsOfChunk = Callable[[int], Sequence[str]]
_BATCH_SHINGLES = 1 << 19
_LOW_BITS = np.uint64(32)


class ShingleSets:
    """Sets of shingles of some documents in a file, 4 bytes a shingle.

    In memory are two figures for each document: 12 bytes.
    """

    def __init__(self, path: Path, sizes: np.ndarray, lengths: np.ndarray):
        self._path = path
        self._starts = np.append(0, np.cumsum(sizes, dtype=np.int64))
        self.lengths_characters = lengths

    @classmethod
    def write(cls, path: Path, index: DocumentIndex, is_needed: np.ndarray, texts_of: TextsOfChunk) -> "ShingleSets":
        """Writes the sets of documents.

        Args:
            path: of the file.
            index: of all documents.
            is_needed: True for the documents, by position.
            texts_of: returns the texts of a chunk, in their order.
        """
        sizes, lengths = np.zeros(len(index), dtype=np.int64), np.zeros(len(index), dtype=np.int32)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, durable=False) as file:
            for chunk in range(index.num_chunks):
                needed = np.flatnonzero(is_needed[index.chunk(chunk)])
                if not len(needed):
                    continue
                texts = texts_of(chunk)
                chosen = [texts[position] for position in needed.tolist()]
                positions = needed + index.starts[chunk]
                lengths[positions] = list(map(len, chosen))
                sets = list(_sets(chosen))
                sizes[positions] = np.concatenate([counts for counts, _ in sets])
                for _, shingles in sets:
                    file.write(shingles.tobytes())
        return cls(path, sizes, lengths)

    def sizes(self, positions: np.ndarray) -> np.ndarray:
        """Returns the number of different shingles of documents."""
        return self._starts[positions + 1] - self._starts[positions]

    def similarities(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Returns the Jaccard index of each pair of documents, float64, given by position."""
        result = np.empty(len(left))
        sums = np.cumsum(self.sizes(left) + self.sizes(right))
        with self._path.open("rb") as file:
            begin = 0
            while begin < len(left):
                before = sums[begin - 1] if begin else 0
                end = max(int(np.searchsorted(sums, before + _BATCH_SHINGLES)), begin + 1)
                result[begin:end] = self._batch(file.fileno(), left[begin:end], right[begin:end])
                begin = end
        return result

    def _batch(self, descriptor: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        positions, used = np.unique(np.append(left, right), return_inverse=True)
        sizes = self.sizes(positions)
        sets = np.empty(int(sizes.sum()), dtype=np.uint32)
        starts = np.cumsum(sizes) - sizes
        for start, size, offset in zip(starts.tolist(), sizes.tolist(), self._starts[positions].tolist(), strict=True):
            sets[start : start + size] = np.frombuffer(os.pread(descriptor, 4 * size, 4 * offset), dtype=np.uint32)
        counts = sizes[used]
        pairs = np.tile(np.arange(len(left), dtype=np.uint64), 2)
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        keys = np.repeat(pairs << _LOW_BITS, counts) | sets[np.repeat(starts[used], counts) + within]
        keys.sort()
        common = np.bincount((keys[1:][keys[1:] == keys[:-1]] >> _LOW_BITS).astype(np.int64), minlength=len(left))
        return common / np.maximum(counts[: len(left)] + counts[len(left) :] - common, 1)


def _sets(texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields, for some texts at a time, the sizes of their sets and the sets end to end."""
    for shingles in shingle_batches(texts):
        number = np.repeat(np.arange(len(shingles.counts), dtype=np.uint64), shingles.counts)
        keys = np.unique(number << _LOW_BITS | shingles.hashes)
        counts = np.bincount((keys >> _LOW_BITS).astype(np.int64), minlength=len(shingles.counts))
        yield counts, keys.astype(np.uint32)
