"""Processes of torchrun that share the questions: joined over gloo, and ended by one message.

Each computes its share without waiting for the others. They meet at the end of a stage, where they
exchange their problems. A process that has problems tells so at once, and the others stop early.
"""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from colossal_llama.utils.distributed_env import end_with_launcher, share_of_cores
from colossal_llama.utils.errors import UserError, problem_of_host

_LONGEST_STAGE = timedelta(days=30)
_MEETING = timedelta(minutes=10)
_NEWS_INTERVAL_S = 1.0
_FAILED, _ASKED_TO_END = "failed", "asked to end"
GO_ON = "what it has answered is kept: run the same command again to go on"
T = TypeVar("T")


class OtherRankFailed(Exception):
    """Another process has a problem, which all will raise when they meet."""


@dataclass
class Ranks:
    """The processes of this evaluation.

    Attributes:
        rank: of this process, from 0.
        size: number of processes.
        local_rank: of this process on its host.
        store: what they share without meeting; None for a single process.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    store: Any = None
    _processes: list[tuple[str, int]] = field(default_factory=list)
    _next_news_s: float = 0.0
    _unsent: int = 0
    _all_done: int = 0
    _former_answer: Any = None
    _counts: int = 0

    @property
    def is_first(self) -> bool:
        """True for the process that writes and prints."""
        return self.rank == 0

    def share(self, items: Sequence[T], costs: Sequence[float] | None = None) -> Sequence[T]:
        """The items of this process.

        Args:
            items: in an order that all processes have.
            costs: of each item: neighbours of about the same cost together go to one process; None:
                every size-th item does.
        """
        if costs is None:
            return items[self.rank :: self.size]
        ends = list(accumulate(costs))
        total = ends[-1] if ends else 0.0
        middles = (end - cost / 2 for end, cost in zip(ends, costs, strict=True))
        shares = (min(int(middle / total * self.size), self.size - 1) if total else 0 for middle in middles)
        return [item for item, share in zip(items, shares, strict=True) if share == self.rank]

    def gather(self, mine: T) -> list[T]:
        """Objects of all processes, by rank; a meeting of all.

        Raises:
            UserError: a process has ended.
        """
        if self.size == 1:
            return [mine]
        everyone: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(everyone, mine)
        except RuntimeError as error:  # gloo: the connection to a process is closed
            raise UserError(self._ended_processes() or f"a process cannot be reached any more: {error}") from error
        return everyone

    @contextmanager
    def stage(self) -> Iterator[None]:
        """Runs a block without meetings on all processes, which meet at its end.

        Raises:
            UserError: on all processes, with the problems of all.
        """
        problems: list[str] = []
        try:
            yield
        except OtherRankFailed:
            pass
        except UserError as error:
            problems = error.problems
        except Exception as error:
            if self.size == 1:
                raise
            problems = [problem_of_host(error) or f"process {self.rank}: {type(error).__name__}: {error}"]
            if problem_of_host(error) is None:
                traceback.print_exc()
        if problems and self.store is not None:
            self.store.set(_FAILED, "1")
        found = dict.fromkeys(problem for theirs in self.gather(problems) for problem in theirs)
        if found:
            raise UserError(list(found))

    def first(self, function: Callable[[], T]) -> T:
        """Result of a function that the first process alone calls; a meeting of all.

        Raises:
            UserError: on all processes, if the function does.
        """
        result: Any = None
        with self.stage():
            if self.is_first:
                result = function()
        return self.gather(result)[0]

    def begin_count(self) -> None:
        """Begins to count from 0 what is done, on all processes."""
        self._unsent = self._all_done = 0
        self._counts += 1

    def count_done(self, number: int, *, now: bool = False) -> int:
        """Adds to the number that is done by all processes, which it returns as of a second ago.

        Args:
            number: done by this process.
            now: exchanges numbers with the others although it is less than a second ago.

        Raises:
            OtherRankFailed: another process has a problem.
        """
        self._unsent += number
        if self.store is None:
            self._all_done += number
        elif now or time.monotonic() >= self._next_news_s:
            self._all_done = self.store.add(f"done {self._counts}", self._unsent)
            self._unsent, self._next_news_s = 0, time.monotonic() + _NEWS_INTERVAL_S
            if self.store.check([_FAILED]):
                raise OtherRankFailed
        return self._all_done

    def wait_for(self, number: int, on_news: Callable[[int], None]) -> None:
        """Waits on the first process until all have done a number, or one has ended.

        Args:
            number: of all processes together, since `begin_count`.
            on_news: receives the number that is done.
        """
        done = self.count_done(0, now=True)
        while self.is_first and done < number and not self._ended_processes():
            on_news(done)
            time.sleep(_NEWS_INTERVAL_S / 4)
            done = self.count_done(0, now=True)
        on_news(done)

    def answer_signals(self) -> None:
        """Says what is kept when SIGTERM ends this process, until it leaves."""
        self._former_answer = signal.signal(signal.SIGTERM, self._end_when_asked)

    def leave(self) -> None:
        """Leaves the group."""
        if self._former_answer is not None:
            signal.signal(signal.SIGTERM, self._former_answer)
        if self.store is not None:
            dist.destroy_process_group()

    def _ended_processes(self) -> str | None:
        """A sentence on the processes of this host that have ended; None if none has."""
        host = socket.gethostname()
        ended = [
            f"process {rank} (process id {process} on {where})"
            for rank, (where, process) in enumerate(self._processes)
            if where == host and not _is_running(process)
        ]
        return f"{', '.join(ended)} has ended, and so do the others; {GO_ON}" if ended else None

    def _end_when_asked(self, *_: Any) -> NoReturn:
        """Answers SIGTERM, by which torchrun ends the other processes when one has ended.

        The first that is asked says why: a process that is gone before has ended by itself. Those
        that are asked later leave at once, so what is gone is looked up first.
        """
        ended = self._ended_processes()
        try:
            is_first_asked = self.store is None or self.store.add(_ASKED_TO_END, 1) == 1
        except RuntimeError:  # the process that has the store is gone
            is_first_asked = self.local_rank == 0
        if is_first_asked:
            sys.stderr.write(f"\nerror: {ended or f'ended by SIGTERM; {GO_ON}'}\n")
            sys.stderr.flush()
        os._exit(128 + signal.SIGTERM)


def join() -> Ranks:
    """Joins the processes of torchrun or srun; a process that neither has started is alone.

    Raises:
        UserError: they cannot meet.
    """
    if "RANK" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        alone = Ranks()
        alone.answer_signals()
        return alone
    end_with_launcher()
    if cores := share_of_cores():
        torch.set_num_threads(cores)
    try:
        store, rank, size = next(rendezvous("env://", timeout=_MEETING))
        dist.init_process_group(
            "gloo", store=dist.PrefixStore("group", store), rank=rank, world_size=size, timeout=_LONGEST_STAGE
        )
    except (dist.DistError, RuntimeError) as error:
        where = f"{os.environ['MASTER_ADDR']} port {os.environ['MASTER_PORT']}"
        raise UserError(f"the processes cannot meet at {where}: {str(error).splitlines()[0]}") from error
    ranks = Ranks(rank, size, int(os.environ["LOCAL_RANK"]), dist.PrefixStore("news", store))
    ranks._processes = ranks.gather((socket.gethostname(), os.getpid()))
    ranks.answer_signals()
    return ranks


def _is_running(process: int) -> bool:
    """True unless a process has ended, whether or not its parent has noticed."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
