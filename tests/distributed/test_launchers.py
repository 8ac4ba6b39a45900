"""The ways in which users start train.py: the bash templates through colossalai run, and plain python."""

import os
import subprocess
import sys
from pathlib import Path

import hosts as own_hosts
import pytest


def environment(**more: str) -> dict[str, str]:
    """As in an activated environment, on a host without GPUs and without nvidia-smi in front of the test's own."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


@pytest.mark.skipif(own_hosts.why_no_hosts() is None, reason="test_hosts.py does the same over two hosts")
@pytest.mark.parametrize(("template", "kind"), [("train.example.sh", "parts"), ("train_sft.example.sh", "sft_parts")])
def test_template_trains_through_colossalai_run(template, kind, toy, project_root, tmp_path):
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("localhost\n")
    settings = environment(
        HOSTFILE=str(hostfile),
        NPROC_PER_NODE="2",
        PROJECT_NAME="trial",
        PARENT_SAVE_DIR=str(tmp_path / "save"),
        PARENT_TENSORBOARD_DIR=str(tmp_path / "logs"),
        PARENT_CONFIG_FILE=str(tmp_path / "configs"),
        PRETRAINED_MODEL_PATH=str(toy.model),
    )
    command = ["bash", template, *map(str, getattr(toy, kind))]
    done = subprocess.run(
        command,
        cwd=project_root,
        env=settings,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "save").iterdir()
    assert run.name.startswith("trial-20")
    assert (run / "modelling" / "config.json").is_file()
    assert (tmp_path / "logs" / run.name / "metrics.jsonl").is_file()
    assert (tmp_path / "configs" / f"{run.name}.json").is_file()


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
