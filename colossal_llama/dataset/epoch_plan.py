"""Plans the rows of an epoch: their order, and the samples packed into each.

A sample is what a part stores as one row. Prepared conversations are one sample each. Padded to
4,096 tokens, real ones fill an eighth of what is computed; so training packs whole samples into
rows, with document masking between them. A plan is a pure function of lengths, seed and epoch: a
resumed run makes the same one, on any number of ranks.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from colossal_llama.dataset.splicing import Rows, shuffle_rows, splice_best_fit, splice_greedy


def sample_order(part_sizes: Sequence[int], seed: int, epoch: int, shuffle: str = "bucket") -> np.ndarray:
    """Orders the samples of all parts, numbered consecutively, for one epoch.

    Args:
        part_sizes: number of samples of each part.
        seed: of the shuffle.
        epoch: number of the epoch, which changes the shuffle.
        shuffle: `bucket` shuffles inside each part and keeps the parts in order; `global` mixes
            all; `none` keeps the order.

    Returns:
        int64 (samples,), a permutation.
    """
    starts = np.cumsum([0, *part_sizes])
    if shuffle == "none":
        return np.arange(starts[-1])
    if shuffle == "global":
        return np.random.default_rng([seed, epoch]).permutation(starts[-1])
    parts = [
        begin + np.random.default_rng([seed, epoch, index]).permutation(size)
        for index, (begin, size) in enumerate(zip(starts[:-1], part_sizes, strict=True))
    ]
    return np.concatenate(parts) if parts else np.arange(0)


def plan_epoch(
    part_lengths: Sequence[np.ndarray],
    seed: int,
    epoch: int,
    shuffle: str = "bucket",
    row_length_tokens: int | None = None,
) -> Rows:
    """Plans the rows that an epoch trains on, in order; their items are samples.

        part_lengths [[30, 10, 50, 40]], row_length_tokens 64   →   e.g. [50 10] [40] [30], shuffled

    Args:
        part_lengths: for each part the lengths of its samples in tokens.
        seed: see `sample_order`.
        epoch: see `sample_order`.
        shuffle: see `sample_order`; samples of two parts share a row only when it is `global`.
        row_length_tokens: maximum length of a row that samples are packed into; None makes every
            sample a row.

    Returns:
        Rows of samples, numbered consecutively over all parts.
    """
    order = sample_order([len(lengths) for lengths in part_lengths], seed, epoch, shuffle)
    if row_length_tokens is None:
        return Rows(order, np.arange(len(order) + 1))
    lengths = np.concatenate(part_lengths) if len(part_lengths) else np.arange(0)
    boundaries = [0, len(order)] if shuffle == "global" else np.cumsum([0, *(len(part) for part in part_lengths)])
    packed = [
        _pack(order[begin:end], lengths, row_length_tokens, None if shuffle == "none" else (seed, epoch, index))
        for index, (begin, end) in enumerate(itertools.pairwise(boundaries))
    ]
    items = np.concatenate([rows.items for rows in packed])
    counts = np.concatenate([np.diff(rows.starts) for rows in packed])
    return Rows(items, np.concatenate([[0], np.cumsum(counts)]))


def _pack(samples: np.ndarray, lengths: np.ndarray, row_length_tokens: int, seed: tuple[int, ...] | None) -> Rows:
    if seed is None:  # in the given order
        rows = splice_greedy(lengths[samples], row_length_tokens)
    else:
        # Samples are packed in shuffled order, so that those of equal length share rows with others
        # in every epoch. Then the rows are shuffled, since packing puts the longest first.
        rows = shuffle_rows(splice_best_fit(lengths[samples], row_length_tokens), seed)
    return Rows(samples[rows.items], rows.starts)


def fill_ratio(rows: Rows, lengths: np.ndarray, row_length_tokens: int) -> float:
    """Fraction of the rows' capacity that is filled with tokens."""
    return float(lengths[rows.items].sum() / (len(rows) * row_length_tokens)) if len(rows) else 0.0
