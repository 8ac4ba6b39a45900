"""Hashes of any runs within a long array, after one pass over it (Karp and Rabin 1987)."""

from functools import cache

import numpy as np

_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)
_LOW_BITS = 15
_LOW_POWERS = 1 << _LOW_BITS
_HIGH_POWERS = 1 << 17
"""Their product bounds the values of one array; the tables take 1.3 MB."""


class RollingHashes:
    """Hashes of the runs of an array of unsigned integers; equal runs have equal hashes.

    The hash is a sum of `(value + 1) * base**index`, from the difference of two prefix sums and
    divided by a power of the base, all modulo 2**64; then its bits are mixed. Hashes of hashes
    need that: without it, `ab c` and `ac b` are the same sum.
    """

    def __init__(self, values: np.ndarray):
        self._sums = np.zeros(len(values) + 1, np.uint64)
        low, high = _powers(_BASE)
        for block in range(0, len(values), _LOW_POWERS):
            part = self._sums[block + 1 : block + 1 + _LOW_POWERS]
            np.add(values[block : block + _LOW_POWERS], 1, out=part, dtype=np.uint64)
            part *= low[: len(part)]
            part *= high[block // _LOW_POWERS]
        np.cumsum(self._sums, out=self._sums)

    def of(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Hashes of the values from each start to before its end, uint64."""
        low, high = _powers(_INVERSE)
        hashes = self._sums[ends] - self._sums[starts]
        hashes *= low[starts & (_LOW_POWERS - 1)]
        hashes *= high[starts >> _LOW_BITS]
        return _mixed(hashes)


@cache
def _powers(base: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of a base modulo 2**64: by 1, and in steps of `_LOW_POWERS`."""
    step = pow(base, _LOW_POWERS, 1 << 64)
    return _geometric(base, _LOW_POWERS), _geometric(step, _HIGH_POWERS)


def _geometric(base: int, length: int) -> np.ndarray:
    factors = np.full(length, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)


def _mixed(hashes: np.ndarray) -> np.ndarray:
    """Spreads each bit over all 64, in place: the finaliser of splitmix64 (Steele et al. 2014)."""
    hashes ^= hashes >> np.uint64(30)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(27)
    hashes *= np.uint64(0x94D049BB133111EB)
    hashes ^= hashes >> np.uint64(31)
    return hashes
