"""Rank and world size of this process in torchrun's environment variables, also under SLURM.

Imports no torch.
"""

import ctypes
import os
import re
import signal
import socket
import sys

_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_MEETING_POINT = ("MASTER_ADDR", "MASTER_PORT")
_COUNTS = ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
_OF_SLURM = {
    "RANK": "SLURM_PROCID",
    "LOCAL_RANK": "SLURM_LOCALID",
    "WORLD_SIZE": "SLURM_NTASKS",
    "GROUP_WORLD_SIZE": "SLURM_NNODES",
    "MASTER_ADDR": "SLURM_STEP_NODELIST",
    "MASTER_PORT": "SLURM_JOB_ID",
}
_ADVICE = "start the script with torchrun, colossalai run or srun, which set it, or unset {names} to use one process"
HOST_TIMEOUT_VARIABLE = "COLOSSAL_LLAMA_HOST_TIMEOUT_S"
"""Seconds without a heartbeat after which a host counts as lost (distributed/watchdog.py)."""


def is_multi_host() -> bool:
    """True when the run's processes are on more than one host."""
    return _is_launched() and (_whole_number("GROUP_WORLD_SIZE") or 1) > 1


def is_rank_zero() -> bool:
    """True for rank 0 of a launcher, and for a process that no launcher started."""
    return not _is_launched() or int(os.environ["RANK"]) == 0


def speaks_for_host() -> bool:
    """True for the process that prints messages for its host: its local rank is 0, or not known."""
    return not _is_launched() or int(os.environ["LOCAL_RANK"]) == 0


def is_srun_task() -> bool:
    """True when this process is a task of a SLURM step and was not started by torchrun within it.

    The script that `sbatch` starts, and a shell of `salloc`, have most of SLURM's variables too,
    but are not tasks of a step.
    """
    return "RANK" not in os.environ and {"SLURM_PROCID", "SLURM_STEP_ID", "SLURM_LOCALID"} <= os.environ.keys()


def adopt_slurm_variables() -> None:
    """Sets torchrun's variables from those of SLURM, if `srun` started this process.

    MASTER_ADDR is the step's first host, where SLURM puts rank 0. MASTER_PORT is derived from the
    job id, so that two jobs on one host do not collide. Both keep a value that the user has set.
    What SLURM does not say, or not in its form, stays unset, and `launcher_problems` names it.
    The variables: https://slurm.schedmd.com/srun.html
    """
    if not is_srun_task():
        return
    slurm = os.environ
    nodelist = slurm.get("SLURM_STEP_NODELIST") or slurm.get("SLURM_JOB_NODELIST") or socket.gethostname()
    job = slurm.get("SLURM_JOB_ID", "0")
    adopted = {
        "RANK": slurm["SLURM_PROCID"],
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "WORLD_SIZE": slurm.get("SLURM_STEP_NUM_TASKS") or slurm.get("SLURM_NTASKS"),
        "GROUP_RANK": slurm.get("SLURM_NODEID", "0"),
        "GROUP_WORLD_SIZE": slurm.get("SLURM_STEP_NUM_NODES") or slurm.get("SLURM_NNODES", "1"),
        "MASTER_ADDR": slurm.get("MASTER_ADDR") or first_host(nodelist),
        "MASTER_PORT": slurm.get("MASTER_PORT") or (str(20_000 + int(job) % 10_000) if _is_number(job) else None),
    }
    os.environ.update({name: value for name, value in adopted.items() if value is not None})


def first_host(nodelist: str) -> str | None:
    """Returns the first host of a SLURM node list; None where the text is none.

    >>> first_host("gpu[007-012,020],login"), first_host("rack[2-3]n[1,4]"), first_host("a,b")
    ('gpu007', 'rack2n1', 'a')
    """
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])+", nodelist)
    if first is None:
        return None
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])


