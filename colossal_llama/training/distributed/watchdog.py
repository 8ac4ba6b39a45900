"""Notices that a host has gone, says which, and ends the run on the others.

The death of a host reaches its partners as a broken connection at best, and as silence at worst:
NCCL and gloo then wait for ten minutes or more, and what they say names sockets. Here every rank
counts up a number of its own in the store that launched the run (torch.distributed.TCPStore, over a
connection of its own), and looks at everybody else's:

    rank   0   1 | 2   3          beats at node-1 | node-2
    10 s   2   2 | 2   2
    15 s   3   3 | 2   2          node-2 is silent since 10 s; beyond the limit it counts as gone

A rank that fails says so in the store, and the others end at once. Where the store itself falls
silent, the host of rank 0 has gone.

What is found is said on standard error, and written into the save directory: `colossalai run` shows
every host's standard error on the first of them, and goes with it. The next run there tells what it
finds.
"""

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

from colossal_llama.training.distributed.consensus import AgreedError
from colossal_llama.utils.distributed_env import is_multi_host
from colossal_llama.utils.errors import UserError

LIMIT_VARIABLE = "COLOSSAL_LLAMA_HOST_TIMEOUT_S"
_LIMIT_S = 30.0
LAST_WORDS = "why_it_ended.txt"
"""In the save directory: a line of each host that was left."""
_EXIT_CODE = 3
_STOP_WITHIN_S = 5.0  # the store may be silent, and so may be the file system, if the lost host has it
_SYMPTOMS = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "tcpstore")
"""Of another rank's end."""


@contextmanager
def watched(save_dir: Path) -> Iterator[None]:
    """Watches the other hosts within the block, and tells them if it fails; nothing to do on one host.

    Args:
        save_dir: named in the message, for going on.

    Raises:
        UserError: the block failed because another rank or host has gone.
    """
    if not is_multi_host():
        yield
        return
    watch = HostWatch(float(os.environ.get(LIMIT_VARIABLE, _LIMIT_S)), save_dir)
    try:
        yield
        dist.barrier()  # nobody leaves, and nobody's store closes, while another still looks
    except (AgreedError, SystemExit, KeyboardInterrupt):
        raise
    except Exception as error:
        if not _is_symptom(error):
            watch.tell_failure(error)
            raise
        verdict = watch.verdict()
        if verdict is None:
            raise
        watch.leave_word(verdict)
        raise UserError(verdict) from error
    finally:
        watch.stop()


def _is_symptom(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError | BrokenPipeError) or (
        isinstance(error, RuntimeError) and any(word in text for word in _SYMPTOMS)
    )


def last_words(save_dir: Path) -> list[str]:
    """What the hosts that were left said when the run before ended, once: the file goes. The caller holds the directory."""
    path = save_dir / LAST_WORDS
    if not path.is_file():
        return []
    words = path.read_text(encoding="utf-8").splitlines()
    path.unlink()
    return words


