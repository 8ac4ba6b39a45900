"""Mean initialisation: new embedding rows as means of existing ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from colossal_llama.model.weights.stored_tensors import StoredTensor

InitMethod = Literal["mean", "norm_matched_mean"]
# 256 rows of about four constituents at width 4,096 are 16 MB of float32; larger blocks were not
# faster.
_ROWS_PER_BLOCK = 256


@dataclass(frozen=True)
class Constituents:
    """Source ids whose rows each new row is the mean of, flat.

    With 你好 → [30919, 31076] and 人工智能 → [30313, 31041, 31676, 30815]:

        ids      30919 31076 | 30313 31041 31676 30815
        offsets  0             2                         6

    Attributes:
        ids: int64 [total number of constituents].
        offsets: int64 [new rows + 1]; row i has ids[offsets[i]:offsets[i + 1]], which may
            be none.
    """

    ids: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, rows: list[list[int]]) -> "Constituents":
        """Flattens one list of source ids per new row."""
        flat = np.array([index for ids in rows for index in ids], np.int64)
        return cls(flat, np.cumsum([0, *map(len, rows)], dtype=np.int64))

    @property
    def lengths(self) -> np.ndarray:
        """int64 [new rows]: the number of constituents of each row."""
        return np.diff(self.offsets)


def mean_rows(
    matrix: StoredTensor, constituents: Constituents, method: InitMethod, default: np.ndarray
) -> Iterator[np.ndarray]:
    """Yields the new rows in blocks of 256, float32 (float64 for a matrix of float64).

    `mean` is the arithmetic mean, as published. Vectors that point in different directions partly
    cancel: the mean of n independent ones of norm r has the norm r / sqrt(n). `norm_matched_mean`
    keeps the mean's direction and rescales it to the average norm of the constituents. A new row is
    then as long as the rows the model knows.

    Args:
        matrix: source rows [source rows, width].
        constituents: of each new row; ids are rows of `matrix`.
        method: `mean` or `norm_matched_mean`.
        default: [width], the row of a token without constituents.
    """
    for begin in range(0, len(constituents.lengths), _ROWS_PER_BLOCK):
        offsets = constituents.offsets[begin : begin + _ROWS_PER_BLOCK + 1]
        used, positions = np.unique(constituents.ids[offsets[0] : offsets[-1]], return_inverse=True)
        rows, lengths = matrix.gather(used), np.diff(offsets)
        means = np.empty((len(lengths), rows.shape[1]), rows.dtype)
        means[lengths == 0] = default
        some = lengths > 0
        if some.any():
            means[some] = _bag_means(rows, positions, lengths[some])
            if method == "norm_matched_mean":
                norms = _bag_means(np.linalg.norm(rows, axis=1, keepdims=True), positions, lengths[some])
                shrunk = np.linalg.norm(means[some], axis=1, keepdims=True)
                means[some] *= norms / np.maximum(shrunk, np.finfo(means.dtype).tiny)
        yield means


def _bag_means(rows: np.ndarray, positions: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Averages rows[positions] in consecutive groups of the given lengths; no length is 0."""
    sums = np.add.reduceat(rows[positions], np.cumsum(lengths) - lengths, axis=0)
    return sums / lengths[:, None].astype(rows.dtype)


@dataclass
class RowStatistics:
    """Running sums over rows that arrive in blocks, in float64."""

    count: int = 0
    summed_norms: float = 0.0
    summed_rows: np.ndarray | float = 0.0

    def add(self, rows: np.ndarray) -> None:
        """Adds a block [rows, width]."""
        self.count += len(rows)
        self.summed_norms += float(np.linalg.norm(rows, axis=1).sum(dtype=np.float64))
        self.summed_rows = self.summed_rows + rows.sum(axis=0, dtype=np.float64)

    @property
    def average_norm(self) -> float:
        """Average Euclidean norm, 0 for no rows."""
        return self.summed_norms / max(1, self.count)

    @property
    def mean(self) -> np.ndarray:
        """Mean of all rows, float64 [width]."""
        return np.asarray(self.summed_rows / max(1, self.count))
