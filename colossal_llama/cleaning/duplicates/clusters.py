"""Clusters of documents that are linked by similar pairs, and the one of each that stays."""

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


def kept_of_clusters(members: np.ndarray, roots: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns which document stays instead of each member: the longest, then the first.

    Args:
        members: positions of documents in clusters.
        roots: the first document of each member's cluster.
        lengths: of the members.
    """
    order = np.lexsort((members, -lengths.astype(np.int64), roots))
    is_first = np.append(True, roots[order][1:] != roots[order][:-1])[: len(order)]
    kept = np.empty_like(members)
    kept[order] = members[order][is_first][np.cumsum(is_first) - 1]
    return kept
