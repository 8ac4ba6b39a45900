"""A run that was stopped goes on as if nothing had happened: same losses, same weights, bit for
bit.
"""

import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch

from colossal_llama.engine.launch import prepare_engine
from tests.support.training_runs import ranks_of
from tests.support.waiting import wait_until

prepare_engine()

from colossal_llama.model.weights.weight_files import find_weight_files  # noqa: E402
from colossal_llama.training.checkpoint.discovery import open_checkpoint  # noqa: E402
from colossal_llama.training.checkpoint.optimizer_io import SavedOptimizer  # noqa: E402
from colossal_llama.training.checkpoint.state import checkpoint_directories  # noqa: E402
from tests.support.versions import can_run, possible, run_names  # noqa: E402

pytestmark = pytest.mark.slow  # the runs that all tests of the file share

BATCH = ("--micro_batch_size", "2", "--accumulation_steps", "2")
RUN = (*BATCH, "--num_epochs", "2", "--save_interval", "2", "--use_neft")
ELASTIC = ("--num_epochs", "2", "--save_interval", "4", "--skip_save_each_epoch", "--use_neft")
SPLIT = ("--plugin", "3d", "--zero", "0", "--tp", "2", "--micro_batch_size", "8")
if not can_run(SPLIT):
    SPLIT = ("--plugin", "ddp", "--micro_batch_size", "4")
MIDDLE = "epoch-0_step-4"  # 33 rows, 8 a step: 5 steps an epoch, the last one short

SETTINGS = {
    "zero2": ("--mixed_precision", "bf16"),
    "zero2_fp16": ("--mixed_precision", "fp16"),
    "zero2_cpu": ("--plugin", "zero2_cpu", "--mixed_precision", "bf16", "--save_in_background", "False"),
    "ddp": ("--plugin", "ddp", "--mixed_precision", "bf16"),
    "3d_zero0": ("--plugin", "3d", "--zero", "0", "--mixed_precision", "bf16"),
    "3d_zero1": ("--plugin", "3d", "--zero", "1", "--mixed_precision", "bf16"),
    "3d_pp2": ("--plugin", "3d", "--pp", "2", "--mixed_precision", "bf16", "--micro_batch_size", "4"),
    "3d_sp2": (
        *("--plugin", "3d", "--zero", "2", "--sp", "2", "--sp_mode", "all_to_all"),
        *("--mixed_precision", "bf16", "--micro_batch_size", "4"),
    ),
    "3d_tp2": ("--plugin", "3d", "--zero", "0", "--tp", "2", "--mixed_precision", "bf16", "--micro_batch_size", "4"),
}

DIVIDED = "3d_pp2" if can_run(SETTINGS["3d_pp2"]) else "3d_zero1"
"""The setting in which a rank has the most that no other has."""

