"""Limits the processor time and the memory of a block of foreign code, in the main thread."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

_REPEATED_AFTER_S = 0.1  # an exception raised in a finalizer is lost: the timer goes on until the block has ended


class TimeLimitError(BaseException):
    """Raised in a block that has used up its processor time.

    It is no `Exception`, so that no library takes it for an error of its own and goes on.
    """


@contextmanager
def execution_limits(processor_time_s: float, memory_bytes: int) -> Iterator[None]:
    """Limits a block's processor time (of this process, all threads), and the memory it may add.

    Entering and leaving take 20 microseconds. A nested call of this function lifts the outer limit.

    Args:
        processor_time_s: after it `TimeLimitError` is raised in the block.
        memory_bytes: allocations beyond it fail, with `MemoryError` in Python. Other threads may
            not allocate meanwhile.
    """
    data_pages = int(Path("/proc/self/statm").read_bytes().split()[5])
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = data_pages * resource.getpagesize() + memory_bytes
    known = [value for value in (limit, soft, hard) if value != resource.RLIM_INFINITY]
    handler = signal.signal(signal.SIGPROF, _raise_time_limit)
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (min(known), hard))
        signal.setitimer(signal.ITIMER_PROF, processor_time_s, _REPEATED_AFTER_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        signal.signal(signal.SIGPROF, handler)


def _raise_time_limit(signal_number: int, frame: FrameType | None) -> NoReturn:
    raise TimeLimitError
