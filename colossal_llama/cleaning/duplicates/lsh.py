"""Locality-sensitive hashing: documents that agree in a band of MinHash values are candidates.

With `rows` values a band, two documents of Jaccard index J share a given band with the probability
J^rows, and at least one of `bands` with 1 - (1 - J^rows)^bands (Leskovec, Rajaraman and Ullman,
"Mining of Massive Datasets", section 3.4). What is found is compared exactly (`jaccard.py`), so
bands decide about what is missed, and about the time, alone.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from colossal_llama.cleaning import hash_runs
from colossal_llama.cleaning.duplicates.document_index import DocumentIndex
from colossal_llama.cleaning.duplicates.shingles import random_multipliers

_RECALL_AT_THRESHOLD = 0.99
_MOST_VALUES = 160
LOWEST_SIMILARITY = 0.5
"""Below, documents of other content become candidates, all with all."""


@dataclass(frozen=True)
class Banding:
    """Division of the values of a signature.

    Attributes:
        bands: number of bands.
        rows: values of a band.
    """

    bands: int
    rows: int

    @property
    def num_values(self) -> int:
        """Values of a signature."""
        return self.bands * self.rows


def banding_for(min_similarity: float) -> Banding:
    """Chooses the most selective bands that find 99% of the pairs at a Jaccard index.

    >>> banding_for(0.8)
    Banding(bands=20, rows=7)
    """
    for rows in range(_MOST_VALUES, 0, -1):
        share = min_similarity**rows
        bands = 1 if share == 1 else math.ceil(math.log(1 - _RECALL_AT_THRESHOLD) / math.log1p(-share))
        if bands * rows <= _MOST_VALUES:
            return Banding(bands, rows)
    raise ValueError(f"{_MOST_VALUES} values do not find pairs of similarity {min_similarity}")


def band_keys(signatures: np.ndarray, banding: Banding) -> np.ndarray:
    """Hashes the bands of signatures ([values, texts]): [texts, bands], uint64."""
    multipliers = random_multipliers(banding.num_values, "band")
    keys = np.empty((signatures.shape[1], banding.bands), dtype=np.uint64)
    for band in range(banding.bands):
        rows = slice(band * banding.rows, (band + 1) * banding.rows)
        keys[:, band] = (signatures[rows] * multipliers[rows, None]).sum(axis=0, dtype=np.uint64)
        keys[:, band] += multipliers[band]  # the same values in another band are no agreement
    return keys


@dataclass(frozen=True)
class Buckets:
    """Documents that share a band, buckets end to end.

    Attributes:
        positions: of the documents among all, ascending within a bucket, int64.
        buckets: number of the bucket of each, ascending, int64.
    """

    positions: np.ndarray
    buckets: np.ndarray


def read_buckets(directory: Path, index: DocumentIndex, is_dropped: np.ndarray, memory_bytes: int) -> Iterator[Buckets]:
    """Yields the buckets of two documents and more, without documents that are dropped already."""
    for groups in hash_runs.groups(directory, memory_bytes):
        positions = index.positions(groups.documents)
        stays = ~is_dropped[positions]
        positions, buckets = positions[stays], np.repeat(np.arange(len(groups.keys)), groups.sizes)[stays]
        is_shared = np.bincount(buckets, minlength=len(groups.keys))[buckets] > 1
        yield Buckets(positions[is_shared], buckets[is_shared])
