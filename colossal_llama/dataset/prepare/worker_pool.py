"""Runs tasks on worker processes, a bounded number ahead, and yields results in order.

Each worker has a connection of its own and no lock is shared, so that a worker may be killed at any
moment: its connection ends, which this process notices wherever it waits. `ProcessPoolExecutor`
hangs when the killed worker held the lock of the queue.
"""

import ctypes
import errno
import io
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from colossal_llama.utils.errors import UserError

TASKS_AHEAD = 3  # per worker: enough that none is idle, few enough that an error stops the rest soon
# Modules of the workers, imported once in the process that they are forked from.
_PRELOADED = ("colossal_llama.dataset.prepare.chunk_worker", "colossal_llama.dataset.prepare.part_writer")
# A socket's path has at most 107 bytes, of which Python takes these below the temporary directory.
_LONGEST_TEMPORARY_DIR = 107 - len("/pymp-12345678/listener-12345678")
_EXIT_TIMEOUT_S = 10.0
_REPORT = b"report"  # begins a worker's message that is no result; a pickle begins otherwise
# Open files of this process, and for each worker (here or in the fork server): measured, 22 suffice
# for 2 workers and 40 for 8.
_FILES, _FILES_PER_WORKER = 16, 3

_context = multiprocessing.get_context("forkserver")


class ProgressReports:
    """Hands what tasks report of their progress to a listener in the pool's process.

    It is part of the pool's state. There is no lock or shared memory: a worker's reports come over
    its connection, as its results do.
    """

    def __init__(self, listener: Callable[[Any], object] = lambda report: None):
        self.listener = listener

    def report(self, report: Any) -> None:
        """Reports from within a task, in whichever process."""
        self.listener(report)


class _Worker(NamedTuple):
    """A worker process and this process's end of its connection."""

    process: multiprocessing.context.ForkServerProcess
    connection: Connection