def end_with_launcher() -> None:
    """Asks Linux to end this process when its launcher ends.

    torchrun starts ranks in process sessions of their own: after `kill -9` of the launcher they
    would continue, unnoticed, and write into the directories of the run that is started
    next.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)


def share_of_cores() -> int | None:
    """Returns the threads that this process may use; None where the user has set OMP_NUM_THREADS.

    torchrun gives one thread to each of several processes on a host (OMP_NUM_THREADS=1) unless that
    variable is set. Another number in it is the user's.
    """
    if os.environ.get("OMP_NUM_THREADS", "1") != "1":
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def launcher_problems() -> list[str]:
    """Checks the variables of the launcher, before anything slow is imported.

    Returns:
        A message for each problem: variables that are missing, no numbers, or contradict each
        other, a MASTER_ADDR that cannot be resolved, a network interface that does not exist.
    """
    problems = _host_timeout_problems() + _gloo_interface_problems()
    given = [name for name in _RANK_VARIABLES if name in os.environ]
    if not given:
        return problems
    needed = (*_RANK_VARIABLES, *_MEETING_POINT)
    missing = [name for name in needed if name not in given and not os.environ.get(name)]
    if missing:
        advice = _ADVICE.format(names=", ".join(given))
        return [*problems, f"{_listed(given)} set without {_listed(missing)}: {advice}"]
    numbers = (*_RANK_VARIABLES, *(name for name in _COUNTS if name in os.environ), "MASTER_PORT")
    odd = [name for name in numbers if not _is_number(os.environ[name])]
    if odd:
        advice = _ADVICE.format(names=", ".join(given))
        return [*problems, *(f"{_listed([name])}={os.environ[name]!r} is not a whole number: {advice}" for name in odd)]
    return problems + _contradictions() + _meeting_point_problems()


def _contradictions() -> list[str]:
    """Problems of numbers that are numbers."""
    problems = []
    for name in ("WORLD_SIZE", *_COUNTS):
        if _whole_number(name) == 0:
            problems.append(f"{name} is 0, and at least one process is needed")
    for rank, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        mine, of = _whole_number(rank), _whole_number(size)
        if mine is not None and of and mine >= of:
            problems.append(f"{rank} is {mine}, and {size} is {of}: ranks count from 0 to {of - 1}")
    return problems


def _meeting_point_problems() -> list[str]:
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    problems = [] if 0 < port < 65_536 else [f"MASTER_PORT={port} is no port: choose one from 1 to 65535"]
    try:
        socket.getaddrinfo(address, None)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no host name"
        problems.append(
            f"MASTER_ADDR={address!r} cannot be resolved ({reason}): give the host name or address of rank 0's host, "
            "or add it to /etc/hosts"
        )
    return problems


def _host_timeout_problems() -> list[str]:
    text = os.environ.get(HOST_TIMEOUT_VARIABLE)
    if text is None or (re.fullmatch(r"\d*\.?\d*", text) and re.search("[1-9]", text)):
        return []
    return [f"{HOST_TIMEOUT_VARIABLE}={text!r} is not a number of seconds above 0"]


def _gloo_interface_problems() -> list[str]:
    """Names in GLOO_SOCKET_IFNAME, separated by commas, that no network interface has."""
    names = [name for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
    known = [name for _, name in socket.if_nameindex()]
    return [_interface_problem("GLOO_SOCKET_IFNAME", name) for name in names if name not in known]


def nccl_interface_problems() -> list[str]:
    """Checks NCCL_SOCKET_IFNAME: beginnings of names (whole names after =), one of which is there.

    After ^ the names are those to leave out. Only a run on GPUs reads the variable.
    https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html#nccl-socket-ifname
    """
    text = os.environ.get("NCCL_SOCKET_IFNAME", "")
    is_whole_name = text.startswith("=")
    names = [name for name in text.removeprefix("=").split(",") if name]
    known = [name for _, name in socket.if_nameindex()]
    found = any(one == name or (not is_whole_name and one.startswith(name)) for one in known for name in names)
    return [] if found or not names or text.startswith("^") else [_interface_problem("NCCL_SOCKET_IFNAME", text)]


def _interface_problem(variable: str, name: str) -> str:
    known = ", ".join(name for _, name in socket.if_nameindex())
    return (
        f"{variable}: this host ({socket.gethostname()}) has no network interface {name!r}: choose from {known}, or "
        "unset it"
    )


def _listed(names: list[str]) -> str:
    """Names of variables, each with that of SLURM's from which it is set."""
    if "SLURM_PROCID" not in os.environ:
        return ", ".join(names)
    return ", ".join(f"{name} ({_OF_SLURM[name]})" if name in _OF_SLURM else name for name in names)


def _is_launched() -> bool:
    """True when a launcher's variables are complete and make sense: a lone RANK is a leftover."""
    is_complete = all(_whole_number(name) is not None for name in _RANK_VARIABLES) and all(
        map(os.environ.get, _MEETING_POINT)
    )
    return is_complete and not _contradictions()


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,9}", text) is not None


def _whole_number(name: str) -> int | None:
    """Value of an environment variable; None where it is not set, or not a whole number."""
    text = os.environ.get(name, "")
    return int(text) if _is_number(text) else None