NO_PICKLE_NO_MEMORY_SMALL_FILES = """
import pickle, runpy
import torch

def refuse(*arguments, **settings):
    raise AssertionError("something is unpickled")

torch.load = torch.serialization.load = pickle.load = refuse
from colossal_llama.engine import launch

launch.prepare_engine()
from colossal_llama.training.checkpoint import saver

saver.available_bytes = lambda: 1000
saver._FILE_BYTES = 100_000
runpy.run_path("benchmarks/train_many.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def resumed(runner, dropout_model):
    """For each setting a run of 10 steps, and one that goes on from its checkpoint after step 4,
    without unpickling anything.

    Also all else that goes on with two ranks, since a launch takes longer than these runs.
    """
    model = ("--pretrained", str(dropout_model))
    next_stage = ("--pretrained", str(runner.workspace / DIVIDED / "save" / "epoch-0_step-2" / "modelling"))
    first = [runner.command(name, *RUN, *options, *model) for name, options in possible(SETTINGS).items()]
    first += [
        runner.command("undisturbed", *RUN, *SETTINGS[DIVIDED], *next_stage),
        runner.command("elastic", *BATCH, *ELASTIC),
        runner.command("split", *SPLIT, *ELASTIC, "--load_checkpoint", str(save_of(runner, "elastic") / MIDDLE)),
        runner.command(
            "joined", *BATCH, *ELASTIC, "--load_checkpoint", str(save_of(runner, "split") / "epoch-1_step-8")
        ),
    ]
    runner.run(first, ranks=2)
    shutil.copytree(save_of(runner, "zero2"), save_of(runner, "went_back"))
    foreign = save_of(runner, "went_back") / "epoch-0_step-1" / "notes.md"
    foreign.parent.mkdir()
    foreign.write_text("no run has written this")
    back = ("--load_checkpoint", str(checkpoint_of(runner, "went_back")), "--keep_last", "1")
    finished = ("--load_checkpoint", str(save_of(runner, "zero2_again") / "epoch-1_step-10"))
    again = [
        runner.command(f"{name}_again", *RUN, *options, "--load_checkpoint", str(checkpoint_of(runner, name)))
        for name, options in possible(SETTINGS).items()
    ]
    again += [
        runner.command("went_back", *RUN, *SETTINGS["zero2"], *back),
        runner.command("finished", *RUN, *SETTINGS["zero2"], *finished),
    ]
    without = runner.workspace / "without.py"
    without.write_text(NO_PICKLE_NO_MEMORY_SMALL_FILES)
    runner.run(again, ranks=2, script=str(without))
    return runner


def save_of(runner, name: str) -> Path:
    return runner.workspace / name / "save"


def checkpoint_of(runner, name: str) -> Path:
    return save_of(runner, name) / MIDDLE


@pytest.mark.parametrize("name", run_names(SETTINGS))
def test_resuming_changes_nothing(resumed, name):
    whole, again = resumed.losses(name), resumed.losses(f"{name}_again")
    assert len(whole) == 10
    assert again == whole[4:]
    expected, weights = resumed.weights(name), resumed.weights(f"{name}_again")
    for key, tensor in expected.items():
        assert torch.equal(weights[key], tensor), key


def test_a_checkpoint_holds_what_its_name_says(resumed):
    path = checkpoint_of(resumed, "zero2")
    names = {"modelling", "optimizer", "random_states", "lr_scheduler", "running_states.json", "checksums.json"}
    assert {entry.name for entry in path.iterdir()} == names
    states = json.loads((path / "running_states.json").read_text())
    assert states["progress"]["step"] == 4
    assert states["progress"]["samples_seen"] == 32
    names = visible_in(path.parent)
    assert names == {f"epoch-0_step-{s}" for s in (2, 4, 5)} | {f"epoch-1_step-{s}" for s in (6, 8, 10)} | {"modelling"}
    for file in path.rglob("*"):
        if file.is_file() and file.suffix != ".safetensors":
            json.loads(file.read_text())


@pytest.mark.parametrize("name", ["zero2", "zero2_cpu", "zero2_again"])
def test_how_long_a_save_took_is_recorded(resumed, name):
    """zero2_cpu writes while training waits, as asked, zero2_again because there is no host memory
    for a copy.
    """
    entries = {entry["step"]: entry for entry in resumed.metrics(name)}
    after_saves = [step for step in (3, 5, 6, 7, 9) if step > min(entries)]
    assert [step for step, entry in entries.items() if "save_stall_s" in entry] == after_saves
    written = [entry for entry in entries.values() if "save_write_s" in entry]
    assert len(written) >= 3
    assert not any(entry["save_failed"] for entry in written)
    if name != "zero2":
        assert all(entry["save_stall_s"] >= entry["save_write_s"] > 0 for entry in written)


def test_going_on_with_other_ranks_and_plugins(resumed):
    """Same rows in the same steps, and the same noise on each row."""
    runner, options = resumed, ELASTIC
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
    for name in ("on_one", "on_four", "on_one_3d", "on_one_ddp", "split"):
        assert runner.losses(name) == pytest.approx(whole, rel=2e-4), name
    assert runner.losses("joined") == pytest.approx(whole[4:], rel=2e-4)


def visible_in(directory: Path) -> set[str]:
    """Names in a directory; what is being written, and the lock, begin with a dot."""
    return {entry.name for entry in directory.iterdir() if not entry.name.startswith(".")}


def wait_for_steps(runner, name: str, steps: int, process: subprocess.Popen) -> None:
    metrics = runner.workspace / name / "logs" / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") >= steps, process)


def check_checkpoints(save_dir: Path) -> None:
    """Whatever has a checkpoint's name is one: all of its files are there and can be read."""
    for path in checkpoint_directories(save_dir):
        checkpoint = open_checkpoint(path)
        SavedOptimizer(path / "optimizer").close()
        find_weight_files(checkpoint.model_path)
        assert len(list((path / "random_states").iterdir())) == checkpoint.running_states["world_size"]


def kill(process: subprocess.Popen, victim: psutil.Process) -> None:
    """kill -9 of the launcher or of a rank; nobody may outlive it."""
    ranks = ranks_of(process)
    assert len(ranks) >= 2
    victim.kill()
    process.wait(timeout=120)
    assert not psutil.wait_procs(ranks.values(), timeout=10)[1], "ranks train on without their launcher"


