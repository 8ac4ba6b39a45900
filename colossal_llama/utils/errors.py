"""Errors that the user can fix: one message, no traceback, exit code 2.

Scripts import this module first, and Ctrl-C meanwhile has a traceback: it imports little at once.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, cast

from colossal_llama.utils.distributed_env import is_rank_zero, speaks_for_host
from colossal_llama.utils.streams import prepare_streams, stdout_fails

_OUT_OF_FILES = frozenset((errno.EMFILE, errno.ENFILE))
_FILE_SYSTEM_ERRNOS = frozenset(
    (
        errno.EACCES,
        errno.EDQUOT,
        errno.EEXIST,
        errno.EFBIG,
        errno.EIO,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENODEV,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.ENOTEMPTY,
        errno.ENXIO,
        errno.EPERM,
        errno.EROFS,
        errno.ESTALE,
        errno.ETXTBSY,
    )
)
"""System errors whose cause is a directory or file of the user or the host, not the program."""


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


def print_and_exit(error: UserError) -> NoReturn:
    """Prints the problems to stderr on the first rank of each host, and exits with code 2."""
    if speaks_for_host():
        host = "" if is_rank_zero() else f" (rank {os.environ['RANK']} on {os.uname().nodename})"
        for problem in error.problems:
            # One write a line: launchers interleave the output of hosts between writes.
            sys.stderr.write(f"error{host}: {problem}\n")
            sys.stderr.flush()
    raise SystemExit(2)


def run_main(main: Callable[[], None] | str) -> None:
    """Runs a script's `main`, and turns expected errors into a message and an exit code.

    Named as `module:function`, it is imported here, so that Ctrl-C meanwhile and absent packages
    are messages, too.

    - Code 2: a `UserError`, an error of the file system (disk full, no permission, name too long)
      or of the host's resources (memory, open files), or a package that is not installed, with its
      message.
    - Code 130: Ctrl-C, with a line.
    - Code 1: the reader of the output has closed the pipe; nothing is printed, as Python's
      documentation recommends (library, signal, "Note on SIGPIPE").

    Other errors keep their traceback.
    """
    ended: BaseException | None = None
    try:
        prepare_streams()
        Path.cwd()  # raises where the directory is gone; libraries end without a sentence there
        if isinstance(main, str):
            import pkgutil

            main = cast(Callable[[], None], pkgutil.resolve_name(main))
        main()
    except BaseException as error:
        ended = error
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt_at_once)  # the interpreter's end takes up to a second
    lost_output = stdout_fails(isinstance(ended, BrokenPipeError))
    if lost_output is not None and (ended is None or isinstance(ended, OSError | SystemExit)):
        ended = _end_of_output(lost_output, ended)
    if ended is not None:
        _exit_for(ended)


def _interrupt_at_once(*_: object) -> NoReturn:
    with suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(130)


def _end_of_output(lost_output: OSError, ended: BaseException | None) -> BaseException:
    """The error to report when stdout cannot be written: another one, if that came first."""
    if isinstance(ended, SystemExit) and ended.code not in (None, 0):
        return ended
    if isinstance(ended, OSError) and ended.errno not in (None, lost_output.errno):
        return ended
    if isinstance(lost_output, BrokenPipeError):
        return SystemExit(1)
    return UserError(f"standard output cannot be written: {lost_output.strerror}")


def _exit_for(error: BaseException) -> NoReturn:
    """Exits with the message and the code that belong to an error, or raises it."""
    problem = str(error) if isinstance(error, UserError) else problem_of_host(error)
    if isinstance(error, UserError):
        print_and_exit(error)
    if problem is not None:
        print_and_exit(UserError(problem))
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    raise error


def problem_of_host(error: BaseException) -> str | None:
    """The sentence for an error whose cause is the host and not the program; None for others."""
    if isinstance(error, OSError):
        return _problem_of_system(error)
    if isinstance(error, ModuleNotFoundError):
        return missing_package_problem(error.name or "")
    if isinstance(error, MemoryError):
        return "the memory of this host does not suffice" + (f": {error}" if str(error) else "")
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "this host lets you start no further thread: raise the limit (ulimit -u), or end other programs"
    return None


def _problem_of_system(error: OSError) -> str | None:
    name = error.filename2 or error.filename
    if error.errno in _OUT_OF_FILES:
        return f"{error.strerror}: raise the limit of this shell (ulimit -n 4096) and run the command again"
    if error.errno in _FILE_SYSTEM_ERRNOS:
        return f"{name}: {error.strerror}" if name else error.strerror
    if error.errno == errno.EAGAIN and name is None:
        return f"no further process can be started ({error.strerror}): raise the limit (ulimit -u), or end others"
    if error.errno == errno.ENOENT and name is None:
        if "temporary" in str(error):
            return "no directory for temporary files can be written: set TMPDIR to one that can"
        return "the working directory no longer exists: change to another one and run the command again"
    if "AF_UNIX path too long" in str(error):
        import tempfile

        return f"TMPDIR ({tempfile.gettempdir()}) is too long for the name of a socket: set it to a shorter directory"
    return None


def missing_package_problem(module: str) -> str | None:
    """The sentence for a module whose package is not installed; None where the package is there."""
    import importlib.util

    package = module.partition(".")[0]
    if not package or package == __name__.partition(".")[0] or importlib.util.find_spec(package) is not None:
        return None
    root = Path(__file__).resolve().parents[2]
    remedy = (
        f"run 'bash {root}/setup_environment.sh' once, and then 'source {root}/.venv/bin/activate' in every shell"
        if (root / "setup_environment.sh").is_file()
        else "install the requirements of colossal-llama there"
    )
    return f"the package {package} is not installed in {sys.executable}: {remedy}"
