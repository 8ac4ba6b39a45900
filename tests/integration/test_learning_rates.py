"""Learning rates of whole runs: each schedule as PyTorch and transformers define it, with each
group of parameters, on several plugins; resumed, killed, and branched off.
"""

import json

import psutil
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from transformers import get_wsd_schedule

from tests.support import plain_adamw
from tests.support.plain_adamw import Way
from tests.support.training_runs import VOCABULARY_SIZE, ranks_of
from tests.support.versions import possible, run_names
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow  # the runs that all tests of the file share

PEAK, STEPS, WARMUP, CLIP = 1e-2, 9, 2, 0.5  # 33 rows, 4 a step, the last one of a single row
NEW = (190, VOCABULARY_SIZE)
RUN = (
    *("--warmup_steps", str(WARMUP), "--grad_clip", str(CLIP), "--shuffle", "none"),
    *("--first_new_row", str(NEW[0]), "--save_interval", "4", "--skip_save_each_epoch"),
)
BATCH = ("--micro_batch_size", "1", "--accumulation_steps", "2")
WSD = ("--lr_schedule", "wsd", "--min_lr_ratio", "0")
SCHEDULES = {
    "cosine": (),
    "linear": ("--lr_schedule", "linear", "--min_lr_ratio", "0.3"),
    "constant": ("--lr_schedule", "constant"),
    "wsd": (*WSD, "--decay_steps", "3"),
}
GROUPS = {
    "one": ((), Way()),
    "embedding_lr": (("--embedding_lr", "3e-3"), Way(embedding_ratio=0.3)),
    "new_row_lr": (("--new_row_lr", "2e-2"), Way(NEW, new_row_ratio=2.0)),
    "both_lr": (
        ("--embedding_lr", "2e-3", "--new_row_lr", "2e-2", "--freeze_layers", "1"),
        Way(NEW, frozen_layers=1, embedding_ratio=0.2, new_row_ratio=2.0),
    ),
    "embeddings": (
        ("--train_only", "embeddings", "--new_row_lr", "3e-2"),
        Way(NEW, trains_layers=False, new_row_ratio=3.0),
    ),
    "new_rows": (
        ("--train_only", "new_rows", "--new_row_lr", "3e-2"),
        Way(NEW, trains_layers=False, trains_old_rows=False, new_row_ratio=3.0),
    ),
}
PLUGINS = {
    "zero2": BATCH,
    "ddp": (*BATCH, "--plugin", "ddp"),
    "tp2": ("--micro_batch_size", "2", "--accumulation_steps", "2", "--plugin", "3d", "--zero", "0", "--tp", "2"),
}
CASES = {
    f"{schedule}-{groups}-{plugin}": (*RUN, *SCHEDULES[schedule], *GROUPS[groups][0], *PLUGINS[plugin])
    for schedule in SCHEDULES
    for groups in GROUPS
    for plugin in PLUGINS
    if plugin == "zero2" or (schedule == "wsd" and groups in ("one", "both_lr", "new_rows"))
}
PLAIN, BOTH = "wsd-one-zero2", "wsd-both_lr-zero2"


@pytest.fixture(scope="module")
def two_ranks(runner):
    """All runs of this module on two ranks, in two launches."""
    command, both = runner.command, GROUPS["both_lr"][0]
    runner.run([command(name, *options) for name, options in possible(CASES).items()], ranks=2)
    plain, groups = (("--load_checkpoint", str(checkpoint_of(runner, name))) for name in (PLAIN, BOTH))
    output = runner.run(
        [
            command("again", *CASES[BOTH], *groups),
            command("branch", *RUN, *BATCH, *both, *WSD, "--max_steps", "6", "--decay_steps", "2", *groups),
            command("longer", *RUN, *BATCH, *WSD, "--num_epochs", "2", "--decay_steps", "3", *plain),
            command("late", *RUN, *BATCH, *WSD, "--max_steps", "6", "--decay_steps", "4", *plain),
            command("other", *RUN, *BATCH, "--lr_schedule", "constant", *plain),
            command("default_decay", *RUN, *BATCH, "--lr_schedule", "wsd", "--dry_run"),
        ],
        ranks=2,
    )
    (runner.workspace / "output").write_text(output)
    return runner


def checkpoint_of(runner, name: str):
    return runner.workspace / name / "save" / "epoch-0_step-4"


def scheduler_of(name: str, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """The schedule as PyTorch or transformers define it."""
    left = STEPS - 1 - WARMUP
    if name == "wsd":
        stable = STEPS - WARMUP - 3
        shape = {"warmup_type": "linear", "decay_type": "linear", "min_lr_ratio": 0.0}
        scheduler = get_wsd_schedule(optimizer, WARMUP, 3, num_stable_steps=stable, **shape)
        optimizer.step()
        scheduler.step()  # theirs begins with a step at the rate 0
        return scheduler
    decay = {
        "cosine": lambda: CosineAnnealingLR(optimizer, left, eta_min=0.1 * PEAK),
        "linear": lambda: LinearLR(optimizer, 1.0, 0.3, left),
        "constant": lambda: LinearLR(optimizer, 1.0, 1.0, left),
    }
    return SequentialLR(optimizer, [LinearLR(optimizer, 1 / WARMUP, 1.0, WARMUP - 1), decay[name]()], [WARMUP])


def rates_of(name: str) -> tuple[float, ...]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=PEAK)
    scheduler, rates = scheduler_of(name, optimizer), []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return tuple(rates)


