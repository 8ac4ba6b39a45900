"""Positions of documents among those of all chunks, for arrays with one entry a document."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DocumentIndex:
    """Translates between a document's number (chunk and position in it) and its position among all.

    Attributes:
        starts: [chunks + 1], int64; position of each chunk's first document.
    """

    starts: np.ndarray

    @classmethod
    def of_chunks(cls, chunk_sizes: Sequence[int]) -> "DocumentIndex":
        """Makes the index from the number of documents of each chunk."""
        return cls(np.append(0, np.cumsum(np.asarray(chunk_sizes, dtype=np.int64))).astype(np.int64))

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def num_chunks(self) -> int:
        """Number of chunks."""
        return len(self.starts) - 1

    def positions(self, documents: np.ndarray) -> np.ndarray:
        """Returns the positions, int64, of documents given by number."""
        chunks = (documents >> np.uint64(32)).astype(np.int64)
        return self.starts[chunks] + (documents & np.uint64(0xFFFFFFFF)).astype(np.int64)

    def numbers(self, positions: np.ndarray) -> np.ndarray:
        """Returns the numbers, uint64, of documents given by position."""
        chunks = np.searchsorted(self.starts, positions, side="right") - 1
        return chunks.astype(np.uint64) << np.uint64(32) | (positions - self.starts[chunks]).astype(np.uint64)

    def chunk(self, chunk: int) -> slice:
        """Returns the positions of a chunk's documents."""
        return slice(int(self.starts[chunk]), int(self.starts[chunk + 1]))
