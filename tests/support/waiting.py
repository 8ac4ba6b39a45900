"""Waiting for what other processes or threads do."""

import subprocess
import time
from collections.abc import Callable


def wait_until(
    condition: Callable[[], bool],
    process: subprocess.Popen | None = None,
    every_s: float = 0.05,
    timeout_s: float = 300,
) -> None:
    """Waits until a condition is true; fails when `process` ends before, or after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(every_s)