class HostWatch:
    """Two threads: one talks to the store, the other looks at the clock, for the first may be stuck."""

    def __init__(self, limit_s: float, save_dir: Path):
        self.limit_s, self.interval_s, self.save_dir = limit_s, limit_s / 6, save_dir
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._keys = f"host_watch/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self._store = self._connect()
        self._store.set(f"{self._keys}/host/{self.rank}", socket.gethostname())
        self._store.set(f"{self._keys}/beat/{self.rank}", "0")
        dist.barrier()
        self._hosts = [self._store.get(f"{self._keys}/host/{rank}").decode() for rank in range(self.world)]
        now = time.monotonic()
        self._beats = [("0", now)] * self.world
        self._last_round = now
        self._verdict: str | None = None
        self._main_asks = threading.Event()
        self._known, self._stopped = threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=work, daemon=True, name=f"host watch: {work.__name__}")
            for work in (self._beat, self._look)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends the watch: this rank is done, or is ending anyway."""
        self._stopped.set()
        # One that the interpreter's end finds inside the store, in C++, aborts the process.
        for thread in self._threads:
            thread.join(_STOP_WITHIN_S)

    def tell_failure(self, error: Exception) -> None:
        """Tells the other ranks that this one ends, and why."""
        text = "; ".join(error.problems) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        try:
            self._connect().set(f"{self._keys}/failed", f"{self.rank} {text[:2000]}")
        except dist.DistError:
            traceback.print_exc()  # the store has gone too: the others notice that by themselves

    def leave_word(self, verdict: str) -> None:
        """Writes a verdict into the save directory; a file system that has gone with the lost host does not hold this one up."""
        if not _speaks_for_its_host():
            return
        line = f"{time.strftime('%F %T')}, rank {self.rank} on {socket.gethostname()}: {verdict}\n"

        def append() -> None:
            with suppress(OSError), (self.save_dir / LAST_WORDS).open("a", encoding="utf-8") as file:
                file.write(line)

        thread = threading.Thread(target=append, daemon=True, name="host watch: last words")
        thread.start()
        thread.join(_STOP_WITHIN_S)

    def verdict(self) -> str | None:
        """Waits until it is known who has gone; None if nobody has."""
        self._main_asks.set()
        self._known.wait(self.limit_s + 2 * self.interval_s)
        return self._verdict

    def _connect(self) -> dist.TCPStore:
        # A connection of its own: the process group's is locked while the main thread waits in it.
        return dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=self.limit_s),
        )

    def _beat(self) -> None:
        """Counts up this rank's number, and reads everybody's."""
        count = 0
        while not self._stopped.wait(self.interval_s):
            count += 1
            try:
                self._store.set(f"{self._keys}/beat/{self.rank}", str(count))
                beats = self._store.multi_get([f"{self._keys}/beat/{rank}" for rank in range(self.world)])
                failure = f"{self._keys}/failed"
                failed = self._store.get(failure).decode() if self._store.check([failure]) else None
            except dist.DistError:
                self._end(self._store_has_gone())
                return
            now = time.monotonic()
            self._beats = [
                former if former[0] == beat.decode() else (beat.decode(), now)
                for former, beat in zip(self._beats, beats, strict=True)
            ]
            self._last_round = now
            if failed is not None:
                rank, reason = failed.split(" ", 1)
                self._end(f"rank {rank} on {self._hosts[int(rank)]} failed, and the run ends with it: {reason}")
                return

    def _look(self) -> None:
        """Compares everybody's last sign of life with the clock."""
        looked = time.monotonic()
        while not self._stopped.wait(self.interval_s):
            now = time.monotonic()
            slept_s, looked = now - looked, now
            # It was this process that was stopped; the signs of the others are old for that.
            if slept_s > 3 * self.interval_s:
                self._last_round = now
                self._beats = [(beat, now) for beat, _ in self._beats]
            elif now - self._last_round > self.limit_s:
                self._end(self._store_has_gone())
                return
            elif silent := [rank for rank, (_, since) in enumerate(self._beats) if now - since > self.limit_s]:
                self._end(self._gone(silent))
                return

    def _store_has_gone(self) -> str:
        return self._gone([rank for rank, host in enumerate(self._hosts) if host == self._hosts[0]])

    def _gone(self, ranks: list[int]) -> str:
        by_host = defaultdict(list)
        for rank in ranks:
            by_host[self._hosts[rank]].append(str(rank))
        who = " and ".join(f"{host} (rank {', '.join(ranks)})" for host, ranks in by_host.items())
        return (
            f"no sign of life from {who} within {self.limit_s:.0f} s: the host has gone, or its processes were killed "
            "or stopped. The run "
            "ends here, for it cannot go on without. When the host is back, or struck off the hostfile, give the same "
            "command with "
            f"--load_checkpoint auto: the run goes on from the newest checkpoint in {self.save_dir}"
        )

    def _end(self, verdict: str) -> None:
        """Lets the main thread raise the verdict if it has come back with an error; it is stuck in a collective otherwise."""
        if self._stopped.is_set():
            return
        self._verdict = verdict
        self._known.set()
        if self._main_asks.wait(self.interval_s / 2):
            return
        if _speaks_for_its_host():
            with suppress(OSError):  # of a launcher that has gone
                print(f"\nerror (rank {self.rank} on {socket.gethostname()}): {verdict}", file=sys.stderr, flush=True)
            self.leave_word(verdict)
        else:
            time.sleep(1)  # the launcher ends a host's ranks with the first of them: let that be the one that speaks
        os._exit(_EXIT_CODE)


def _speaks_for_its_host() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"
