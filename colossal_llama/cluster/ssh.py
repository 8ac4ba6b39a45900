"""Commands on the hosts of a hostfile over ssh.

They go through the library that `colossalai run` uses (fabric), with the same settings.
"""

import shlex
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import fabric
from invoke.exceptions import CommandTimedOut, Failure, ThreadException
from paramiko.ssh_exception import AuthenticationException, NoValidConnectionsError, SSHException

Result = TypeVar("Result")
_BROKEN_CONNECTION = (SSHException, ThreadException, OSError, EOFError)


@dataclass(frozen=True)
class Output:
    """Exit code and output of a command on a host; code 124 after a timeout."""

    code: int
    stdout: str
    stderr: str


class HostUnreachable(Exception):
    """A host that cannot be reached over ssh; the message says why and what to do."""


class RemoteShell:
    """An ssh connection to a host that runs commands in a directory there.

    Args:
        host: name of the host.
        port: of its sshd; None: ssh's default or that of ~/.ssh/config.
        directory: working directory of the commands.
        variables: environment variables of the commands.
        connect_timeout_s: for the connection.
    """

    def __init__(
        self, host: str, port: int | None, directory: Path, variables: dict[str, str], connect_timeout_s: float
    ):
        self.host = host
        self._connection = fabric.Connection(host, port=port, connect_timeout=connect_timeout_s)
        exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
        self._prefix = f"cd {shlex.quote(str(directory))} && export {exports} && "

    def __enter__(self) -> "RemoteShell":
        """Opens the connection.

        Raises:
            HostUnreachable: it failed.
        """
        try:
            self._connection.open()
        except Exception as error:  # paramiko raises errors of half a dozen classes
            raise HostUnreachable(_connection_problem(self.host, error)) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def run(self, command: Sequence[str], timeout_s: float) -> Output:
        """Runs a command, which is killed after `timeout_s` (code 124).

        Raises:
            HostUnreachable: the connection broke.
        """
        line = f"timeout {timeout_s:.0f} {shlex.join(command)}"
        try:
            done = self._connection.run(
                self._prefix + line, hide=True, warn=True, in_stream=False, timeout=timeout_s + 5
            )
        except CommandTimedOut:
            return Output(124, "", f"not finished after {timeout_s:.0f} s")
        except _BROKEN_CONNECTION as error:
            raise HostUnreachable(_connection_problem(self.host, error)) from error
        return Output(done.exited, done.stdout, done.stderr)

    def clock_skew_s(self) -> tuple[float, float]:
        """Returns the seconds that the host's clock is ahead of this one's, and their error.

        Raises:
            HostUnreachable: the host does not tell the time.
        """
        started = time.time()
        try:
            shown = self._connection.run("date +%s.%N", hide=True, in_stream=False).stdout
        except (Failure, *_BROKEN_CONNECTION) as error:
            raise HostUnreachable(_connection_problem(self.host, error)) from error
        ended = time.time()
        try:
            theirs = float(shown)
        except ValueError:
            raise HostUnreachable(
                f"`date` shows {shown[:80]!r} there instead of seconds: does a start-up file of the shell (~/.bashrc) "
                "print something?"
            ) from None
        return theirs - (started + ended) / 2, (ended - started) / 2


def run_on_all(hosts: Sequence[str], function: Callable[[str], Result]) -> dict[str, Result]:
    """Calls the function for all hosts at once, each on a thread; returns its results by host."""
    with ThreadPoolExecutor(max_workers=len(hosts)) as pool:
        return dict(zip(hosts, pool.map(function, hosts), strict=True))


def _connection_problem(host: str, error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        cause = f"the host name cannot be resolved ({error.strerror})"
        return f"{cause}: correct it in the hostfile, or add it to /etc/hosts or ~/.ssh/config"
    if isinstance(error, AuthenticationException):
        advice = (
            f"put the master's public key into ~/.ssh/authorized_keys there, until `ssh {host} true` needs no password"
        )
        return f"ssh authentication failed: {advice}"
    if isinstance(error, NoValidConnectionsError | ConnectionRefusedError):
        cause = f"no ssh server answers ({error})"
        return f"{cause}: start the host and its sshd, or set its port with --ssh_port or ~/.ssh/config"
    if isinstance(error, TimeoutError | SSHException | OSError):
        cause = f"the ssh connection failed ({error or type(error).__name__})"
        return f"{cause}: is the host up, and does its firewall allow ssh?"
    return f"ssh failed: {type(error).__name__}: {error}"
