"""Distributes documents over parts, so that each has the whole mixture of categories."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from colossal_llama.dataset.prepare.cache import PartPlan, chunk_segments


def assign_bins(categories: np.ndarray, num_bins: int) -> np.ndarray:
    """Assigns the documents of every category to the bins round-robin.

    Bin sizes differ by at most one document in every category. A category begins where the previous
    one ended, so that the bins' total sizes differ by at most one document as well:

        documents   a0 a1 a2 b0 b1      3 bins
        bins         0  1  2  0  1      (with a fourth `a` in bin 0, b0 would go to bin 1)

    Args:
        categories: (documents,) category number of each document, in input order.
        num_bins: number of bins.

    Returns:
        int32 (documents,), bin of each document.
    """
    by_category = np.argsort(categories, kind="stable")
    bins = np.empty(len(categories), np.int32)
    bins[by_category] = np.arange(len(categories)) % num_bins
    return bins


@dataclass(frozen=True)
class Segments:
    """All segments of a preparation, in the order of the input.

    Attributes:
        lengths: (segments,) tokens of each.
        documents: (segments,) number of its document.
        categories: (segments,) number of its category.
        chunk_starts: see `TokenStore`.
    """

    lengths: np.ndarray
    documents: np.ndarray
    categories: np.ndarray
    chunk_starts: np.ndarray

    @property
    def is_first(self) -> np.ndarray:
        """True where a segment begins its document."""
        return np.concatenate([[True], np.diff(self.documents) != 0])

    @property
    def starts(self) -> np.ndarray:
        """Position of each segment among the tokens of all chunks."""
        return np.cumsum(self.lengths, dtype=np.int64) - self.lengths


def read_segments(chunk_dir: Path, facts: Sequence[dict], categories: Sequence[str]) -> Segments:
    """Reads the segments of all chunks.

    Args:
        chunk_dir: of the finished chunks.
        facts: of all chunks.
        categories: names of all categories, by number.
    """
    number_of = {name: number for number, name in enumerate(categories)}
    tables, first_document = [], 0
    for fact in facts:
        segments = chunk_segments(chunk_dir, fact["index"])
        numbers = np.array([number_of[name] for name in fact["categories"]], np.int32)
        segments["category"] = numbers[segments["category"]] if len(segments) else 0
        segments["document"] += first_document
        first_document += fact["documents"]
        tables.append(segments)
    segments = np.concatenate(tables)
    lengths, documents, numbers = (np.ascontiguousarray(segments[name]) for name in segments.dtype.names or ())
    return Segments(lengths, documents, numbers, np.cumsum([0, *(fact["tokens"] for fact in facts)]))


def plan_parts(segments: Segments, num_bins: int) -> PartPlan:
    """Assigns all documents to parts; orders a part's segments by category, length, then position.

    Args:
        segments: of all chunks.
        num_bins: number of parts.
    """
    first_of_document = segments.is_first
    bins = assign_bins(segments.categories[first_of_document], num_bins)[segments.documents]
    order = np.lexsort((segments.lengths, segments.categories, bins))
    return PartPlan(
        starts=segments.starts[order],
        lengths=segments.lengths[order],
        categories=segments.categories[order],
        first_of_document=first_of_document[order],
        part_starts=np.searchsorted(bins[order], np.arange(num_bins + 1)),
        chunk_starts=segments.chunk_starts,
    )
