"""The worker processes of a cleaning, and the modules that they are forked with."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from colossal_llama.dataset.prepare.worker_pool import WorkerPool, start_fork_server, worker_pool

_PRELOADED = ("colossal_llama.cleaning.first_pass", "colossal_llama.cleaning.second_pass")


def start_workers(num_workers: int) -> None:
    """Starts the process from which workers are forked, while this one reads its input.

    Raises:
        UserError: see `worker_pool.start_fork_server`.
    """
    start_fork_server(num_workers, _PRELOADED)


@contextmanager
def workers(num_workers: int, state: Any) -> Iterator[WorkerPool]:
    """Yields a pool of workers, each with a copy of the state.

    Raises:
        UserError: a worker was killed.
    """
    with worker_pool(num_workers, state, _PRELOADED) as pool:
        yield pool
