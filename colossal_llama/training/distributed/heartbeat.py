"""Heartbeats: counters in a key-value store that ranks increment while they are alive.

    rank   0   1   2   3
    10 s   2   2   2   2
    15 s   3   3   2   2          ranks 2 and 3 are silent since 10 s, which a monitor notices

The store is a torch.distributed.Store over a connection that the training does not use: one that a
collective waits in is locked.
"""

import threading
import time
from collections.abc import Callable, Sequence

import torch.distributed as dist


class Heartbeat:
    """This rank's counter, incremented by a daemon thread from `start` to `stop`."""

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        interval_s: float,
        after_beat: Callable[[], None] = lambda: None,
        on_lost_store: Callable[[], None] = lambda: None,
    ):
        """Prepares the thread.

        Args:
            store: where the counters are.
            rank: this process's.
            interval_s: between two increments.
            after_beat: called by the thread after each increment but the first.
            on_lost_store: called by the thread when the store does not answer; it ends then.
        """
        self._store, self._rank, self._interval_s = store, rank, interval_s
        self._after_beat, self._on_lost_store = after_beat, on_lost_store
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="heartbeat")

    def start(self) -> None:
        """Sets the counter to 0 and starts the thread.

        Raises:
            dist.DistError: the store does not answer.
        """
        self._store.set(_key(self._rank), "0")
        self._thread.start()

    def stop(self, within_s: float) -> None:
        """Ends the thread, and waits for it.

        A daemon thread that is inside the store, in C++, when the interpreter ends aborts the
        process ("terminate called without an active exception").
        """
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join(within_s)

    def _run(self) -> None:
        count = 0
        while not self._stopped.wait(self._interval_s):
            count += 1
            try:
                self._store.set(_key(self._rank), str(count))
                self._after_beat()
            except dist.DistError:
                self._on_lost_store()
                return


class HeartbeatMonitor:
    """The times at which the heartbeats of some ranks last changed."""

    def __init__(self, store: dist.Store, ranks: Sequence[int]):
        self._store, self._ranks = store, tuple(ranks)
        self._seen: dict[int, tuple[bytes, float]] = {}
        self.polled_at = 0.0
        self.reset()

    def reset(self) -> None:
        """Restarts all clocks, as if every heartbeat had changed now."""
        now = time.monotonic()
        self._seen = {rank: (self._seen.get(rank, (b"", now))[0], now) for rank in self._ranks}
        self.polled_at = now

    def poll(self) -> None:
        """Reads the counters; one that does not exist yet counts as unchanged.

        Raises:
            dist.DistError: the store does not answer.
        """
        counts = self._read()
        now = time.monotonic()
        self._seen = {
            rank: former if former[0] == count else (count, now)
            for (rank, former), count in zip(self._seen.items(), counts, strict=True)
        }
        self.polled_at = now

    def silent_ranks(self, limit_s: float) -> list[int]:
        """Ranks whose heartbeat has not changed for longer than a limit."""
        now = time.monotonic()
        return [rank for rank, (_, since) in self._seen.items() if now - since > limit_s]

    def _read(self) -> list[bytes]:
        keys = [_key(rank) for rank in self._ranks]
        if self._store.check(keys):
            return self._store.multi_get(keys)  # in one round trip
        return [self._store.get(key) if self._store.check([key]) else b"" for key in keys]


def _key(rank: int) -> str:
    return f"heartbeat-{rank}"
