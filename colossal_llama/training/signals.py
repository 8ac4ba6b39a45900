"""Stop signals: the first ends the run after the current step, the second the process at once."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGINT)
_ONE_REQUEST_S = 2.0
"""Time within which the same signal counts as the same request: SLURM signals torchrun and its
ranks, and torchrun forwards what it receives."""


@dataclass
class StopRequest:
    """Request to end the run, set by the first SIGTERM or SIGINT.

    A second signal ends the process at once, with exit code 128 + its number. The same signal
    within `_ONE_REQUEST_S` is not a second one. A thread receives the second: Python's signal
    handlers run when the main thread leaves native code, and a collective whose other ranks are
    gone never returns.
    """

    received: bool = False

    @contextlib.contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Handles the signals within the block."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        thread = threading.Thread(target=self._watch, args=(reader,), name="second signal", daemon=True)
        earlier_handlers: dict[int, Any] = {number: signal.signal(number, self._first) for number in STOPPING}
        earlier_writer = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        thread.start()
        try:
            yield self
        finally:
            signal.set_wakeup_fd(earlier_writer)
            for number, handler in earlier_handlers.items():
                signal.signal(number, handler)
            writer.close()  # ends the thread
            thread.join()
            reader.close()

    def _first(self, number: int, frame: object) -> None:
        self.received = True

    def _watch(self, reader: socket.socket) -> None:
        """Reads the numbers of the signals as they arrive."""
        first, first_s = None, 0.0
        while numbers := reader.recv(64):
            for number in (number for number in numbers if number in STOPPING):
                if first is None:
                    first, first_s = number, time.monotonic()
                elif number != first or time.monotonic() - first_s > _ONE_REQUEST_S:
                    print(
                        f"second signal ({number}): the process ends at once and saves nothing",
                        file=sys.stderr,
                        flush=True,
                    )
                    os._exit(128 + number)
