"""Signals: the first finishes the step in hand and saves, the second ends the process at once."""

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
"""The same signal within this time is the same request: SLURM signals torchrun and its ranks,
and torchrun passes on what it gets."""


@dataclass
class StopRequest:
    """Set by the first SIGTERM or SIGINT; a second one ends the process at once, with code 128 + its number.

    The same signal once more within two seconds is no second one. The second is seen by a thread:
    Python's own handlers wait until the main thread is back from what it is in, and a collective
    whose other ranks are gone does not come back.
    """

    received: bool = False

    @contextlib.contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Catches the signals within the block."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        thread = threading.Thread(target=self._watch, args=(reader,), name="second signal", daemon=True)
        former: dict[int, Any] = {number: signal.signal(number, self._first) for number in STOPPING}
        former_writer = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        thread.start()
        try:
            yield self
        finally:
            signal.set_wakeup_fd(former_writer)
            for number, handler in former.items():
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
                        f"signal {number} for the second time: ended at once, nothing saved",
                        file=sys.stderr,
                        flush=True,
                    )
                    os._exit(128 + number)
