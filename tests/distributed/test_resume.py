"""A run that was stopped goes on as if nothing had happened: same losses, same weights, bit for bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

BATCH = ("--micro_batch_size", "2", "--accumulation_steps", "2")
RUN = (*BATCH, "--num_epochs", "2", "--save_interval", "2", "--use_neft")
MIDDLE = "epoch-0_step-4"  # 33 rows, 8 a step: 5 steps an epoch, the last one short

SETTINGS = {
    "zero2": ("--mixed_precision", "bf16"),
    "zero2_fp16": ("--mixed_precision", "fp16"),
    "zero2_cpu": ("--plugin", "zero2_cpu", "--mixed_precision", "bf16"),
    "ddp": ("--plugin", "ddp", "--mixed_precision", "bf16"),
    "3d_zero0": ("--plugin", "3d", "--zero", "0", "--mixed_precision", "bf16"),
    "3d_zero1": ("--plugin", "3d", "--zero", "1", "--mixed_precision", "bf16"),
    "3d_tp2": ("--plugin", "3d", "--zero", "0", "--tp", "2", "--mixed_precision", "bf16", "--micro_batch_size", "4"),
}


@pytest.fixture(scope="module")
def dropout_model(toy, tmp_path_factory) -> Path:
    """The toy model with attention dropout, which makes every step depend on the generators."""
    path = tmp_path_factory.mktemp("dropout") / "model"
    shutil.copytree(toy.model, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.1}))
    return path


@pytest.fixture(scope="module")
def resumed(runner, dropout_model):
    """For each setting a run of 10 steps, and one that goes on from its checkpoint after step 4, in another launch."""
    model = ("--pretrained", str(dropout_model))
    runner.run([runner.command(name, *RUN, *options, *model) for name, options in SETTINGS.items()], ranks=2)
    again = [
        runner.command(f"{name}_again", *RUN, *options, "--load_checkpoint", str(checkpoint_of(runner, name)))
        for name, options in SETTINGS.items()
    ]
    runner.run(again, ranks=2)
    return runner


def checkpoint_of(runner, name: str) -> Path:
    return runner.workspace / name / "save" / MIDDLE


@pytest.mark.parametrize("name", SETTINGS)
def test_resuming_changes_nothing(resumed, name):
    whole, again = resumed.losses(name), resumed.losses(f"{name}_again")
    assert len(whole) == 10
    assert again == whole[4:]
    expected, weights = resumed.weights(name), resumed.weights(f"{name}_again")
    for key, tensor in expected.items():
        assert torch.equal(weights[key], tensor), key


def test_a_checkpoint_holds_what_its_name_says(resumed):
    path = checkpoint_of(resumed, "zero2")
    assert {entry.name for entry in path.iterdir()} >= {"modelling", "optimizer", "lr_scheduler", "running_states.json"}
    states = json.loads((path / "running_states.json").read_text())
    assert states["progress"]["step"] == 4
    assert states["progress"]["samples_seen"] == 32
    names = visible_in(path.parent)
    assert names == {f"epoch-0_step-{s}" for s in (2, 4, 5)} | {f"epoch-1_step-{s}" for s in (6, 8, 10)} | {"modelling"}


def test_going_on_with_other_ranks_and_plugins(resumed):
    """Same rows in the same steps; NEFTune's noise depends on the rank, so it is off."""
    runner, options = resumed, ("--num_epochs", "2", "--save_interval", "4", "--skip_save_each_epoch")
    runner.run([runner.command("elastic", *BATCH, *options)], ranks=2)
    load = ("--load_checkpoint", str(checkpoint_of(runner, "elastic")))
    runner.run(
        [
            runner.command("on_one", "--micro_batch_size", "4", "--accumulation_steps", "2", *options, *load),
            runner.command("on_one_3d", "--micro_batch_size", "8", *options, *load, "--plugin", "3d", "--zero", "0"),
            runner.command("on_one_ddp", "--micro_batch_size", "8", *options, *load, "--plugin", "ddp"),
        ],
        ranks=1,
    )
    runner.run([runner.command("on_four", "--micro_batch_size", "2", *options, *load)], ranks=4)
    whole = runner.losses("elastic")[4:]
    for name in ("on_one", "on_four", "on_one_3d", "on_one_ddp"):
        assert runner.losses(name) == pytest.approx(whole, rel=2e-4), name


def visible_in(directory: Path) -> set[str]:
    """Names in a directory; what is being written, and the lock, begin with a dot."""
    return {entry.name for entry in directory.iterdir() if not entry.name.startswith(".")}


