"""Commands on the hosts of a hostfile, by ssh, through the same library and settings as `colossalai run` (fabric)."""

import shlex
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import fabric
from invoke.exceptions import CommandTimedOut
from paramiko.ssh_exception import AuthenticationException, NoValidConnectionsError, SSHException

from colossal_llama.utils.errors import UserError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Output:
    """What a command on a host left."""

    code: int
    stdout: str
    stderr: str


class Unreachable(Exception):
    """A host that ssh does not reach; the message says why and what to do."""


def read_hostfile(path: Path) -> list[str]:
    """The hosts of a hostfile: a name a line; empty lines are skipped, as `colossalai run` does.

    Raises:
        UserError: there is none, or one twice, or the file is no text.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): write one host name a line") from error
    if not names:
        raise UserError(f"{path} names no host: write one host name a line")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path} names {', '.join(twice)} more than once: strike the repetitions out")
    return names


class Shell:
    """ssh to one host, with one command after the other in a directory there."""

    def __init__(
        self, host: str, port: int | None, directory: Path, variables: dict[str, str], connect_timeout_s: float
    ):
        self.host = host
        self._connection = fabric.Connection(host, port=port, connect_timeout=connect_timeout_s)
        exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
        self._prefix = f"cd {shlex.quote(str(directory))} && export {exports} && "

    def __enter__(self) -> "Shell":
        """Connects.

        Raises:
            Unreachable: with the reason.
        """
        try:
            self._connection.open()
        except Exception as error:  # paramiko raises half a dozen kinds
            raise Unreachable(_why(self.host, error)) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def run(self, words: Sequence[str], timeout_s: float) -> Output:
        """Runs a command; one that takes longer than `timeout_s` has code 124."""
        line = f"timeout {timeout_s:.0f} {shlex.join(words)}"
        try:
            done = self._connection.run(
                self._prefix + line, hide=True, warn=True, in_stream=False, timeout=timeout_s + 5
            )
        except CommandTimedOut:
            return Output(124, "", f"no end within {timeout_s:.0f} s")
        return Output(done.exited, done.stdout, done.stderr)

    def clock_skew_s(self) -> tuple[float, float]:
        """How far the host's clock is ahead of this one's, in seconds, and how far the measurement may be wrong."""
        begun = time.time()
        done = self._connection.run("date +%s.%N", hide=True, in_stream=False)
        ended = time.time()
        return float(done.stdout) - (begun + ended) / 2, (ended - begun) / 2


def on_all(hosts: Sequence[str], work: Callable[[str], Result]) -> dict[str, Result]:
    """Does the same for all hosts at once."""
    with ThreadPoolExecutor(max_workers=len(hosts)) as pool:
        return dict(zip(hosts, pool.map(work, hosts), strict=True))


def _why(host: str, error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return f"the name is not known here ({error.strerror}): correct it in the hostfile, or add it to /etc/hosts or ~/.ssh/config"
    if isinstance(error, AuthenticationException):
        return f"ssh is refused: put the master's public key into ~/.ssh/authorized_keys there, until `ssh {host} true` asks for nothing"
    if isinstance(error, NoValidConnectionsError | ConnectionRefusedError):
        return f"nothing answers to ssh ({error}): start the host and its sshd, or give its port by --ssh_port or ~/.ssh/config"
    if isinstance(error, TimeoutError | SSHException | OSError):
        return f"ssh does not get through ({error or type(error).__name__}): is the host up, and does its network let ssh in?"
    return f"ssh fails: {type(error).__name__}: {error}"
