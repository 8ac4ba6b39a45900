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
"""System errors whose cause is a directory or file of the user, not the program."""


class UserError(Exception):
    """A problem with the user's input or environment.

    The message names what is wrong (file, line, value), why, and what to do next. Several problems
    are raised as one error, so that one run reports all of them:

        raise UserError(["--lr -1 is negative: give a positive number", "x does not exist"])

    Attributes:
        problems: a message for each.
    """

    def __init__(self, problems: str | Sequence[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


def truncate_problems(problems: Sequence[str], limit: int = 20) -> list[str]:
    """Returns the first `limit` problems, and a line with the number of the others."""
    hidden = len(problems) - limit
    return list(problems) if hidden <= 0 else [*problems[:limit], f"and {hidden:,} more"]


def print_and_exit(error: UserError) -> None:
    """Prints the problems to stderr on the first rank of each host, and exits with code 2."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        host = "" if os.environ.get("RANK", "0") == "0" else f" (rank {os.environ['RANK']} on {socket.gethostname()})"
        with suppress(BrokenPipeError):  # the launcher on a lost host no longer reads
            for problem in error.problems:
                # One write a line, also with PYTHONUNBUFFERED=1: launchers interleave the output
                # of hosts between writes.
                sys.stderr.write(f"error{host}: {problem}\n")
                sys.stderr.flush()
    raise SystemExit(2)


def run_main(main: Callable[[], None]) -> None:
    """Runs a script's `main`, and turns expected errors into a message and an exit code.

    - Code 2: a `UserError`, or an error of the file system (disk full, no permission), with its
      message.
    - Code 130: Ctrl-C, with a line.
    - Code 1: the reader of the output has closed the pipe; nothing is printed, as Python's
      documentation recommends (library, signal, "Note on SIGPIPE").

    Other errors keep their traceback.
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
