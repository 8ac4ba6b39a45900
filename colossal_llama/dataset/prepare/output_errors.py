"""Turns errors of the system about an output directory into messages."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from colossal_llama.utils.errors import UserError

_FULL = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "the disk of {} is full: free some space") | {
    errno.EFBIG: "a file in {} would be larger than the system allows: raise the limit (ulimit -f)"
}


@contextmanager
def errors_named(directory: Path) -> Iterator[None]:
    """Names what the system says about the files of a run.

    Args:
        directory: that the run writes into.

    Raises:
        UserError: the disk is full, a file may not be read or written, or has gone.
    """
    try:
        yield
    except PermissionError as error:
        raise UserError(f"{error.filename} may not be read or written: {error.strerror}") from error
    except FileNotFoundError as error:
        if error.filename is None or not Path(error.filename).is_relative_to(directory):
            raise
        raise UserError(
            f"{error.filename} has gone while this run was working with it: run the same command again, which makes it "
            "anew"
        ) from error
    except OSError as error:
        problem = _FULL.get(error.errno or 0)
        if problem is None:
            raise
        raise UserError(
            f"{problem.format(directory)} and run the same command again; finished parts are intact and will be kept"
        ) from error
