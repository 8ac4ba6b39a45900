"""Errors that the user can fix: one message, no traceback, exit code 2."""

import errno
import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

_FILE_SYSTEM_ERRNOS = frozenset(
    (
        errno.EACCES,
        errno.EDQUOT,
        errno.EEXIST,
        errno.EFBIG,
        errno.EISDIR,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.ENOTEMPTY,
        errno.EPERM,
        errno.EROFS,
    )
)
"""Errors of the system that say something of the user's directories, not of the program."""


class UserError(Exception):
    """A problem with what the user gave: the message says what is wrong (file, line, value), why, and what to do next.

    Several problems found together are joined, so that one run names all of them:

        raise UserError(["--lr -1 is negative: give a positive number", "--dataset x does not exist"])
    """

    def __init__(self, problems: str | Sequence[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


def truncate_problems(problems: Sequence[str], most: int = 20) -> list[str]:
    """The first problems, and how many more there are."""
    hidden = len(problems) - most
    return list(problems) if hidden <= 0 else [*problems[:most], f"and {hidden:,} more"]


def print_and_exit(error: UserError) -> None:
    """Prints the problems to standard error, once a host, and ends the process with code 2."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        host = "" if os.environ.get("RANK", "0") == "0" else f" (rank {os.environ['RANK']} on {socket.gethostname()})"
        with suppress(BrokenPipeError):  # a launcher on a host that has gone reads no more
            for problem in error.problems:
                # One write a line, also with PYTHONUNBUFFERED=1: launchers mix what hosts say
                # between writes.
                sys.stderr.write(f"error{host}: {problem}\n")
                sys.stderr.flush()
    raise SystemExit(2)


def run_main(main: Callable[[], None]) -> None:
    """Runs a script's `main`; a `UserError` becomes its message and exit code 2, Ctrl-C a line and exit code 130.

    So does a full disk, or a place that may not be read or written, wherever it is met (code 2). A
    reader of the output that goes away ends the script without a word (exit code 1), as Python's
    documentation has it (library, signal, "Note on SIGPIPE").
    """
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        print_and_exit(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno not in _FILE_SYSTEM_ERRNOS:
            raise
        where = f"{error.filename2 or error.filename}: " if error.filename else ""
        print_and_exit(UserError(f"{where}{error.strerror}"))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
