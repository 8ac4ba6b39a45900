"""Watchdog: notices that another host is lost, reports which, and ends the run on this one.

The loss of a host reaches its partners as a broken connection at best, and as silence at worst:
NCCL and gloo then wait for ten minutes or more, and their messages name sockets. Here every rank
has a heartbeat in the store that launched the run (torch.distributed.TCPStore), and monitors
everybody else's:

    rank   0   1 | 2   3          heartbeats at node-1 | node-2
    10 s   2   2 | 2   2
    15 s   3   3 | 2   2          node-2 is silent since 10 s; beyond the limit it counts as lost

A rank that fails writes that into the store, and the others end at once. Where the store itself
does not answer, the host of rank 0 is lost.

The failure is printed on standard error, and written as a failure report into the save directory:
`colossalai run` shows every host's standard error on the first of them, and is lost with it. The
next run there prints the report.
"""

import errno
import os
import socket
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from colossal_llama.training.distributed.consensus import CollectiveError
from colossal_llama.training.distributed.heartbeat import Heartbeat, HeartbeatMonitor
from colossal_llama.training.signals import REQUEST, describe_stop, exit_code
from colossal_llama.utils.distributed_env import HOST_TIMEOUT_VARIABLE, is_multi_host
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.streams import stdout_has_no_reader

_LIMIT_S = 30.0
FAILURE_REPORT = "why_it_ended.txt"
"""File in the save directory: a line of each surviving host."""
_EXIT_CODE = 3
_STOP_WITHIN_S = 5.0  # the store may not answer, nor may the file system, if the lost host has it
_SYMPTOMS = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "tcpstore")
"""Words in the errors that another rank's end causes."""


@contextmanager
def watched(save_dir: Path) -> Iterator[None]:
    """Monitors the other hosts within the block, and tells them if it fails; nothing on one host.

    Args:
        save_dir: receives the failure report; named in the message, for resuming.

    Raises:
        UserError: the block failed because another rank failed or another host is lost.
    """
    if not is_multi_host():
        yield
        return
    watchdog = Watchdog(float(os.environ.get(HOST_TIMEOUT_VARIABLE, _LIMIT_S)), save_dir)
    try:
        yield
        dist.barrier()  # nobody leaves, and nobody's store closes, while another still polls it
    except (CollectiveError, SystemExit, KeyboardInterrupt):
        raise
    except Exception as error:
        if not _is_symptom(error):
            watchdog.announce_failure(error)
            raise
        cause = watchdog.wait_for_cause()
        if cause is None:
            raise
        watchdog.write_report(cause)
        raise UserError(cause) from error
    finally:
        watchdog.stop()


@contextmanager
def lost_ranks_named() -> Iterator[None]:
    """Turns errors that another rank's end causes into one sentence, and exits with code 3.

    On several hosts `watched` does so, with the cause, from the first step to the last.
    """
    try:
        yield
    except Exception as error:
        if not _is_symptom(error):
            raise
        if (number := REQUEST.number_before_training()) is not None:  # the others have ended by the same signal
            print(describe_stop(number), file=sys.stderr, flush=True)
            raise SystemExit(exit_code(number)) from None
        message = " ".join(str(error).split())[:500]
        if os.strerror(errno.EMFILE) in message:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from error
        if "Duplicate GPU" in message:
            cause = (
                "two processes use the same GPU: --nproc_per_node is larger than the number of GPUs that "
                f"CUDA_VISIBLE_DEVICES shows ({message})"
            )
        else:
            cause = (
                "the connection to another process of this run is lost, or was never made. If that process has ended, "
                f"its own output says why ({type(error).__name__}: {message})"
            )
        print(f"error (rank {os.environ['RANK']} on {socket.gethostname()}): {cause}", file=sys.stderr, flush=True)
        raise SystemExit(_EXIT_CODE) from error


def _is_symptom(error: Exception) -> bool:
    """True for an error that another rank's end may have caused."""
    text = str(error).lower()
    if isinstance(error, BrokenPipeError):
        return not stdout_has_no_reader()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in text for word in _SYMPTOMS)
    )


def take_failure_report(save_dir: Path) -> list[str]:
    """Reads and deletes the failure report of the run before, a line of each surviving host.

    The caller holds the directory's lock.
    """
    path = save_dir / FAILURE_REPORT
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    path.unlink()
    return lines