def recorded(runner, name: str, value: str = "learning_rate") -> list:
    return [entry[value] for entry in runner.metrics(name)]


@pytest.mark.parametrize("name", run_names(CASES))
def test_the_same_as_plain_pytorch(two_ranks, toy, name):
    schedule, groups, _ = name.split("-")
    weights, norms = plain_adamw.train(toy.model, toy.parts, GROUPS[groups][1], rates_of(schedule), 4, CLIP)
    assert recorded(two_ranks, name) == pytest.approx(rates_of(schedule), abs=1e-12)
    assert recorded(two_ranks, name, "gradient_norm") == pytest.approx(norms, rel=5e-4)
    found = two_ranks.weights(name)
    assert found.keys() == weights.keys()
    for key, tensor in weights.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-4)


def test_rates_of_groups_are_recorded_where_there_are_several(two_ranks):
    assert all("lr" not in entry for entry in two_ranks.metrics(PLAIN))
    for groups, ratios in {
        "embedding_lr": {"layers": 1.0, "embeddings": 0.3},
        "both_lr": {"layers": 1.0, "embeddings": 0.2, "new_rows": 2.0},
        "new_rows": {"new_rows": 3.0},
    }.items():
        for entry in two_ranks.metrics(f"wsd-{groups}-zero2"):
            expected = {name: ratio * entry["learning_rate"] for name, ratio in ratios.items()}
            assert entry["lr"] == pytest.approx(expected), groups


def assert_equal_weights(runner, name: str, reference: str) -> None:
    expected = runner.weights(reference)
    for key, tensor in runner.weights(name).items():
        assert torch.equal(tensor, expected[key]), key


def test_a_resumed_run_is_the_uninterrupted_one(two_ranks):
    assert two_ranks.losses("again") == two_ranks.losses(BOTH)[4:]
    assert_equal_weights(two_ranks, "again", BOTH)


def test_a_killed_and_resumed_run_is_the_uninterrupted_one(two_ranks):
    """kill -9 of the launcher, at a moment that nothing fixes; then the same command again."""
    command = two_ranks.command("killed", *CASES[BOTH], "--save_interval", "1", "--load_checkpoint", "auto")
    process = two_ranks.start(command)
    logs = two_ranks.workspace / "killed" / "logs" / "metrics.jsonl"
    wait_until(lambda: logs.exists() and len(logs.read_text().splitlines()) >= 3, process, 0.001)
    ranks = ranks_of(process)
    process.kill()
    process.wait(timeout=60)
    assert not psutil.wait_procs(ranks.values(), timeout=30)[1]
    two_ranks.run([command], ranks=2)
    assert two_ranks.losses("killed") == two_ranks.losses(BOTH)
    assert_equal_weights(two_ranks, "killed", BOTH)


@pytest.mark.parametrize("ranks", [1, 4])
def test_resumed_on_other_numbers_of_ranks(two_ranks, ranks):
    """The same rows a step: the losses differ by rounding alone."""
    name, batch = f"resumed_on_{ranks}", ("--micro_batch_size", "1", "--accumulation_steps", str(4 // ranks))
    checkpoint = ("--load_checkpoint", str(checkpoint_of(two_ranks, BOTH)))
    two_ranks.run([two_ranks.command(name, *CASES[BOTH], *batch, *checkpoint)], ranks=ranks)
    assert two_ranks.losses(name) == pytest.approx(two_ranks.losses(BOTH)[4:], rel=5e-5)
    assert recorded(two_ranks, name, "lr") == recorded(two_ranks, BOTH, "lr")[4:]
    expected = two_ranks.weights(BOTH)
    for key, tensor in two_ranks.weights(name).items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-3, atol=1e-4)


def test_a_decay_is_branched_off_at_a_checkpoint_and_the_stable_phase_goes_on(two_ranks):
    assert recorded(two_ranks, "branch") == pytest.approx([PEAK / 2, 0.0])
    assert recorded(two_ranks, "longer") == pytest.approx([PEAK] * 11 + [PEAK * 2 / 3, PEAK / 3, 0.0])
    assert two_ranks.losses("longer")[:3] == two_ranks.losses(PLAIN)[4:7]


def test_what_differs_from_the_checkpoint_is_said(two_ranks):
    output = (two_ranks.workspace / "output").read_text()
    assert output.count("the learning rate jumps") == 1
    assert "(the decay begins here with --decay_steps 2)" in output
    assert "goes on by another schedule than that of the checkpoint: --lr_schedule wsd → constant" in output


def test_the_schedule_is_recorded(two_ranks):
    output = (two_ranks.workspace / "output").read_text()
    assert (
        "2 of warm-up, 1 epoch; learning rate 0.01, wsd, constant, then linear decay to 0 of the peak in the" in output
    )
    assert "learning rate 0.01 (layers 0.01, embeddings 0.002, new_rows 0.02), wsd, constant" in output
    assert json.loads((two_ranks.workspace / PLAIN / "config.json").read_text())["decay_steps"] == 3
    saved = json.loads((checkpoint_of(two_ranks, PLAIN) / "lr_scheduler").read_text())
    assert {"schedule": "wsd", "min_lr_ratio": 0.0, "decay_steps": 3, "step": 4}.items() <= saved.items()
    plan = json.loads((two_ranks.workspace / "default_decay" / "config.json.dry_run.json").read_text())
    assert (plan["total_steps"], plan["warmup_steps"], plan["decay_steps"]) == (9, 2, 1)
