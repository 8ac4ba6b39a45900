"""Host names of a hostfile: read, checked and resolved before anything is started on them."""

import re
import shutil
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from colossal_llama.utils.errors import UserError, truncate_problems

_CONNECT_TIMEOUT_S = 10.0
PREFLIGHT = "python colossal_llama/cluster/preflight.py"
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*(%\w+)?")
"""A host name or IPv4 address, or an IPv6 address.

Anything else would be taken for an option of ssh, for a user or a port, or by a shell."""


def read_hostfile(path: Path) -> list[str]:
    """Reads a hostfile: a host name on each line, empty lines skipped, as for `colossalai run`.

    Raises:
        UserError: the file cannot be read, has no host, one twice, or a line that is no host name.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): write one host name on each line") from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): copy hostfile.example and write one host name on each line"
        ) from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    problems = [
        f"{path}, line {number}: {problem}" for number, name in numbered if (problem := host_problem(name)) is not None
    ]
    if problems:
        raise UserError(truncate_problems(problems))
    names = [name for _, name in numbered]
    if not names:
        raise UserError(f"{path} has no host name: write one on each line")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path} names {', '.join(twice)} more than once: remove the repetitions")
    return names


def host_problem(name: str) -> str | None:
    """Explains why a text is not the name of a host; None where it may be one."""
    if _HOST.fullmatch(name):
        return None
    return (
        f"{name[:80]!r} is not a host name: write the name alone, and a user or a port of ssh into ~/.ssh/config; "
        "a hostfile has no comments"
    )


def resolution_problems(names: list[str]) -> list[str]:
    """Names that this host cannot resolve, each with what to do."""
    problems = []
    for name in names:
        try:
            socket.getaddrinfo(name, None)
        except OSError as error:
            problems.append(
                f"the host {name} cannot be resolved ({error.strerror}): correct its name, or add it to /etc/hosts; "
                f"{PREFLIGHT} checks all hosts"
            )
    return problems


def ssh_problems(names: list[str], port: int | None) -> list[str]:
    """Hosts on which no ssh server answers; this host needs none.

    Args:
        names: that can be resolved.
        port: of the ssh servers; None: ssh's default or that of ~/.ssh/config.
    """
    if not names:
        return []
    with ThreadPoolExecutor(len(names)) as pool:
        found = pool.map(lambda name: _ssh_problem(name, port), names)
        return [problem for problem in found if problem is not None]


def _ssh_problem(name: str, port: int | None) -> str | None:
    if is_this_host(name):
        return None
    settings = _ssh_settings(name)
    if {"proxyjump", "proxycommand"} & settings.keys():
        return None  # not connected to directly
    address, number = settings.get("hostname", name), port or int(settings.get("port", "22"))
    try:
        socket.create_connection((address, number), _CONNECT_TIMEOUT_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        return (
            f"no ssh server answers on the host {name} at port {number} ({reason}): start the host and its sshd, or "
            f"remove it from the hostfile; {PREFLIGHT} checks all hosts"
        )
    return None


def is_this_host(name: str) -> bool:
    """True for the names on which `colossalai run` starts without ssh."""
    if name in ("localhost", "127.0.0.1", "0.0.0.0"):
        return True
    try:
        return socket.getaddrinfo(socket.getfqdn(name), 22) == socket.getaddrinfo(socket.gethostname(), 22)
    except OSError:
        return False


def _ssh_settings(name: str) -> dict[str, str]:
    """Settings of ssh for a host by the user's configuration, in lower case; none without ssh."""
    if shutil.which("ssh") is None:
        return {}
    done = subprocess.run(["ssh", "-G", "--", name], capture_output=True, text=True, check=False)
    pairs = (line.partition(" ") for line in done.stdout.splitlines())
    return {key: value for key, _, value in pairs if value != "none"}