def test_killed_at_any_moment_and_resumed(resumed):
    """kill -9 of the launcher at a random moment, of a rank while a checkpoint is written; then the
    same command again.

    A pipeline where there is one: each of its ranks has a part of the model and of its states that
    no other has.
    """
    name, options = "killed", (*RUN, *SETTINGS[DIVIDED])
    model = ("--pretrained", str(resumed.workspace / DIVIDED / "save" / "epoch-0_step-2" / "modelling"))
    save_dir = resumed.workspace / name / "save"
    command = resumed.command(name, *options, *model, "--save_interval", "1", "--load_checkpoint", "auto")
    process = resumed.start(command)
    wait_for_steps(resumed, name, 2, process)
    moment_s = random.uniform(0, 1.0)
    time.sleep(moment_s)
    kill(process, psutil.Process(process.pid))
    check_checkpoints(save_dir)
    process = resumed.start(command)
    wait_until(lambda: not any(save_dir.glob(".*.unfinished")), process)  # the killed run's, if it left one
    wait_until(lambda: any(save_dir.glob(".*.unfinished")), process, 0.001)
    kill(process, ranks_of(process)[1])
    check_checkpoints(save_dir)
    process = resumed.start(command)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert resumed.losses(name) == resumed.losses("undisturbed"), f"killed {moment_s:.2f} s after step 2"
    expected = resumed.weights("undisturbed")
    assert all(torch.equal(tensor, expected[key]) for key, tensor in resumed.weights(name).items())
    check_checkpoints(save_dir)
    assert not any(save_dir.glob(".*.unfinished"))


def test_a_signal_ends_the_run_after_saving(resumed):
    """Also one that reaches a single rank, here the last stage of a pipeline."""
    name = "signalled"
    command = resumed.command(
        name, *RUN, *SETTINGS[DIVIDED], "--save_interval", "1000", "--num_epochs", "40", "--skip_save_each_epoch"
    )
    process = resumed.start(command)
    metrics = resumed.workspace / name / "logs" / "metrics.jsonl"
    wait_for_steps(resumed, name, 3, process)
    ranks_of(process)[1].send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output  # torchrun's: each rank's code was 0
    assert "everything is saved" in output
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    (saved,) = visible_in(resumed.workspace / name / "save")
    assert saved.endswith(f"_step-{steps[-1]}")


def test_a_second_signal_ends_a_rank_at_once(resumed):
    """Rank 1 is stopped, so that rank 0 waits for it in a collective, where no signal handler of
    Python's runs.
    """
    command = resumed.command("twice_signalled", *RUN, "--num_epochs", "400", "--skip_save_each_epoch")
    process = resumed.start(command)
    wait_for_steps(resumed, "twice_signalled", 1, process)
    ranks = ranks_of(process)
    ranks[1].suspend()
    time.sleep(1)
    ranks[0].send_signal(signal.SIGTERM)
    ranks[0].send_signal(signal.SIGINT)
    gone, _ = psutil.wait_procs([ranks[0]], timeout=5)
    ranks[1].kill()
    output, _ = process.communicate(timeout=60)
    assert gone, "the second signal was not heeded"
    assert process.returncode != 0
    assert "second signal" in output


def test_a_rank_that_dies_takes_the_others_along(resumed):
    command = resumed.command("bereaved", *RUN, "--num_epochs", "400", "--skip_save_each_epoch")
    process = resumed.start(command)
    wait_for_steps(resumed, "bereaved", 1, process)
    ranks = ranks_of(process)
    ranks[1].kill()
    gone, _ = psutil.wait_procs([ranks[0]], timeout=10)
    assert gone, "a rank waits for one that is dead"
    process.communicate(timeout=20)
    assert process.returncode != 0


def test_two_runs_into_one_directory_are_refused(resumed):
    command = resumed.command("twice", *RUN, "--num_epochs", "400", "--skip_save_each_epoch", "--save_interval", "1000")
    first = resumed.start(command)
    wait_for_steps(resumed, "twice", 1, first)
    for rank in ranks_of(first).values():
        rank.suspend()  # it has the directory, and leaves the cores to the other
    second = resumed.start(command)
    output, _ = second.communicate(timeout=120)
    first.kill()
    assert second.returncode != 0
    assert "another run is writing into" in output


def test_other_data_is_refused(resumed, toy):
    load = ("--load_checkpoint", str(checkpoint_of(resumed, "zero2")))
    other = resumed.command("other", *RUN, *load)
    other[other.index(str(toy.parts[2]))] = str(toy.parts[1])
    process = resumed.start(other)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "cannot resume" in output
    assert "the data" in output
    assert 'Traceback (most recent call last):\n  File "/' not in output.split("torch/distributed")[0]


def test_going_back_sets_later_checkpoints_aside(resumed):
    """Else `auto` would take the abandoned ones for the newest, and --keep_last would delete the
    new ones. What no run has written stays.
    """
    name = "went_back"
    names = visible_in(save_of(resumed, name))
    assert {entry for entry in names if entry.startswith("epoch")} == {"epoch-0_step-1", "epoch-1_step-10"}
    assert (save_of(resumed, name) / "epoch-0_step-1" / "notes.md").exists()
    assert {f"superseded-0-epoch-1_step-{step}" for step in (6, 8, 10)} <= names
    assert resumed.losses(name) == resumed.losses("zero2")[4:]


def test_a_finished_run_stays_finished(resumed):
    """Its checkpoint has several files a rank."""
    assert resumed.metrics("finished") == []
    expected = resumed.weights("zero2")
    assert all(torch.equal(tensor, expected[key]) for key, tensor in resumed.weights("finished").items())