class Watchdog:
    """Monitor of the other hosts, in two threads: heartbeat and clock.

    The heartbeat's thread reads the store; the other compares with the clock, for the first may
    hang in the store.
    """

    def __init__(self, limit_s: float, save_dir: Path):
        self.limit_s, self.interval_s, self.save_dir = limit_s, limit_s / 6, save_dir
        self.rank, ranks = dist.get_rank(), range(dist.get_world_size())
        self._cause: str | None = None
        self._main_waits = threading.Event()
        self._cause_known, self._stopped = threading.Event(), threading.Event()
        self._store = self._connect()
        self._store.set(f"host-{self.rank}", socket.gethostname())
        dist.barrier()
        self._hosts = [self._store.get(f"host-{rank}").decode() for rank in ranks]
        self._monitor = HeartbeatMonitor(self._store, ranks)
        self._heartbeat = Heartbeat(
            self._store, self.rank, self.interval_s, self._poll, lambda: self._end(self._lost_store())
        )
        self._heartbeat.start()
        self._clock_thread = threading.Thread(target=self._check_clock, daemon=True, name="watchdog")
        self._clock_thread.start()

    def stop(self) -> None:
        """Ends both threads: this rank is done, or is ending by an error."""
        self._stopped.set()
        self._heartbeat.stop(_STOP_WITHIN_S)
        self._clock_thread.join(_STOP_WITHIN_S)

    def announce_failure(self, error: Exception) -> None:
        """Tells the other ranks that this one fails, and why."""
        text = "; ".join(error.problems) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        try:
            self._connect().set("failed", f"{self.rank} {text[:2000]}")
        except dist.DistError:
            traceback.print_exc()  # the store is lost too: the others notice that by themselves

    def write_report(self, cause: str) -> None:
        """Appends to the failure report; does not hang where the file system is lost, too."""
        if not _is_first_of_host():
            return
        line = f"{time.strftime('%F %T')}, rank {self.rank} on {socket.gethostname()}: {cause}\n"

        def append() -> None:
            with suppress(OSError), (self.save_dir / FAILURE_REPORT).open("a", encoding="utf-8") as file:
                file.write(line)

        thread = threading.Thread(target=append, daemon=True, name="watchdog: failure report")
        thread.start()
        thread.join(_STOP_WITHIN_S)

    def wait_for_cause(self) -> str | None:
        """Waits until it is known which rank failed or which host is lost; None if none is."""
        self._main_waits.set()
        self._cause_known.wait(self.limit_s + 2 * self.interval_s)
        return self._cause

    def _connect(self) -> dist.Store:
        # A connection of its own: the process group's is locked while the main thread waits in it.
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=self.limit_s),
        )
        return dist.PrefixStore(f"watchdog/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

    def _poll(self) -> None:
        """Reads the heartbeats, and whether a rank has failed; the heartbeat's thread calls it."""
        self._monitor.poll()
        if self._store.check(["failed"]):
            rank, reason = self._store.get("failed").decode().split(" ", 1)
            self._end(f"rank {rank} on {self._hosts[int(rank)]} failed, and the run ends with it: {reason}")

    def _check_clock(self) -> None:
        """Compares the times of the last heartbeats with the clock."""
        checked_at = time.monotonic()
        while not self._stopped.wait(self.interval_s):
            now = time.monotonic()
            slept_s, checked_at = now - checked_at, now
            if slept_s > 3 * self.interval_s:  # this process was suspended, and so its view of the others is old
                self._monitor.reset()
            elif now - self._monitor.polled_at > self.limit_s:
                self._end(self._lost_store())
                return
            elif silent := self._monitor.silent_ranks(self.limit_s):
                self._end(self._lost(silent))
                return

    def _lost_store(self) -> str:
        """The cause where the store does not answer: it is on the host of rank 0."""
        return self._lost([rank for rank, host in enumerate(self._hosts) if host == self._hosts[0]])

    def _lost(self, ranks: list[int]) -> str:
        by_host = defaultdict(list)
        for rank in ranks:
            by_host[self._hosts[rank]].append(str(rank))
        who = " and ".join(f"{host} (rank {', '.join(ranks)})" for host, ranks in by_host.items())
        return (
            f"no heartbeat from {who} within {self.limit_s:.0f} s: the host is down or unreachable, or its processes "
            "were killed or stopped. The run cannot continue without it and ends here. When the host is back, or "
            "removed from the hostfile, give the same command with --load_checkpoint auto: the run resumes from the "
            f"newest checkpoint in {self.save_dir}"
        )

    def _end(self, cause: str) -> None:
        """Ends the process, unless the main thread has an error and can raise the cause itself.

        Otherwise that thread hangs in a collective.
        """
        if self._stopped.is_set():
            return
        self._cause = cause
        self._cause_known.set()
        if self._main_waits.wait(self.interval_s / 2):
            return
        if _is_first_of_host():
            with suppress(OSError):  # the launcher that reads it may be lost
                print(f"\nerror (rank {self.rank} on {socket.gethostname()}): {cause}", file=sys.stderr, flush=True)
            self.write_report(cause)
        else:
            time.sleep(1)  # the launcher ends a host's ranks with the first of them: let the one that prints be first
        os._exit(_EXIT_CODE)


def _is_first_of_host() -> bool:
    """True for the rank that prints and reports for its host."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
