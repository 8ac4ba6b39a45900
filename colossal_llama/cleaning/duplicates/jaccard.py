"""Exact Jaccard index of pairs of documents, from their sets of shingles on disk."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from colossal_llama.cleaning.duplicates.document_index import DocumentIndex
from colossal_llama.cleaning.duplicates.minhash import minhash_values
from colossal_llama.cleaning.duplicates.shingles import Shingles, shingle_batches
from colossal_llama.utils.atomic_io import atomic_file

TextsOfChunk = Callable[[int], Sequence[str]]
_BATCH_SHINGLES = 1 << 19
_BATCH_PAIRS = 1 << 15
_LOW_BITS = np.uint64(32)


class ShingleSets:
    """Sets of shingles of some documents in a file, 4 bytes a shingle, and sketches in another.

    A sketch has one byte of each MinHash value of a document (Li and König 2010). It tells within a
    hundredth of the time that two documents are far from alike, as pages of one template are.
    In memory are three figures for each document: 20 bytes.
    """

    def __init__(self, path: Path, sizes: np.ndarray, lengths: np.ndarray, num_values: int):
        self._path = path
        self._starts = np.append(0, np.cumsum(sizes, dtype=np.int64))
        self._rows = np.cumsum(sizes > 0) - 1
        self._num_values = num_values
        self.lengths_characters = lengths

    @classmethod
    def write(
        cls, path: Path, index: DocumentIndex, is_needed: np.ndarray, texts_of: TextsOfChunk, num_values: int
    ) -> "ShingleSets":
        """Writes the sets and sketches of documents.

        Args:
            path: of the file of sets.
            index: of all documents.
            is_needed: True for the documents, by position; they have at least one shingle.
            texts_of: returns the texts of a chunk, in their order.
            num_values: MinHash values of a sketch.
        """
        sizes, lengths = np.zeros(len(index), dtype=np.int64), np.zeros(len(index), dtype=np.int32)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, durable=False) as file, atomic_file(_sketches(path), durable=False) as sketches:
            for chunk in range(index.num_chunks):
                needed = np.flatnonzero(is_needed[index.chunk(chunk)])
                if not len(needed):
                    continue
                texts = texts_of(chunk)
                chosen = [texts[position] for position in needed.tolist()]
                positions = needed + index.starts[chunk]
                lengths[positions] = list(map(len, chosen))
                sets = list(_sets(chosen))
                sizes[positions] = np.concatenate([shingles.counts for shingles in sets])
                for shingles in sets:
                    file.write(shingles.hashes.data)
                    sketches.write(minhash_values(shingles, num_values).astype(np.uint8).T.tobytes())
        return cls(path, sizes, lengths, num_values)

    def may_be_alike(self, left: np.ndarray, right: np.ndarray, min_similarity: float) -> np.ndarray:
        """Returns False for pairs whose sizes or sketches tell that they are less alike.

        Of pairs right at the limit, three standard deviations of the sketch's estimate leave 99.9%.
        """
        left_sizes, right_sizes = self.sizes(left), self.sizes(right)
        result = np.minimum(left_sizes, right_sizes) / np.maximum(left_sizes, right_sizes) >= min_similarity
        deviation = (min_similarity * (1 - min_similarity) / self._num_values) ** 0.5
        least = self._num_values * (min_similarity - 3 * deviation)
        pairs = np.flatnonzero(result)
        for start in range(0, len(pairs), _BATCH_PAIRS):
            batch = pairs[start : start + _BATCH_PAIRS]
            result[batch] = self._equal_values(left[batch], right[batch]) >= least
        return result

    def _equal_values(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        sketches = np.memmap(_sketches(self._path), np.uint8, "r").reshape(-1, self._num_values)
        return np.count_nonzero(sketches[self._rows[left]] == sketches[self._rows[right]], axis=1)

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


def _sets(texts: Sequence[str]) -> Iterator[Shingles]:
    """Yields the shingles of texts, some texts at a time, each shingle of a text once, in order."""
    for shingles in shingle_batches(texts):
        number = np.repeat(np.arange(len(shingles.counts), dtype=np.uint64), shingles.counts)
        keys = np.unique(number << _LOW_BITS | shingles.hashes)
        counts = np.bincount((keys >> _LOW_BITS).astype(np.int64), minlength=len(shingles.counts))
        yield Shingles(keys.astype(np.uint32), np.append(0, np.cumsum(counts)))


def _sketches(path: Path) -> Path:
    return path.with_suffix(".sketches")
