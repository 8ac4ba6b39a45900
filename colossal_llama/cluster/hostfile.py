"""Host names of a hostfile: read, checked and resolved before anything is started on them."""

import re
import socket
from pathlib import Path

from colossal_llama.utils.errors import UserError, truncate_problems

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
