"""Distributes documents over bins, so that every bucket has the whole mixture."""

import numpy as np


def assign_bins(categories: np.ndarray, num_bins: int) -> np.ndarray:
    """Deals the documents of every category to the bins in turn, like cards.

    Bin sizes differ by at most one document in every category. The deal of a category begins where that of the previous
    one ended, so that the bins' total sizes differ by at most one document as well:

        documents   a0 a1 a2 b0 b1      3 bins
        bins         0  1  2  0  1      (with a fourth `a` in bin 0, b0 would go to bin 1)

    Args:
        categories: (documents,) category number of each document, in input order.
        num_bins: how many bins.

    Returns:
        (documents,) int32 bin of each document.
    """
    by_category = np.argsort(categories, kind="stable")
    bins = np.empty(len(categories), np.int32)
    bins[by_category] = np.arange(len(categories)) % num_bins
    return bins
