"""Rank and world size of this process in torchrun's environment variables, also under SLURM.

Imports no torch.
"""

import os
import re
import socket


def is_multi_host() -> bool:
    """True when the run's processes are on more than one host."""
    return int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1


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
    The variables: https://slurm.schedmd.com/srun.html
    """
    if not is_srun_task():
        return
    slurm = os.environ
    hosts = slurm.get("SLURM_STEP_NUM_NODES") or slurm.get("SLURM_NNODES", "1")
    nodelist = slurm.get("SLURM_STEP_NODELIST") or slurm.get("SLURM_JOB_NODELIST") or socket.gethostname()
    job = int(slurm.get("SLURM_JOB_ID", "0"))
    os.environ.update(
        RANK=slurm["SLURM_PROCID"],
        LOCAL_RANK=slurm["SLURM_LOCALID"],
        WORLD_SIZE=slurm.get("SLURM_STEP_NUM_TASKS") or slurm["SLURM_NTASKS"],
        GROUP_RANK=slurm.get("SLURM_NODEID", "0"),
        GROUP_WORLD_SIZE=hosts,
    )
    os.environ.setdefault("MASTER_ADDR", first_host(nodelist))
    os.environ.setdefault("MASTER_PORT", str(20_000 + job % 10_000))


def first_host(nodelist: str) -> str:
    """Returns the first host of a SLURM node list.

    >>> first_host("gpu[007-012,020],login"), first_host("rack[2-3]n[1,4]"), first_host("a,b")
    ('gpu007', 'rack2n1', 'a')

    Raises:
        ValueError: the text is not a node list.
    """
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])+", nodelist)
    if first is None:
        raise ValueError(f"{nodelist!r} is not a SLURM node list")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])
