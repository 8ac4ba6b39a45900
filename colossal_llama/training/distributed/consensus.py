"""Consensus of the ranks on errors: all go on, or all end with the same message.

A rank that ends alone leaves the others waiting in their next collective, for minutes, and then
with a message about sockets. So whatever may fail on one host only (a missing mount, an outdated
copy) is tried by all ranks first, and they exchange their errors:

    with consensus.raise_on_all_ranks():
        parts = open_parts(arguments.dataset, arguments.max_length)     # no collective inside
"""

import os
import socket
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from colossal_llama.engine import launch
from colossal_llama.training.signals import REQUEST, Phase, Stopped, describe_stop, exit_code
from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.cli import InvalidArguments
from colossal_llama.utils.console import is_rank_zero
from colossal_llama.utils.distributed_env import is_multi_host
from colossal_llama.utils.environment import code_fingerprint, installed_packages
from colossal_llama.utils.errors import UserError

_VISIBLE_WITHIN_S = 5.0
"""Network file systems show a new file late. They do not cache as absent a name that nobody has
looked up before."""

_MEETING_INTERVAL_S = 10.0
"""Seconds between two meetings of ranks that wait for each other's work."""

Arguments = TypeVar("Arguments")


class CollectiveError(UserError):
    """An error that every rank raises."""


def parse_and_launch(parse: Callable[[], Arguments], seed_of: Callable[[Arguments], int]) -> Arguments:
    """Parses the arguments and joins the process group.

    Arguments or versions that are wrong on one host end the run on all. On a single host all ranks
    find the same problems, and end before anything is launched.

    Args:
        parse: returns the arguments, or raises `InvalidArguments`.
        seed_of: returns the seed among them.

    Raises:
        CollectiveError: arguments, packages or this project's files are wrong on some host.
        Stopped: a rank has received a signal meanwhile.
    """
    arguments, problems = None, []
    try:
        arguments = parse()
    except InvalidArguments as error:
        if not is_multi_host():
            raise
        problems = error.problems
    problems += _launch(seed_of(arguments) if arguments else 0)
    raise_problems([*problems, *(_version_differences() if is_multi_host() else ())])
    assert arguments is not None, "problems were raised"
    return arguments


def _launch(seed: int) -> list[str]:
    """Launches the engine.

    Where one host of several cannot import it, it joins the process group to report that.
    """
    try:
        launch.prepare_engine()
    except Exception as error:
        if not is_multi_host():
            raise
        traceback.print_exc()
        REQUEST.begin(Phase.MEETING)
        launch.join_without_engine()
        REQUEST.begin(Phase.STARTING)
        return [f"ColossalAI cannot be imported: {type(error).__name__}: {error}"]
    REQUEST.begin(Phase.MEETING)
    launch.launch(seed)
    REQUEST.begin(Phase.STARTING)
    return []


def _version_differences() -> list[str]:
    """Differences of this host's packages and code from those of rank 0's host; a collective."""
    mine = (socket.gethostname(), installed_packages(), code_fingerprint())
    first_host, packages, code = _all_gather(mine)[0]
    problems = [
        f"{name} is {mine[1].get(name) or 'missing'}, on {first_host} {version or 'missing'}: run "
        "setup_environment.sh there"
        for name, version in packages.items()
        if mine[1].get(name) != version
    ]
    if mine[2] != code:
        problems.append(f"this project's files are not those of {first_host}: check out the same version there")
    return problems


def raise_problems(problems: list[str]) -> None:
    """Raises on all ranks when one has problems, or a signal to stop; a collective.

    Raises:
        CollectiveError: with every rank's problems and the hosts that have them.
        Stopped: a rank has received a signal, and the run has not begun to train.
    """
    replies = _all_gather((socket.gethostname(), problems, REQUEST.number_before_training()))
    found = [(host, theirs) for host, theirs, _ in replies]
    if not any(theirs for _, theirs in found):
        _stop_before_training([number for *_, number in replies if number is not None])
        return
    hosts = {host for host, _ in found}
    hosts_with = defaultdict(set)  # keeps the order in which problems are found
    for host, theirs in found:
        for problem in theirs:
            hosts_with[problem].add(host)
    raise CollectiveError(
        [
            problem if having == hosts else f"on {', '.join(sorted(having))}: {problem}"
            for problem, having in hosts_with.items()
        ]
    )


