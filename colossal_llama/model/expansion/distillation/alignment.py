"""Alignment of two tokenizations of one text by bytes."""

from collections.abc import Sequence

import numpy as np


def common_ends(first: Sequence[bytes], second: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Finds the tokens of two tokenizations that end at the same byte of the text.

        first     人工 | 智 | 能 | 好        ends after byte  6   9  12  15
        second    人 | 工 | 智能 | 好        ends after byte  3   6  12  15
        both end after 6, 12 and 15: 0, 2, 3 of the first and 1, 2, 3 of the second

    Tokens need not nest: a merge of the expanded vocabulary may lie across two tokens of the
    source. They may end within a character.

    Args:
        first: bytes of each token of a text.
        second: the same of another tokenization.

    Returns:
        Positions in the first and in the second, ascending; none where their bytes differ.
    """
    if b"".join(first) != b"".join(second):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    first_ends, second_ends = (np.cumsum([len(token) for token in tokens]) for tokens in (first, second))
    _, of_first, of_second = np.intersect1d(first_ends, second_ends, return_indices=True)
    return of_first.astype(np.int64), of_second.astype(np.int64)
