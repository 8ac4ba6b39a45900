"""Seconds, CPU seconds and peak memory of a command with all processes that it starts."""

import ctypes
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil

from colossal_llama.utils.errors import UserError

_LAST_CHARACTERS = 3000


@dataclass(frozen=True)
class Measured:
    """Time and memory of a command.

    Attributes:
        wall_s: from its start to its end.
        cpu_s: of all its processes, in user and system mode.
        peak_pss_bytes: largest sum of proportional set sizes, which counts shared pages once.
        peak_rss_bytes: largest sum of resident sizes, which counts them once a process.
        peak_pss_of_one_bytes: largest proportional set size of one process.
        output: what it printed, errors included.
    """

    wall_s: float
    cpu_s: float
    peak_pss_bytes: int
    peak_rss_bytes: int
    peak_pss_of_one_bytes: int
    output: str


def measured(command: Sequence[Any], cores: Collection[int] | None = None, interval_s: float = 0.2) -> Measured:
    """Runs a command to its end.

    Args:
        command: its words.
        cores: that it may run on; None for all of this process.
        interval_s: between two looks at its memory.

    Raises:
        UserError: it failed.
    """
    _adopt_orphans()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    pin = partial(os.sched_setaffinity, 0, cores) if cores is not None else None
    with tempfile.TemporaryFile() as file:
        process = subprocess.Popen(list(map(str, command)), stdout=file, stderr=subprocess.STDOUT, preexec_fn=pin)
        peaks, family = _watch(process, interval_s)
        wall_s = time.perf_counter() - started
        file.seek(0)
        output = file.read().decode(errors="replace")
    for process_id in family:
        with suppress(ChildProcessError):  # most are children of another process
            os.waitpid(process_id, 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise UserError(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{output[-_LAST_CHARACTERS:]}")
    return Measured(wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, *peaks, output)


def _adopt_orphans() -> None:
    """Makes this process the parent of orphans (prctl(2), PR_SET_CHILD_SUBREAPER).

    Workers are children of a fork server that outlives its parent by some milliseconds: without
    this, no process would account for their CPU time.
    """
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def _watch(process: subprocess.Popen, interval_s: float) -> tuple[tuple[int, int, int], set[int]]:
    """Polls the process tree until the process ends; returns the peaks, and all process ids."""
    parent, seen = psutil.Process(process.pid), set[int]()
    pss = rss = one = 0
    while process.poll() is None:
        with suppress(psutil.Error):  # a process ended while its memory was read
            family = parent.children(recursive=True)
            seen |= {member.pid for member in family}
            memory = [member.memory_full_info() for member in [parent, *family]]
            pss = max(pss, sum(part.pss for part in memory))
            rss = max(rss, sum(part.rss for part in memory))
            one = max(one, *(part.pss for part in memory))
        with suppress(subprocess.TimeoutExpired):
            process.wait(interval_s)
    return (pss, rss, one), seen
