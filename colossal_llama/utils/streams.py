"""Standard streams as a shell may hand them over: closed, full, or in any encoding."""

import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import Any, TextIO, cast


def prepare_streams() -> None:
    r"""Makes the standard streams safe to use, whatever the shell has done with them.

    - One that is closed (`>&-`) becomes /dev/null, also its descriptor: the next file that is
      opened would take its number, and receive what is printed.
    - Characters that the encoding does not have are written as escapes (`\u4f60`), and bytes that
      it cannot decode are read as surrogates, which the readers look for (`cli.is_decodable`).
    - What cannot be written to stderr (full disk, terminal gone) is dropped: a message must not
      replace the error that it reports.
    """
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        _open_if_closed(descriptor, name, mode)
    _reconfigure(sys.stdin, "surrogateescape")
    _reconfigure(sys.stdout, "backslashreplace")
    if sys.stderr is sys.__stderr__:
        sys.stderr = _lossy_stderr(getattr(sys.stderr, "encoding", "utf-8"))


def stdout_fails(asks_for_reader: bool = False) -> OSError | None:
    """Flushes stdout and returns the error, if there is one; then /dev/null takes its place.

    The interpreter, which flushes again at its end, so has nothing to complain of.

    Args:
        asks_for_reader: a pipe without a reader is an error also if nothing is left to write to it.
    """
    try:
        sys.stdout.flush()
        if asks_for_reader and stdout_has_no_reader():
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    except OSError as error:
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, 1)
        os.close(descriptor)
        with suppress(OSError):
            sys.stdout.flush()
        return error
    return None


class _Lossy(io.RawIOBase):
    """A descriptor open for writing, whose errors are passed over."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor

    def write(self, data: Any) -> int:
        """Writes all of the bytes, or as many as the system takes."""
        view = memoryview(data).cast("B")
        with suppress(OSError):
            rest = view
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        return len(view)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)


def _lossy_stderr(encoding: str) -> TextIO:
    # Text that io would write as a whole line reaches the descriptor in one write: launchers
    # interleave the output of hosts between writes.
    return io.TextIOWrapper(
        cast(Any, _Lossy(2)),  # unbuffered, as with python -u
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=True,
    )


def _open_if_closed(descriptor: int, name: str, mode: str) -> None:
    try:
        os.fstat(descriptor)
    except OSError:
        opened = os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
        if opened != descriptor:
            os.dup2(opened, descriptor)
            os.close(opened)
        os.set_inheritable(descriptor, True)
    else:
        if getattr(sys, name) is not None:
            return
    stream = open(descriptor, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)


def _reconfigure(stream: Any, errors: str) -> None:
    if isinstance(stream, io.TextIOWrapper):  # a test's or a notebook's stream may be something else
        stream.reconfigure(errors=errors)


def stdout_has_no_reader() -> bool:
    """True when stdout is a pipe that nobody reads, also when nothing is left to write to it."""
    poll = select.poll()
    poll.register(1, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))
