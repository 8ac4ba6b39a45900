"""Advisory locks on files (flock), released by the system however the process ends.

A lock file is a file of its own: a link, a directory or a pipe of that name is refused, and so is a
file whose content somebody else wrote.
"""

import errno
import fcntl
import os
import re
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from colossal_llama.utils.errors import UserError

_HOLDER = re.compile(r"process \d+ on ")


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
        UserError: what has the name is no file, or has content that is no lock's.
    """
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        with _open_lock(path) as file:
            try:
                fcntl.flock(file, operation if wait else operation | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BlockingIOError(error.errno, error.strerror, file.read().strip()) from None
            if not _is_at(file, path):
                continue  # its holder removed it while this process waited
            yield file
            return


def remove_lock(path: Path, file: TextIO, further: Iterable[Path] = ()) -> bool:
    """Removes a held lock file, unless other processes share the lock; tells whether it did.

    A process that has opened the file before asks again under the name, see `file_lock`.

    Args:
        path: the lock file.
        file: it, open.
        further: lock files that are taken by holders of this one alone, removed before it.
    """
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for other in further:
            other.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        return True
    return False


def _open_lock(path: Path) -> TextIO:
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its other end.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise _no_lock(path, "a link" if path.is_symlink() else "no file") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_lock(path, "no file")
    file = os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace")
    beginning = file.read(64)
    file.seek(0)
    if beginning and not _HOLDER.match(beginning):
        file.close()
        raise _no_lock(path, "a file that somebody else wrote")
    return file


def _no_lock(path: Path, what: str) -> UserError:
    return UserError(f"{path} is {what}, not a lock of these scripts: move it away, or give another directory")


def _is_at(file: TextIO, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    return False


@contextmanager
def directory_lock(directory: Path) -> Iterator[None]:
    """Locks a directory, which is created if it does not exist, for one process (`.lock` in it).

    A block that fails takes away what was created for it: the lock file, and directories that are
    still empty.

    Raises:
        BlockingIOError: another process holds it; `filename` names the process, its host and since
            when.
    """
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    is_new = not (directory / ".lock").exists()
    directory.mkdir(parents=True, exist_ok=True)
    with file_lock(directory / ".lock") as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%F %T')}\n")
        file.flush()
        try:
            yield
        except BaseException:
            if is_new and remove_lock(directory / ".lock", file):
                with suppress(OSError):
                    for path in missing:
                        path.rmdir()
            raise