class WorkerPool:
    """Runs `function(state, task)` for tasks: in this process with one worker, else in others.

    Workers are forked from a server process rather than from this one. A fork of a process whose
    tokenizer has threads can hang, and holds a copy of everything that this process has imported.
    A worker starts when a task finds no idle one, and works on one task at a time.
    """

    def __init__(self, num_workers: int, state: Any):
        self._num_workers, self._state = num_workers, state
        self._pickled_state: tuple[bytes, list[ctypes.c_byte]] | None = None
        self._reports = ProgressReports()
        self._workers: list[_Worker] = []

    def map(self, function: Callable[[Any, Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        """Yields results in the order of the tasks; the caller takes them all, or ends the pool.

        Raises:
            UserError: a worker was killed, most likely for want of memory; no worker can be
                started.
        """
        if self._num_workers == 1:
            for task in tasks:
                yield function(self._state, task)
            return
        numbered, due = enumerate(tasks), 0
        busy: dict[_Worker, int] = {}
        finished: dict[int, Any] = {}
        while True:
            while len(busy) + len(finished) <= TASKS_AHEAD * self._num_workers:
                worker = self._idle_worker(busy.keys())
                if worker is None or (item := next(numbered, None)) is None:
                    break
                busy[worker], task = item
                with self._noticing_a_killed_worker():
                    worker.connection.send((function, task))
            if due in finished:
                yield finished.pop(due)
                due += 1
            elif busy:
                finished |= {busy.pop(worker): result for worker, result in self._results()}
            else:
                return

    def _idle_worker(self, busy: Set[_Worker]) -> _Worker | None:
        """A worker without a task, which is started if there may be another one."""
        for worker in self._workers:
            if worker not in busy:
                return worker
        if len(self._workers) == self._num_workers:
            return None
        if self._pickled_state is None:
            content, shared, reports = _pickled(self._state)
            self._pickled_state, self._reports = (content, shared), reports or self._reports
        content, shared = self._pickled_state
        with self._noticing_a_killed_worker():
            connection, workers_end = _context.Pipe()
            process = _context.Process(target=_serve, args=(workers_end, shared), daemon=True)
            with workers_end:
                process.start()
            self._workers.append(_Worker(process, connection))
            # Not as an argument: where this process is ended meanwhile, the other would print a
            # traceback.
            connection.send_bytes(content)
        return self._workers[-1]

    def _results(self) -> list[tuple[_Worker, Any]]:
        """Waits for results or reports, and notices whichever worker dies, idle ones too."""
        with self._noticing_a_killed_worker():
            ready = wait([end for worker in self._workers for end in (worker.connection, worker.process.sentinel)])
            if any(worker.process.sentinel in ready for worker in self._workers):
                raise EOFError
            answered = [worker for worker in self._workers if worker.connection in ready]
            answers = [(worker, worker.connection.recv_bytes()) for worker in answered]
        return [(worker, _result(answer)) for worker, answer in answers if not self._is_report(answer)]

    def _is_report(self, answer: bytes) -> bool:
        if not answer.startswith(_REPORT):
            return False
        self._reports.report(pickle.loads(answer.removeprefix(_REPORT)))
        return True

    @contextmanager
    def _noticing_a_killed_worker(self) -> Iterator[None]:
        """Turns errors of a process that cannot start or has ended into a message."""
        try:
            yield
        except (EOFError, OSError) as error:
            raise self._killed() if _is_end(error) else _cannot_start(error) from error

    def _killed(self) -> UserError:
        return UserError(
            "a worker process was killed, probably because memory ran out: run the same command again with fewer "
            f"--num_workers than {self._num_workers}; finished work is kept"
        )

    def close(self) -> None:
        """Lets the idle workers end.

        Raises:
            UserError: one was killed.
        """
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.process.join(_EXIT_TIMEOUT_S)
        if any(worker.process.exitcode for worker in self._workers):
            raise self._killed()
        self._workers.clear()

    def kill(self) -> None:
        """Kills the workers, and then waits until they have ended."""
        for worker in self._workers:
            assert worker.process.pid is not None, "it has been started"
            with suppress(ProcessLookupError):
                # Not process.kill(), which does nothing when the fork server is dead.
                os.kill(worker.process.pid, signal.SIGKILL)
        for worker in self._workers:
            with suppress(EOFError, OSError), worker.connection:
                while worker.connection.poll(_EXIT_TIMEOUT_S):
                    worker.connection.recv_bytes()


class _StatePickler(pickle.Pickler):
    """Pickles a state; flags that processes share are set apart, and stand in it by number.

    The reports, whose listener is of this process, stand in it as -1.
    """

    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self.shared: list[ctypes.c_byte] = []
        self.reports: ProgressReports | None = None

    def persistent_id(self, value: Any) -> int | None:
        """Returns the number of a shared flag, -1 for the reports; None for what is pickled."""
        if isinstance(value, ProgressReports):
            self.reports = value
            return -1
        if not isinstance(value, ctypes.c_byte):
            return None
        self.shared.append(value)
        return len(self.shared) - 1


def _pickled(state: Any) -> tuple[bytes, list[ctypes.c_byte], ProgressReports | None]:
    file = io.BytesIO()
    pickler = _StatePickler(file)
    pickler.dump(state)
    return file.getvalue(), pickler.shared, pickler.reports


def _is_end(error: EOFError | OSError) -> bool:
    """True if the process at the other end of a connection has ended, before or in a message."""
    return not isinstance(error, OSError) or isinstance(error, ConnectionError) or error.errno is None


def _allow_open_files(needed: int) -> None:
    """Raises the limit of open files, which the fork server and the workers inherit.

    Raises:
        UserError: the system does not allow so many.
    """
    limit, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or needed <= limit:
        return
    if highest != resource.RLIM_INFINITY and needed > highest:
        raise _too_few_files(highest, max(1, (highest - _FILES) // _FILES_PER_WORKER))
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, highest))


def _too_few_files(limit: int, fitting_workers: int) -> UserError:
    return UserError(
        f"this process may open {limit} files at once, too few for its worker processes: raise the limit "
        f"(ulimit -n 1024), or give --num_workers {fitting_workers}"
    )


def _cannot_start(error: EOFError | OSError) -> UserError:
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return _too_few_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1)
    return UserError(f"the worker processes cannot be started ({error}): give --num_workers 1")


def start_fork_server(num_workers: int, preloaded: Sequence[str] = _PRELOADED) -> None:
    """Starts the server process from which workers are forked, if it does not run.

    It imports what they need while this process opens the tokenizer. Without this call it starts
    with the first pool.

    Args:
        num_workers: of the largest pool; the limit of open files is raised for it.
        preloaded: modules of the workers.

    Raises:
        UserError: there is no directory for its socket, or the process may not open more files.
    """
    _allow_open_files(_FILES + num_workers * _FILES_PER_WORKER)
    _context.set_forkserver_preload(list(preloaded))
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
    socket_parent = _socket_parent()  # before anything is set that is to be restored
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    temporary_dir, tempfile.tempdir = tempfile.tempdir, socket_parent
    # This process handles Ctrl-C. The server and the workers inherit the mask.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    except OSError as error:
        raise _cannot_start(error) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        tempfile.tempdir = temporary_dir
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _socket_parent() -> str:
    """The temporary directory, or another one if its path is too long for a socket below it."""
    with suppress(FileNotFoundError):  # there may be none
        for directory in (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"):
            if len(os.fsencode(directory)) <= _LONGEST_TEMPORARY_DIR and os.access(directory, os.W_OK | os.X_OK):
                return directory
    raise UserError(
        "no directory can hold the socket of the worker processes: set TMPDIR to a directory that can be written to, "
        f"with a path of at most {_LONGEST_TEMPORARY_DIR} bytes, or give --num_workers 1"
    )


def shared_flag() -> ctypes.c_byte:
    """Creates an integer that all workers of a pool share, 0 at first, for the pool's state.

    It has no lock, which a killed worker might hold.
    """
    return _context.RawValue(ctypes.c_byte, 0)


@contextmanager
def worker_pool(num_workers: int, state: Any, preloaded: Sequence[str] = _PRELOADED) -> Iterator[WorkerPool]:
    """Yields a pool whose workers each hold a copy of `state`.

    The workers end with the block, or when this process dies. An error kills them.

    Args:
        num_workers: number of processes; one is this process.
        state: first argument of the functions that the workers run.
        preloaded: modules of the workers, for the process that they are forked from.

    Raises:
        UserError: a worker was killed, even if its work was done.
    """
    if num_workers > 1:
        start_fork_server(num_workers, preloaded)
    pool = WorkerPool(num_workers, state)
    try:
        yield pool
        pool.close()
    finally:
        pool.kill()


# ------------------------------------------------------------------------------------ in the worker


class _StateUnpickler(pickle.Unpickler):
    """Reads what `_StatePickler` wrote."""

    def __init__(self, content: bytes, shared: Sequence[ctypes.c_byte], reports: ProgressReports):
        super().__init__(io.BytesIO(content))
        self._shared, self._reports = shared, reports

    def persistent_load(self, number: int) -> ctypes.c_byte | ProgressReports:
        """Returns what a number of `_StatePickler.persistent_id` stands for."""
        return self._reports if number < 0 else self._shared[number]


def _serve(connection: Connection, shared: Sequence[ctypes.c_byte]) -> None:
    """Receives the state, and answers tasks until the connection ends, be it in a message."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    with suppress(EOFError, OSError):
        reports = ProgressReports(lambda report: connection.send_bytes(_REPORT + pickle.dumps(report)))
        state = _StateUnpickler(connection.recv_bytes(), shared, reports).load()
        while True:
            function, task = connection.recv()
            connection.send_bytes(_answer(function, state, task))


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is a worker"
    parent.join()
    os._exit(1)


def _answer(function: Callable[[Any, Any], Any], state: Any, task: Any) -> bytes:
    """The pickled result of a task, or the error that is to be raised in the parent."""
    try:
        return pickle.dumps((function(state, task), None))
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))
        return pickle.dumps((None, error))


def _result(answer: bytes) -> Any:
    result, error = pickle.loads(answer)
    if error is not None:
        raise error
    return result