def _stop_before_training(numbers: list[int]) -> None:
    if not numbers:
        return
    if is_rank_zero():
        print(describe_stop(numbers[0]), file=sys.stderr, flush=True)
    raise Stopped(exit_code(numbers[0]))


def announce_late_signal() -> None:
    """Tells of a signal that some rank received after the last step; a collective."""
    numbers = [number for number in _all_gather(REQUEST.number) if number is not None]
    if is_rank_zero():
        REQUEST.announce_late(numbers[0] if numbers else None)


@contextmanager
def raise_on_all_ranks() -> Iterator[None]:
    """Makes all ranks raise when the block, which must hold no collective, fails on one.

    Raises:
        CollectiveError: the block raised a `UserError` on some rank, or anything else: then that
            rank has printed its traceback.
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
    raise_problems(problems)


def wait_on_all_ranks(is_done: Callable[[float], bool], on_wait: Callable[[], None] = lambda: None) -> None:
    """Waits until something is done on every rank, however long it takes; a collective.

    The ranks meet every few seconds, so that none runs into the time limit of a collective.

    Args:
        is_done: waits for so many seconds at most, and returns whether it is done on this rank.
        on_wait: called each time that some rank is not done yet.
    """
    while not all(_all_gather(is_done(_MEETING_INTERVAL_S))):
        on_wait()


def write_record(option: str, file: Path, content: Any) -> None:
    """Writes a JSON file on rank 0, in a directory that may be new; a collective.

    Args:
        option: the argument that names it, or from which its name is derived.
        file: its path.
        content: JSON values.

    Raises:
        CollectiveError: the file cannot be written.
    """
    with raise_on_all_ranks():
        if is_rank_zero():
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, content)
            except OSError as error:
                raise UserError(f"{option}: {file} cannot be written: {error.strerror}") from error


def check_same(values: Mapping[str, str]) -> None:
    """Raises on all ranks when hosts have different inputs, like outdated copies; a collective.

    Args:
        values: a fingerprint of each input, by its name; the same names on every rank.

    Raises:
        CollectiveError: names the inputs that differ from rank 0's, and the hosts.
    """
    found = _all_gather((socket.gethostname(), dict(values)))
    first_host, first = found[0]
    problems = {
        f"{name} on {host} is not the same as on {first_host}: copy it again, or use a file system that both share"
        for host, theirs in found
        for name in first
        if theirs[name] != first[name]
    }
    if problems:
        raise CollectiveError(sorted(problems))


def check_shared(directory: Path, option: str) -> None:
    """Raises on all ranks when a host does not see files that rank 0 writes; a collective.

    Args:
        directory: rank 0 can write there.
        option: the argument that names it.

    Raises:
        CollectiveError: names the hosts.
    """
    if not is_multi_host():
        return
    mark = directory / f".seen-{os.getpid()}-{time.time_ns()}"
    owner = socket.gethostname()
    if dist.get_rank() == 0:
        mark.touch()
    owner, mark = _all_gather((owner, mark))[0]
    problems = []
    if not _becomes_visible(mark):
        problems = [
            f"{option} {directory} is not what {owner} has under that name. Rank 0 writes checkpoints there and all "
            "ranks read them when the run is resumed: mount the same file system on every host"
        ]
    try:
        raise_problems(problems)
    finally:
        if dist.get_rank() == 0:
            mark.unlink()


def _becomes_visible(path: Path) -> bool:
    deadline = time.monotonic() + _VISIBLE_WITHIN_S
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _all_gather(mine: Any) -> list[Any]:
    """Objects of all ranks, by rank; a collective."""
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone
