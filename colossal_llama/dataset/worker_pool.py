"""Runs tasks on worker processes, a few ahead, and gives their results in the order of the tasks."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from colossal_llama.utils.errors import UserError

TASKS_AHEAD = 3  # per worker: enough that none waits, few enough that an error stops the rest soon

_state: Any = None


class WorkerPool:
    """Runs `function(state, task)` for tasks; with one worker in this process, else in spawned ones.

    Workers are spawned rather than forked: a fork of a process whose tokenizer has threads can hang, and a spawned one
    holds 60 MB instead of a copy of everything this process has imported.
    """

    def __init__(self, executor: ProcessPoolExecutor | None, state: Any, num_workers: int):
        self._executor, self._state, self._num_workers = executor, state, num_workers

    def map(self, function: Callable[[Any, Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        """Results in the order of the tasks.

        Raises:
            UserError: a worker was killed, most likely for want of memory.
        """
        if self._executor is None:
            for task in tasks:
                yield function(self._state, task)
            return
        waiting: deque[Future] = deque()
        try:
            for task in tasks:
                waiting.append(self._executor.submit(_call, function, task))
                if len(waiting) > TASKS_AHEAD * self._num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, probably because memory ran out: run the same command again with fewer "
                f"--num_workers than {self._num_workers}; what is done is kept"
            ) from None
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def worker_pool(num_workers: int, state: Any) -> Iterator[WorkerPool]:
    """A pool whose workers each hold a copy of `state`; they end with the block, or when this process dies."""
    if num_workers == 1:
        yield WorkerPool(None, state, 1)
        return
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(num_workers, context, _start_worker, (state,))
    try:
        yield WorkerPool(executor, state, num_workers)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _start_worker(state: Any) -> None:
    global _state
    _state = state
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _call(function: Callable[[Any, Any], Any], task: Any) -> Any:
    return function(_state, task)
