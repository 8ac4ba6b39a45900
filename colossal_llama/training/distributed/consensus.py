"""All ranks go on, or all end with the same message: what is wrong on one host is known to every rank at once.

A rank that ends alone leaves the others waiting in their next collective, for minutes, and then
with a message about sockets. So whatever may fail on one host only (a missing mount, a stale copy)
is tried by all ranks first, and they compare notes:

    with agreement.together():
        parts = open_parts(arguments.dataset, arguments.max_length)     # no collective inside
"""

import os
import socket
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from colossal_llama.engine import launch
from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.cli import InvalidArguments
from colossal_llama.utils.console import is_rank_zero
from colossal_llama.utils.distributed_env import is_multi_host
from colossal_llama.utils.environment import code_fingerprint, installed_packages
from colossal_llama.utils.errors import UserError

# Network file systems show a new file late; a name nobody asked for before is not cached as absent.
_SEES_WITHIN_S = 5.0

Arguments = TypeVar("Arguments")


class AgreedError(UserError):
    """An error that every rank raises together."""


def parse_and_launch(parse: Callable[[], Arguments], seed_of: Callable[[Arguments], int]) -> Arguments:
    """Parses and joins the process group; on several hosts, bad arguments or other versions of one end all of them.

    On one host all ranks find the same, and end before anything is launched.

    Args:
        parse: gives the arguments, or ends with `InvalidArguments`.
        seed_of: the seed among them.

    Raises:
        AgreedError: arguments, packages or this project's files are wrong on some host.
    """
    arguments, problems = None, []
    try:
        arguments = parse()
    except InvalidArguments as error:
        if not is_multi_host():
            raise
        problems = error.problems
    problems += _launch(seed_of(arguments) if arguments else 0)
    if is_multi_host():
        agree([*problems, *_other_versions()])
    return arguments


def _launch(seed: int) -> list[str]:
    """Launches the engine; where one host of several cannot even import it, it joins all the same, to say so."""
    try:
        launch.prepare_engine()
    except Exception as error:
        if not is_multi_host():
            raise
        traceback.print_exc()
        launch.join_without_engine()
        return [f"ColossalAI cannot be imported: {type(error).__name__}: {error}"]
    launch.launch(seed)
    return []


def _other_versions() -> list[str]:
    """What this host's packages and code have that rank 0's have not. A collective."""
    mine = (socket.gethostname(), installed_packages(), code_fingerprint())
    first_host, packages, code = _gathered(mine)[0]
    problems = [
        f"{name} is {mine[1].get(name) or 'missing'}, on {first_host} {version or 'missing'}: run "
        "setup_environment.sh there"
        for name, version in packages.items()
        if mine[1].get(name) != version
    ]
    if mine[2] != code:
        problems.append(f"this project's files are not those of {first_host}: check out the same version there")
    return problems


def agree(problems: list[str]) -> None:
    """Ends all ranks when one has problems. A collective.

    Raises:
        AgreedError: with every rank's problems and the hosts that have them.
    """
    found = _gathered((socket.gethostname(), problems))
    if not any(theirs for _, theirs in found):
        return
    hosts = {host for host, _ in found}
    who_has = defaultdict(set)  # keeps the order in which problems are found
    for host, theirs in found:
        for problem in theirs:
            who_has[problem].add(host)
    raise AgreedError(
        [
            problem if having == hosts else f"on {', '.join(sorted(having))}: {problem}"
            for problem, having in who_has.items()
        ]
    )


@contextmanager
def together() -> Iterator[None]:
    """Work that may fail on one rank alone; it must hold no collective. All ranks leave the block, or all raise.

    Raises:
        AgreedError: the block raised a `UserError` on some rank, or anything else: then that rank
            has printed its traceback.
    """
    problems = []
    try:
        yield
    except UserError as error:
        problems = error.problems
    except Exception as error:
        if dist.get_world_size() == 1:
            raise
        traceback.print_exc()
        problems = [f"{type(error).__name__}: {error}"]
    agree(problems)


def write_record(option: str, file: Path, content: Any) -> None:
    """Rank 0 writes a JSON file, in a directory that may be new; all ranks end when it cannot. A collective.

    Args:
        option: the argument that names it, or from which its name follows.

    Raises:
        AgreedError: the file cannot be written.
    """
    with together():
        if is_rank_zero():
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, content)
            except OSError as error:
                raise UserError(f"{option}: {file} cannot be written: {error.strerror}") from error


def check_same(values: Mapping[str, str]) -> None:
    """Ends all ranks when hosts do not have the same: copies on file systems that are not shared grow stale. A collective.

    Args:
        values: for each name of a thing, something that differs when the thing does; the same names
            on every rank.

    Raises:
        AgreedError: naming what differs from rank 0's, and where.
    """
    found = _gathered((socket.gethostname(), dict(values)))
    first_host, first = found[0]
    problems = {
        f"{name} on {host} is not the same as on {first_host}: copy it again, or use a file system that both share"
        for host, theirs in found
        for name in first
        if theirs[name] != first[name]
    }
    if problems:
        raise AgreedError(sorted(problems))


def check_shared(directory: Path, option: str) -> None:
    """Ends all ranks when a host does not see what rank 0 writes into a directory. A collective.

    Args:
        directory: rank 0 can write there.
        option: the argument that names it.

    Raises:
        AgreedError: naming the hosts.
    """
    if not is_multi_host():
        return
    mark = directory / f".seen-{os.getpid()}-{time.time_ns()}"
    owner = socket.gethostname()
    if dist.get_rank() == 0:
        mark.touch()
    owner, mark = _gathered((owner, mark))[0]
    problems = []
    if not _appears(mark):
        problems = [
            f"{option} {directory} is not what {owner} has under that name. Rank 0 writes checkpoints there and all "
            "ranks read them "
            "when the run is resumed: mount the same file system on every host"
        ]
    try:
        agree(problems)
    finally:
        if dist.get_rank() == 0:
            mark.unlink()


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + _SEES_WITHIN_S
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _gathered(mine: Any) -> list[Any]:
    """Every rank's object, by rank."""
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone
