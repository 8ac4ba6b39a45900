"""Runs tasks on worker processes, a bounded number ahead, and yields results in order."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.sharedctypes import Synchronized
from typing import Any

from colossal_llama.utils.errors import UserError

TASKS_AHEAD = 3  # per worker: enough that none is idle, few enough that an error stops the rest soon
# Modules of the workers, imported once in the process that they are forked from.
_PRELOADED = ("colossal_llama.dataset.prepare.chunk_worker", "colossal_llama.dataset.prepare.part_writer")

_context = multiprocessing.get_context("forkserver")
_state: Any = None


class WorkerPool:
    """Runs `function(state, task)` for tasks: in this process with one worker, else in others.

    Workers are forked from a server process rather than from this one. A fork of a process whose
    tokenizer has threads can hang, and holds a copy of everything that this process has imported.
    """

    def __init__(self, executor: ProcessPoolExecutor | None, state: Any, num_workers: int):
        self._executor, self._state, self._num_workers = executor, state, num_workers

    def map(self, function: Callable[[Any, Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        """Yields results in the order of the tasks.

        Raises:
            UserError: a worker was killed, most likely for want of memory.
        """
        if self._executor is None:
            for task in tasks:
                yield function(self._state, task)
            return
        pending: deque[Future] = deque()
        try:
            for task in tasks:
                pending.append(self._executor.submit(_call, function, task))
                if len(pending) > TASKS_AHEAD * self._num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, probably because memory ran out: run the same command again with fewer "
                f"--num_workers than {self._num_workers}; finished work is kept"
            ) from None
        finally:
            for future in pending:
                future.cancel()


def start_fork_server() -> None:
    """Starts the server process from which workers are forked.

    It imports what they need while this process opens the tokenizer. Without this call it starts
    with the first pool.
    """
    _context.set_forkserver_preload(list(_PRELOADED))
    # The server is `python -c …`, which would search the working directory for modules first, where
    # other copies may be.
    settings = {
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        # Only a process of one thread is forked safely: no matrix is multiplied here, and pyarrow's
        # allocator needs no background thread.
        "OPENBLAS_NUM_THREADS": "1",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
        "TOKENIZERS_PARALLELISM": "false",  # the processes are the parallelism
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def shared_flag() -> Synchronized:
    """Creates an integer that all workers of a pool share, 0 at first, for the pool's state."""
    return _context.Value("b", 0)


@contextmanager
def worker_pool(num_workers: int, state: Any) -> Iterator[WorkerPool]:
    """Starts a pool whose workers each hold a copy of `state`.

    The workers end with the block, or when this process dies.
    """
    if num_workers == 1:
        yield WorkerPool(None, state, 1)
        return
    start_fork_server()
    executor = ProcessPoolExecutor(num_workers, _context, _start_worker, (state,))
    try:
        yield WorkerPool(executor, state, num_workers)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _start_worker(state: Any) -> None:
    global _state
    _state = state
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is a worker"
    parent.join()
    os._exit(1)


def _call(function: Callable[[Any, Any], Any], task: Any) -> Any:
    return function(_state, task)
