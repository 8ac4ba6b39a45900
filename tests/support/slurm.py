"""What srun gives the tasks of a step, and a command run as two tasks of one."""

import contextlib
import os
import random
import socket
import subprocess
from pathlib import Path

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What the code sets from srun's variables, as torchrun does."""


def of_srun(task: int, tasks_per_node: int, nodes: int, nodelist: str, job: int = 4711) -> dict[str, str]:
    """The variables of a task that matter here (https://slurm.schedmd.com/srun.html)."""
    numbers = {
        "SLURM_JOB_ID": job,
        "SLURM_STEP_ID": 0,
        "SLURM_PROCID": task,
        "SLURM_LOCALID": task % tasks_per_node,
        "SLURM_NODEID": task // tasks_per_node,
        "SLURM_NTASKS": tasks_per_node * nodes,
        "SLURM_STEP_NUM_TASKS": tasks_per_node * nodes,
        "SLURM_NNODES": nodes,
        "SLURM_STEP_NUM_NODES": nodes,
    }
    lists = {"SLURM_JOB_NODELIST": nodelist, "SLURM_STEP_NODELIST": nodelist}
    return lists | {name: str(number) for name, number in numbers.items()}


def job_with_a_free_port() -> int:
    """A job number whose MASTER_PORT nobody listens on."""
    for job in random.SystemRandom().sample(range(10_000), 50):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("", 20_000 + job))
            return job
    raise AssertionError("no free port among 50")


def as_two_tasks(words: list[str], project_root: Path) -> list[subprocess.CompletedProcess[str]]:
    """Runs a command as srun would on two nodes with a task each; both are on this machine."""
    job = job_with_a_free_port()
    common = {
        name: value
        for name, value in os.environ.items()
        if name not in RANK_VARIABLES and not name.startswith("SLURM_")
    }
    processes = [
        subprocess.Popen(
            words,
            cwd=project_root,
            env={
                **common,
                "OMP_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": "",
                **of_srun(task, 1, 2, "localhost,other", job),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for task in range(2)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    return [
        subprocess.CompletedProcess(words, process.returncode, *output)
        for process, output in zip(processes, outputs, strict=True)
    ]
