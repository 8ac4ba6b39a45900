"""The ways in which users start train.py: the bash templates through colossalai run, and plain
python.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support import hosts as own_hosts
from tests.support.slurm import as_two_tasks
from tests.support.waiting import wait_until


def environment(**more: str) -> dict[str, str]:
    """As in an activated environment, on a host without GPUs and without nvidia-smi in front of the
    test's own.
    """
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def train_by_template(project_root: Path, command: list[str], variables: dict[str, str]) -> None:
    """Runs a template to its end."""
    done = subprocess.run(
        command,
        cwd=project_root,
        env=variables,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def settings_of_template(tmp_path: Path, model: Path) -> dict[str, str]:
    """The environment that fills a template in, for two processes on this host."""
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("localhost\n")
    return environment(
        HOSTFILE=str(hostfile),
        NPROC_PER_NODE="2",
        PROJECT_NAME="trial",
        PARENT_SAVE_DIR=str(tmp_path / "save"),
        PARENT_TENSORBOARD_DIR=str(tmp_path / "logs"),
        PARENT_CONFIG_FILE=str(tmp_path / "configs"),
        PRETRAINED_MODEL_PATH=str(model),
    )


@pytest.mark.distributed
@pytest.mark.skipif(own_hosts.why_no_hosts() is None, reason="test_hosts.py does the same over two hosts")
@pytest.mark.parametrize(("template", "kind"), [("train.example.sh", "parts"), ("train_sft.example.sh", "sft_parts")])
def test_template_trains_through_colossalai_run(template, kind, toy, project_root, tmp_path):
    command = ["bash", template, *map(str, getattr(toy, kind))]
    train_by_template(project_root, command, settings_of_template(tmp_path, toy.model))
    (run,) = (tmp_path / "save").iterdir()
    assert run.name.startswith("trial-20")
    assert (run / "modelling" / "config.json").is_file()
    assert (tmp_path / "logs" / run.name / "metrics.jsonl").is_file()
    assert (tmp_path / "configs" / f"{run.name}.json").is_file()


@pytest.mark.distributed
def test_a_template_trains_with_names_that_a_shell_would_execute(toy, project_root, tmp_path):
    odd = tmp_path / 'it\'s; $(touch executed) `touch executed` "q" *'
    shutil.copytree(toy.model, odd / "model")
    shutil.copytree(toy.parts[0], odd / "part\n0")
    variables = settings_of_template(tmp_path, odd / "model") | {
        "PROJECT_NAME": "$(touch executed)",
        "NPROC_PER_NODE": "1",
        "NCCL_ODD": 'q"$(touch executed)',
        "BASH_FUNC_ls%%": "() { touch executed; }",
    }
    variables |= {f"PARENT_{name}": str(odd / name) for name in ("SAVE_DIR", "TENSORBOARD_DIR", "CONFIG_FILE")}
    train_by_template(project_root, ["bash", "train.example.sh", str(odd / "part\n0")], variables)
    (run,) = (odd / "SAVE_DIR").iterdir()
    assert run.name.startswith("$(touch executed)-20")
    assert (run / "modelling" / "config.json").is_file()
    assert not (project_root / "executed").exists()


@pytest.mark.distributed
def test_a_signal_to_the_template_saves_and_ends_the_run(toy, project_root, tmp_path):
    """As SLURM or `kill` sends it: to the bash process, whose other processes hear nothing of
    it.
    """
    template = tmp_path / "train.example.sh"
    template.write_text((project_root / "train.example.sh").read_text().replace("--num_epochs 1 ", "--num_epochs 400 "))
    process = subprocess.Popen(
        ["bash", str(template), *map(str, toy.parts)],
        cwd=project_root,
        env=settings_of_template(tmp_path, toy.model),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    wait_until(lambda: any(record.read_text() for record in (tmp_path / "logs").glob("*/metrics.jsonl")), process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "everything is saved" in output
    (run,) = (tmp_path / "save").iterdir()
    steps = [json.loads(line)["step"] for line in (tmp_path / "logs" / run.name / "metrics.jsonl").open()]
    assert list(run.glob(f"epoch-*_step-{steps[-1]}")), output


RANK = """
import os, signal, sys, time
worker = os.fork()
def save(number, frame):
    open(sys.argv[1] + ("-saved" if worker else "-worker-signalled"), "w")
    time.sleep(1)  # the file alone is no end: the script waits for the process
    if worker:
        os.kill(worker, signal.SIGKILL)
        open(sys.argv[1] + "-ended", "w")
        os._exit(0)
signal.signal(signal.SIGTERM, save)
open(sys.argv[1] + ("-rank" if worker else "-worker"), "w")
time.sleep(60)
"""


@pytest.mark.distributed
def test_a_launcher_that_is_killed_does_not_leave_its_ranks_training(project_root, tmp_path):
    """`kill` of colossalai run ends it alone: the ranks are told, they alone, and the script waits
    until they have saved.
    """
    (tmp_path / "rank.py").write_text(RANK)
    (tmp_path / "hostfile").write_text("localhost\n")
    command = ["bash", "colossal_llama/cluster/stoppable.sh", str(tmp_path / "hostfile"), "colossalai", "run"]
    command += ["--nproc_per_node", "1", "--hostfile", str(tmp_path / "hostfile")]
    command += ["--master_port", str(own_hosts.free_port()), str(tmp_path / "rank.py"), str(tmp_path / "mark")]
    process = subprocess.Popen(command, cwd=project_root, env=environment(), stdin=subprocess.DEVNULL)
    wait_until(lambda: (tmp_path / "mark-rank").exists() and (tmp_path / "mark-worker").exists(), process)
    (launcher,) = psutil.Process(process.pid).children()
    started = launcher.children(recursive=True)
    launcher.terminate()
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert (tmp_path / "mark-ended").exists()
    assert not psutil.wait_procs(started, timeout=10)[1], "something outlives the run"
    assert not (tmp_path / "mark-worker-signalled").exists()


@pytest.mark.parametrize("template", ["train.example.sh", "train_sft.example.sh"])
def test_template_that_is_not_filled_in_says_so(template, project_root):
    done = subprocess.run(
        ["bash", template], cwd=project_root, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "fill in" in done.stderr


def test_plain_python_trains_alone(runner, project_root):
    done = subprocess.run(
        [sys.executable, "train.py", *runner.command("alone", "--max_steps", "2")],
        cwd=project_root,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(runner.losses("alone")) == 2
    assert done.stderr.count("Warning") == 0, done.stderr


def test_bad_arguments_are_reported_together(project_root, tmp_path):
    command = [sys.executable, "train.py", "--pretrained", str(tmp_path), "--dataset", "nowhere", "--plugin", "gemini"]
    command += ["--lr", "-1", "--micro_batch_size", "x", "--tp", "2", "--mixed_precision", "fp32"]
    done = subprocess.run(command, cwd=project_root, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for word in ("--pretrained", "nowhere", "needs a GPU", "--lr", "--micro_batch_size", "--tp", "fp32"):
        assert word in done.stderr, word


def test_srun_alone_trains(runner, project_root):
    done = as_two_tasks([sys.executable, "train.py", *runner.command("slurm", "--max_steps", "2")], project_root)
    assert [task.returncode for task in done] == [0, 0], done
    assert len(runner.losses("slurm")) == 2
    assert "2 processes" in done[0].stdout
    assert done[1].stdout == ""
    assert json.loads((runner.workspace / "slurm" / "config.json").read_text())["world_size"] == 2
