"""Advisory locks on files (flock), released by the system however the process ends."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def file_lock(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[TextIO]:
    """Holds a lock on a file, which is created if it does not exist, while the block runs.

    Args:
        path: the lock file; its content is left as it is.
        shared: several processes may hold the lock, each with `shared=True`; one that asks for it
            without is refused meanwhile, and refuses them.
        wait: waits until the lock is free, instead of raising.

    Yields:
        The lock file, open for reading and writing.

    Raises:
        BlockingIOError: another process holds the lock; `filename` is the content of the file.
    """
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with path.open("a+") as file:
        try:
            fcntl.flock(file, operation if wait else operation | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise BlockingIOError(error.errno, error.strerror, file.read().strip()) from None
        yield file


@contextmanager
def directory_lock(directory: Path) -> Iterator[None]:
    """Locks a directory, which is created if it does not exist, for one process (`.lock` in it).

    Raises:
        BlockingIOError: another process holds it; `filename` names the process, its host and since
            when.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with file_lock(directory / ".lock") as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%F %T')}\n")
        file.flush()
        yield
