"""GPU memory that runs of one launch of benchmarks/train_many.py left to the next."""

import re
from collections.abc import Iterator
from itertools import chain, repeat


def allocated_before_gib(printed: str) -> Iterator[float]:
    r"""Yields the memory in GiB that earlier runs of one process left allocated before each run.

    It is part of the run's peak. The iterator does not end.

    >>> from itertools import islice
    >>> printed = "7.1 GiB still allocated after the run\n14 GiB still allocated after the run\n"
    >>> list(islice(allocated_before_gib(printed), 4))
    [0.0, 7.1, 14.0, 0.0]
    >>> list(islice(allocated_before_gib(""), 2))
    [0.0, 0.0]

    Args:
        printed: output of train_many.py, with a line after each run; without a GPU there is none.
    """
    left = re.findall(r"([0-9.]+) GiB still allocated after the run", printed)
    return chain([0.0], map(float, left), repeat(0.0))
