"""Clusters of documents that are linked by similar pairs, and the one of each that stays."""

from dataclasses import dataclass

import numpy as np


class Clusters:
    """Connected components of a growing graph; the root of each is its first document."""

    def __init__(self, size: int):
        self._parent = np.arange(size)

    def roots(self, positions: np.ndarray) -> np.ndarray:
        """Returns the first document of the cluster of each document."""
        roots = self._parent[positions]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                self._parent[positions] = roots
                return roots
            roots = above

    def link(self, left: np.ndarray, right: np.ndarray) -> None:
        """Joins the clusters of each pair of documents."""
        while len(left):
            left, right = self.roots(left), self.roots(right)
            is_apart = left != right
            left, right = left[is_apart], right[is_apart]
            # Several links of one root: the lowest wins, the others are tried again.
            np.minimum.at(self._parent, np.maximum(left, right), np.minimum(left, right))


@dataclass(frozen=True)
class RankedMembers:
    """Members of clusters, cluster by cluster; in each the longest document first, then the first.

    Attributes:
        positions: of the documents, int64.
        starts: for each member the index of the first of its cluster, which stays.
        ends: for each member the index behind the last of its cluster.
    """

    positions: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """For each member the document of its cluster that stays."""
        return self.positions[self.starts]


def rank_members(positions: np.ndarray, roots: np.ndarray, lengths: np.ndarray) -> RankedMembers:
    """Ranks documents within their clusters.

    Args:
        positions: of the documents.
        roots: the first document of each one's cluster.
        lengths: of the documents.
    """
    order = np.lexsort((positions, -lengths.astype(np.int64), roots))
    firsts = np.flatnonzero(np.append(True, roots[order][1:] != roots[order][:-1])[: len(order)])
    sizes = np.diff(np.append(firsts, len(order)))
    return RankedMembers(positions[order], np.repeat(firsts, sizes), np.repeat(firsts + sizes, sizes))
