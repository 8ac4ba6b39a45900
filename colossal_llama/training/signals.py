"""Stop signals, from the first import of a run until its process group is left.

    importing, meeting, starting   ends on all ranks: nothing to save, exit code 128 + number
    training                       ends after the current step, when all is saved, exit code 0
    finishing                      is noted: the model is written as without it, exit code 0

In every phase a second signal ends the process at once, with exit code 128 + its number. Imports
the standard library only, so that signals are handled before anything else is imported.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ONE_REQUEST_S = 2.0
"""Time within which the same signal counts as the same request: SLURM signals torchrun and its
ranks, and torchrun forwards what it receives."""
_CONSENSUS_WITHIN_S = 15.0
"""Time for the ranks to end together while they start; torchrun kills them 30 s after a signal."""
_MEETING_WITHIN_S = 3.0
"""Time for the ranks of torchrun to meet after a signal: one that has ended already never comes."""
_POLL_S = 0.2
_FLUSH_WITHIN_S = 1.0  # nobody may read the pipe that stdout is


class Phase(Enum):
    """Phase of a run: imports, process group, data and model, steps, final model."""

    IMPORTING = 1
    MEETING = 2
    STARTING = 3
    TRAINING = 4
    FINISHING = 5


class Stopped(SystemExit):
    """The end of a run by a signal before its first step, raised on all ranks."""


@dataclass
class StopRequest:
    """Request to end the run, made by the first SIGTERM, SIGINT or SIGHUP.

    A thread receives the signals: Python's signal handlers run when the main thread leaves native
    code, and a collective whose other ranks are gone never returns. The same signal within
    `_ONE_REQUEST_S` is not a second one.

    Attributes:
        number: the first signal's; None before it.
        phase: of the run.
    """

    number: int | None = None
    phase: Phase = Phase.IMPORTING
    _phase_began_s: float = 0.0
    _is_announced: bool = False
    _first_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def received(self) -> bool:
        """True after the first signal."""
        return self.number is not None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handles the signals within the block.

        After it they are ignored: nothing is left to stop or to save, and the interpreter's own
        end takes a second. After an error they end the process, which may hang then. A SIGHUP that
        is ignored from the start, as under nohup(1), stays ignored.
        """
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        terminals = [stream for stream in (1, 2) if os.isatty(stream)]
        threading.Thread(target=self._watch, args=(reader, terminals), name="stop signals", daemon=True).start()
        numbers = [n for n in STOPPING if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        for number in numbers:
            signal.signal(number, lambda number, frame: None)  # the thread handles it
        afterwards = signal.SIG_DFL
        try:
            yield
            afterwards = signal.SIG_IGN
        except Stopped:
            afterwards = signal.SIG_IGN
            raise
        finally:
            for number in numbers:
                signal.signal(number, afterwards)
            signal.set_wakeup_fd(-1)
            writer.close()  # ends the thread

    def begin(self, phase: Phase, is_announced: bool = False) -> None:
        """Enters a phase.

        Args:
            phase: the phase that begins.
            is_announced: the user has been told about a signal that was received.
        """
        with self._lock:
            self.phase, self._phase_began_s, self._is_announced = phase, time.monotonic(), is_announced

    def number_before_training(self) -> int | None:
        """Number of the signal for which a run ends that has not begun to train; None without."""
        return self.number if self.phase.value < Phase.TRAINING.value else None

    def announce_late(self, number: int | None) -> None:
        """Prints that a signal was noted too late to stop anything, unless that has been said.

        Args:
            number: the first signal that any rank has received; None without.
        """
        with self._lock:
            if number is not None and not self._is_announced:
                _say(f"{_name(number)} came after the last step: all is written, and the run ends as without it")
            self._is_announced = True

    def _watch(self, reader: socket.socket, terminals: list[int]) -> None:
        """Reads the numbers of the signals as they arrive, until the other end is closed."""
        numbers: bytes | None = None
        while numbers != b"":
            try:
                numbers = reader.recv(64)
            except TimeoutError:
                self._end_late()
                continue
            for number in (number for number in numbers if number in STOPPING):
                reader.settimeout(_POLL_S)
                if number == signal.SIGHUP:
                    _forget_terminals(terminals)
                with self._lock:
                    self._handle(number)

    def _end_late(self) -> None:
        """Ends a process that has a signal and waits in vain for the others to end with it.

        Imports are not limited: they end by themselves, and the others wait for this process.
        """
        with self._lock:
            number, waited_s = self.number_before_training(), time.monotonic() - max(self._first_s, self._phase_began_s)
            is_meeting = self.phase is Phase.MEETING and _has_torchrun()
            limit_s = _MEETING_WITHIN_S if is_meeting else _CONSENSUS_WITHIN_S
        if number is not None and self.phase is not Phase.IMPORTING and waited_s > limit_s:
            _end(number, describe_stop(number))

    def _handle(self, number: int) -> None:
        if self.number is not None:
            if number != self.number or time.monotonic() - self._first_s > _ONE_REQUEST_S:
                _end(number, f"second signal ({_name(number)}): the process ends at once and saves nothing")
            return
        self.number, self._first_s = number, time.monotonic()
        is_before = self.number_before_training() is not None
        if is_before and (_is_alone() or (self.phase is Phase.IMPORTING and _has_torchrun())):
            # torchrun ends the other ranks, and rank 0 among them speaks.
            _end(number, describe_stop(number) if _is_alone() or os.environ.get("LOCAL_RANK") == "0" else None)
        if self.phase is Phase.FINISHING and not self._is_announced and os.environ.get("RANK", "0") == "0":
            _say(
                f"{_name(number)} came after the last step: the run ends when all is written; a second signal ends it "
                "at once"
            )
            self._is_announced = True


REQUEST = StopRequest()
"""The process's own: signals are the process's, too."""


def describe_stop(number: int) -> str:
    """Sentence about a run that ended before its first step."""
    return f"stopped by {_name(number)} before the first step: there was nothing to save yet"


def exit_code(number: int) -> int:
    """Exit code of a process that ends for a signal, as shells count it."""
    return 128 + number


def _is_alone() -> bool:
    """True when no other rank could be left waiting for this one."""
    return os.environ.get("WORLD_SIZE", "1") == "1"


def _has_torchrun() -> bool:
    """True when a launcher ends the other ranks if this one ends."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _end(number: int, sentence: str | None) -> None:
    """Ends the process from this thread, whatever the main thread waits for."""
    late = threading.Timer(_FLUSH_WITHIN_S, os._exit, [exit_code(number)])
    late.daemon = True
    late.start()
    if sentence is not None:
        _say(sentence)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(exit_code(number))


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # stderr may be closed
        sys.stderr.write(f"{sentence}\n")
        sys.stderr.flush()


def _name(number: int) -> str:
    return signal.Signals(number).name


def _forget_terminals(streams: list[int]) -> None:
    """Discards what is written to a terminal that was closed: it would be an error (EIO)."""
    for stream in streams:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream)
        os.close(nowhere)