def start(runner, command: list[str]) -> subprocess.Popen:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        launch,
        cwd=runner.project_root,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_steps(metrics: Path, steps: int, process: subprocess.Popen) -> None:
    while process.poll() is None:
        if metrics.exists() and metrics.read_text().count("\n") >= steps:
            return
        time.sleep(0.05)
    raise AssertionError(process.communicate()[0])


def test_killed_at_any_moment_and_resumed(resumed):
    """kill -9 of the launcher, which takes its ranks along, at a random moment; then the same command again."""
    name, options = "killed", (*SETTINGS["zero2"], *RUN)
    model = ("--pretrained", str(resumed.workspace / "zero2" / "save" / "epoch-0_step-2" / "modelling"))
    resumed.run([resumed.command("undisturbed", *options, *model)], ranks=2)
    command = resumed.command(name, *options, *model, "--load_checkpoint", "auto")
    process = start(resumed, command)
    wait_for_steps(resumed.workspace / name / "logs" / "metrics.jsonl", 3, process)
    moment_s = random.uniform(0, 2.0)
    time.sleep(moment_s)
    ranks = psutil.Process(process.pid).children(recursive=True)
    assert len(ranks) >= 2
    process.kill()
    process.wait()
    assert not psutil.wait_procs(ranks, timeout=10)[1], "ranks train on without their launcher"
    process = start(resumed, command)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert resumed.losses(name) == resumed.losses("undisturbed"), f"killed {moment_s:.2f} s after step 3"
    expected = resumed.weights("undisturbed")
    assert all(torch.equal(tensor, expected[key]) for key, tensor in resumed.weights(name).items())


def test_a_signal_ends_the_run_after_saving(resumed):
    name = "signalled"
    command = resumed.command(name, *RUN, "--save_interval", "1000", "--num_epochs", "40", "--skip_save_each_epoch")
    process = start(resumed, command)
    metrics = resumed.workspace / name / "logs" / "metrics.jsonl"
    wait_for_steps(metrics, 3, process)
    process.send_signal(signal.SIGTERM)  # torchrun hands it to every rank
    output, _ = process.communicate(timeout=120)
    assert "everything is saved" in output
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    (saved,) = visible_in(resumed.workspace / name / "save")
    assert saved.endswith(f"_step-{steps[-1]}")


def test_two_runs_into_one_directory_are_refused(resumed):
    command = resumed.command("twice", *RUN, "--num_epochs", "400", "--skip_save_each_epoch", "--save_interval", "1000")
    first = start(resumed, command)
    wait_for_steps(resumed.workspace / "twice" / "logs" / "metrics.jsonl", 1, first)
    second = start(resumed, command)
    output, _ = second.communicate(timeout=120)
    first.kill()
    assert second.returncode != 0
    assert "another run is writing into" in output


def test_other_data_is_refused(resumed, toy):
    load = ("--load_checkpoint", str(checkpoint_of(resumed, "zero2")))
    other = resumed.command("other", *RUN, *load)
    other[other.index(str(toy.parts[2]))] = str(toy.parts[1])
    process = start(resumed, other)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "cannot resume" in output
    assert "the data" in output
    assert 'Traceback (most recent call last):\n  File "/' not in output.split("torch/distributed")[0]


def test_going_back_sets_later_checkpoints_aside(resumed):
    """Else `auto` would take the abandoned ones for the newest, and --keep_last would delete the new ones."""
    name = "went_back"
    shutil.copytree(resumed.workspace / "zero2" / "save", resumed.workspace / name / "save")
    load = ("--load_checkpoint", str(resumed.workspace / name / "save" / MIDDLE))
    resumed.run([resumed.command(name, *RUN, *SETTINGS["zero2"], *load, "--keep_last", "1")], ranks=2)
    names = visible_in(resumed.workspace / name / "save")
    assert {entry for entry in names if entry.startswith("epoch")} == {"epoch-1_step-10"}
    assert {f"superseded-0-epoch-1_step-{step}" for step in (6, 8, 10)} <= names
    assert resumed.losses(name) == resumed.losses("zero2")[4:]


def test_a_finished_run_stays_finished(resumed):
    load = ("--load_checkpoint", str(resumed.workspace / "zero2" / "save" / "epoch-1_step-10"))
    resumed.run([resumed.command("finished", *RUN, *SETTINGS["zero2"], *load)], ranks=2)
    assert resumed.metrics("finished") == []
    expected = resumed.weights("zero2")
    assert all(torch.equal(tensor, expected[key]) for key, tensor in resumed.weights("finished").items())
