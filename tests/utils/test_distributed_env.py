"""Rank and world size from srun or torchrun; ranks that differ end with the same message."""

import argparse
import contextlib
import json
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from colossal_llama.training.command_line import build_parser
from colossal_llama.training.signals import STOPPING
from colossal_llama.utils.distributed_env import adopt_slurm_variables, first_host
from tests.support.ranks import run_ranks

PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


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


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("gpu-7", "gpu-7"),
        ("alpha,beta", "alpha"),
        ("gpu[007-012,020],login", "gpu007"),
        ("rack[2-3]n[1,4]-ib", "rack2n1-ib"),
        ("n[5]", "n5"),
    ],
)
def test_the_first_host_of_a_node_list(nodelist, first):
    assert first_host(nodelist) == first


@pytest.fixture
def no_launcher(monkeypatch):
    """An environment without any launcher's variables, put back afterwards."""
    for name in [name for name in os.environ if name in PLACE or name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name in PLACE:  # so that what the code sets is forgotten again
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def test_every_task_of_a_step_gets_its_place(no_launcher):
    places = []
    for task in range(8):
        for name in PLACE:
            no_launcher.delenv(name, raising=False)
        for name, value in of_srun(task, 4, 2, "gpu[11-12]").items():
            no_launcher.setenv(name, value)
        adopt_slurm_variables()
        places.append({name: os.environ[name] for name in PLACE})
    assert [place["RANK"] for place in places] == [str(task) for task in range(8)]
    assert [place["LOCAL_RANK"] for place in places] == list("01230123")
    assert [place["GROUP_RANK"] for place in places] == list("00001111")
    for name, value in {
        "WORLD_SIZE": "8",
        "GROUP_WORLD_SIZE": "2",
        "MASTER_ADDR": "gpu11",
        "MASTER_PORT": "24711",
    }.items():
        assert {place[name] for place in places} == {value}


@pytest.mark.parametrize(
    "kept",
    [("SLURM_STEP_ID",), ("RANK",)],
    ids=["the script of sbatch is no task of a step", "torchrun stands between"],
)
def test_other_processes_of_a_job_are_left_alone(no_launcher, kept):
    variables = of_srun(0, 4, 2, "gpu[11-12]")
    if kept == ("SLURM_STEP_ID",):
        del variables["SLURM_STEP_ID"]
    else:
        variables["RANK"] = "5"
    for name, value in variables.items():
        no_launcher.setenv(name, value)
    adopt_slurm_variables()
    assert "MASTER_ADDR" not in os.environ
    assert os.environ.get("RANK") == variables.get("RANK")


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
    common = {name: value for name, value in os.environ.items() if name not in PLACE and not name.startswith("SLURM_")}
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


def test_srun_alone_trains(runner, project_root):
    done = as_two_tasks([sys.executable, "train.py", *runner.command("slurm", "--max_steps", "2")], project_root)
    assert [task.returncode for task in done] == [0, 0], done
    assert len(runner.losses("slurm")) == 2
    assert "2 processes" in done[0].stdout
    assert done[1].stdout == ""
    assert json.loads((runner.workspace / "slurm" / "config.json").read_text())["world_size"] == 2


AGREEING = """
import json, os, socket, sys
from colossal_llama.utils.distributed_env import adopt_slurm_variables
adopt_slurm_variables()
import torch.distributed as dist
from colossal_llama.training.distributed import consensus
from colossal_llama.utils.errors import UserError

dist.init_process_group("gloo")
rank = dist.get_rank()
socket.gethostname = lambda: f"node-{rank + 1}"
said = []

def work(name):
    def fails_on(number, error):
        if rank == number:
            raise error
    match name:
        case "all is well":
            with consensus.raise_on_all_ranks():
                pass
            consensus.check_same({"the data": "a"})
        case "only rank 1 lacks a file":
            with consensus.raise_on_all_ranks():
                fails_on(1, UserError("x does not exist"))
        case "rank 0 meets something unforeseen":
            with consensus.raise_on_all_ranks():
                fails_on(0, ValueError("unforeseen"))
        case "both have the same problem":
            consensus.raise_problems(["y is wrong"])
        case "a copy is stale":
            consensus.check_same({"the data": "a" if rank == 0 else "b", "the model": "c"})

for name in sys.argv[1:]:
    try:
        work(name)
        said.append(None)
    except consensus.CollectiveError as error:
        said.append(error.problems)
print(json.dumps(said))
dist.barrier()
dist.destroy_process_group()
"""


def test_ranks_that_differ_end_together_with_the_same_words(project_root):
    expected = {
        "all is well": None,
        "only rank 1 lacks a file": ["on node-2: x does not exist"],
        "rank 0 meets something unforeseen": ["on node-1: ValueError: unforeseen"],
        "both have the same problem": ["y is wrong"],
        "a copy is stale": [
            "the data on node-2 is not the same as on node-1: copy it again, or use a file system that both share"
        ],
    }
    done = as_two_tasks([sys.executable, "-c", AGREEING, *expected], project_root)
    for task in done:
        assert task.returncode == 0, task
        assert json.loads(task.stdout.splitlines()[-1]) == list(expected.values())
    assert "ValueError: unforeseen" in done[0].stderr  # the traceback, where it happened
    assert "Traceback" not in done[1].stderr


README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def documented(launcher: str) -> list[str]:
    """Returns the README's commands of a launcher over several hosts, whose options parse."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = re.sub(r"\\\n\s*", " ", "\n".join(blocks)).splitlines()
    found = []
    for line in lines:
        head, script, tail = line.partition("train.py ")
        if script and re.match(rf"(\w+=\S+ )*{launcher}\b", head) and "node" in head:
            build_parser().parse_args(shlex.split(tail.split(" #")[0].replace("…", "")))
            found.append(head)
    return found


STAYS_LONGER = """
import sys, time
import torch.distributed as dist
from colossal_llama.engine import launch
launch.launch(seed=0)
if dist.get_rank() == 1:
    time.sleep(2)
    dist.distributed_c10d._get_default_store().check(["anything"])
    print("the store is still there")
launch.leave()
"""


def test_rank_0_which_has_the_store_leaves_with_the_others(project_root, tmp_path):
    """Else a checkpoint whose end another rank has not heard of yet counts as failed there."""
    script = tmp_path / "stays_longer.py"
    script.write_text(STAYS_LONGER)
    done = run_ranks(str(script), [], 2, project_root)
    assert done.returncode == 0, done.stdout
    assert "the store is still there" in done.stdout


def test_documented_torchrun_commands_parse():
    heads = documented("torchrun") + [
        head[head.index("torchrun") :] for head in documented("srun") if "torchrun" in head
    ]
    assert len(heads) >= 2
    for head in heads:
        options = get_args_parser().parse_args([*shlex.split(head)[1:], "train.py"])
        assert options.training_script == "train.py"
        assert options.nnodes != "1"


def test_documented_srun_commands_parse():
    srun = argparse.ArgumentParser(prog="srun", allow_abbrev=False)
    for name in ("--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task"):
        srun.add_argument(name, type=int)
    srun.add_argument("--kill-on-bad-exit", action="store_true")
    heads = documented("srun")
    assert len(heads) >= 2
    for head in heads:
        options, command = srun.parse_known_args(shlex.split(head)[1:])
        assert options.nodes > 1
        assert command[0] in ("python", "torchrun")
        assert options.ntasks_per_node == (1 if command[0] == "torchrun" else options.gpus_per_node)


def test_documented_jobs_are_signalled_in_time_and_not_through_their_shell():
    jobs = [shlex.split(line)[1:] for line in re.findall(r"^#SBATCH .*", README, flags=re.MULTILINE)]
    assert len(jobs) == len(documented("srun"))
    for job, srun in zip(jobs, documented("srun"), strict=True):
        options = dict(word.removeprefix("--").split("=") for word in job)
        name, seconds = re.fullmatch(r"([A-Z]+)@(\d+)", options.pop("signal")).groups()
        assert signal.Signals[f"SIG{name}"] in STOPPING
        assert f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={seconds}" in README
        assert (
            options.items() <= dict(word.removeprefix("--").split("=") for word in srun.split() if "=" in word).items()
        )
