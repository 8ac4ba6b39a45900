"""Which rows an epoch reads, in which order, and which samples share one: pure functions of lengths, seed and epoch.

Conversations stay apart in the prepared parts. Padded to 4,096 tokens, real ones fill an eighth of
what is computed; so training puts whole samples together into rows, each a document of its own that
sees no other. A run that is resumed, or goes on with another number of ranks, makes the same plan
again.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from colossal_llama.dataset.splicing import Rows, shuffle_rows, splice_best_fit, splice_greedy


def row_order(part_sizes: Sequence[int], seed: int, epoch: int, shuffle: str = "bucket") -> np.ndarray:
    """The order in which an epoch visits the rows of all parts, numbered through.

    Args:
        part_sizes: rows of each part.
        seed, epoch: decide the shuffle.
        shuffle: `bucket` shuffles inside each part and keeps the parts in order; `global` mixes
            all; `none` keeps the order.

    Returns:
        int64, shape (rows,): a permutation.
    """
    starts = np.cumsum([0, *part_sizes])
    if shuffle == "none":
        return np.arange(starts[-1])
    if shuffle == "global":
        return np.random.default_rng([seed, epoch]).permutation(starts[-1])
    pieces = [
        begin + np.random.default_rng([seed, epoch, index]).permutation(size)
        for index, (begin, size) in enumerate(zip(starts[:-1], part_sizes, strict=True))
    ]
    return np.concatenate(pieces) if pieces else np.arange(0)


def plan_epoch(
    part_lengths: Sequence[np.ndarray],
    seed: int,
    epoch: int,
    shuffle: str = "bucket",
    row_length_tokens: int | None = None,
) -> Rows:
    """The rows that an epoch trains on, in order; each is a list of prepared rows (samples), numbered through all parts.

        part_lengths [[30, 10, 50, 40]], row_length_tokens 64    →    for instance  [50 10] [40] [30]  shuffled

    Args:
        part_lengths: tokens of every prepared row of each part.
        seed, epoch, shuffle: as in `row_order`; packing never joins samples of two parts unless the
            shuffle is `global`.
        row_length_tokens: pack samples into rows of at most so many tokens; None leaves every
            prepared row by itself.
    """
    order = row_order([len(lengths) for lengths in part_lengths], seed, epoch, shuffle)
    if row_length_tokens is None:
        return Rows(order, np.arange(len(order) + 1))
    lengths = np.concatenate(part_lengths) if len(part_lengths) else np.arange(0)
    borders = [0, len(order)] if shuffle == "global" else np.cumsum([0, *(len(part) for part in part_lengths)])
    packed = [
        _pack(order[begin:end], lengths, row_length_tokens, None if shuffle == "none" else (seed, epoch, index))
        for index, (begin, end) in enumerate(itertools.pairwise(borders))
    ]
    segments = np.concatenate([rows.items for rows in packed])
    counts = np.concatenate([np.diff(rows.starts) for rows in packed])
    return Rows(segments, np.concatenate([[0], np.cumsum(counts)]))


def _pack(samples: np.ndarray, lengths: np.ndarray, row_length_tokens: int, seed: tuple[int, ...] | None) -> Rows:
    if seed is None:  # in the given order
        rows = splice_greedy(lengths[samples], row_length_tokens)
    else:
        # Packed in shuffled order, so that samples of equal length meet others in every epoch; then
        # the rows are shuffled, since packing puts the longest first.
        rows = shuffle_rows(splice_best_fit(lengths[samples], row_length_tokens), seed)
    return Rows(samples[rows.items], rows.starts)


def fill_ratio(rows: Rows, lengths: np.ndarray, row_length_tokens: int) -> float:
    """Share of the rows' room that tokens take."""
    return float(lengths[rows.items].sum() / (len(rows) * row_length_tokens)) if len(rows) else 0.0
