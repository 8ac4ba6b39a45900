"""Learning rates of whole runs: every schedule as PyTorch and transformers define it, on several
plugins; resumed, and branched off.
"""

import json

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from transformers import AutoModelForCausalLM, get_wsd_schedule

from tests.support.plain_training import BETAS, rows_of, train_plainly
from tests.support.versions import can_run

pytestmark = pytest.mark.slow  # the runs that all tests of the file share

PEAK, STEPS, WARMUP = 1e-2, 10, 2  # 33 rows, 8 a step: 5 steps an epoch, the last one short
BATCH = ("--micro_batch_size", "2", "--accumulation_steps", "2", "--shuffle", "none")
RUN = ("--num_epochs", "2", "--warmup_steps", str(WARMUP), "--save_interval", "4", "--skip_save_each_epoch")
WSD = ("--lr_schedule", "wsd", "--min_lr_ratio", "0")
SPLIT = ("--plugin", "3d", "--zero", "0", "--tp", "2", "--micro_batch_size", "4")
SCHEDULES = {
    "cosine": (*BATCH,),
    "linear": (*BATCH, "--lr_schedule", "linear", "--min_lr_ratio", "0.3", "--plugin", "ddp"),
    "constant": (*BATCH, "--lr_schedule", "constant", "--plugin", "3d", "--zero", "0"),
    "wsd": (*BATCH, *WSD, "--decay_steps", "3"),
    "wsd_split": (*BATCH, *(SPLIT if can_run(SPLIT) else ()), *WSD, "--decay_steps", "3"),
}


@pytest.fixture(scope="module")
def two_ranks(runner):
    """All runs of this module on two ranks, in two launches."""
    command = runner.command
    checkpoint = ("--load_checkpoint", str(runner.workspace / "wsd" / "save" / "epoch-0_step-4"))
    runner.run([command(name, *RUN, *options) for name, options in SCHEDULES.items()], ranks=2)
    wsd = (*BATCH, *RUN, *WSD)
    output = runner.run(
        [
            command("wsd_again", *wsd, "--decay_steps", "3", *checkpoint),
            command("branch", *wsd, "--max_steps", "6", "--decay_steps", "2", *checkpoint),
            command("longer", *wsd, "--num_epochs", "3", "--decay_steps", "3", *checkpoint),
            command("late", *wsd, "--max_steps", "6", "--decay_steps", "4", *checkpoint),
            command("other", *BATCH, *RUN, "--lr_schedule", "constant", *checkpoint),
            command("default_decay", *BATCH, *RUN, "--lr_schedule", "wsd", "--dry_run"),
        ],
        ranks=2,
    )
    (runner.workspace / "output").write_text(output)
    return runner


def scheduler_of(name: str, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """The schedule as PyTorch or transformers define it."""
    left = STEPS - 1 - WARMUP
    if name.startswith("wsd"):
        stable = STEPS - WARMUP - 3
        shape = {"warmup_type": "linear", "decay_type": "linear", "min_lr_ratio": 0.0}
        scheduler = get_wsd_schedule(optimizer, WARMUP, 3, num_stable_steps=stable, **shape)
        scheduler.optimizer.step()
        scheduler.step()  # theirs begins with a step at the rate 0
        return scheduler
    decay = {
        "cosine": lambda: CosineAnnealingLR(optimizer, left, eta_min=0.1 * PEAK),
        "linear": lambda: LinearLR(optimizer, 1.0, 0.3, left),
        "constant": lambda: LinearLR(optimizer, 1.0, 1.0, left),
    }
    return SequentialLR(optimizer, [LinearLR(optimizer, 1 / WARMUP, 1.0, WARMUP - 1), decay[name]()], [WARMUP])


def rates_of(name: str) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=PEAK)
    scheduler, rates = scheduler_of(name, optimizer), []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def recorded_rates(runner, name: str) -> list[float]:
    return [entry["learning_rate"] for entry in runner.metrics(name)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_same_as_plain_pytorch(two_ranks, toy, name):
    rows = rows_of(toy.parts)
    batches = [rows[begin : begin + 8] for begin in range(0, len(rows), 8)] * 2
    model = AutoModelForCausalLM.from_pretrained(toy.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=BETAS, weight_decay=0.1)
    losses = train_plainly(model, optimizer, batches, rates_of(name))
    assert recorded_rates(two_ranks, name) == pytest.approx(rates_of(name), abs=1e-12)
    assert two_ranks.losses(name) == pytest.approx(losses, rel=5e-4)
    weights = two_ranks.weights(name)
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(weights[key], tensor, rtol=5e-4, atol=5e-4)


def test_a_resumed_wsd_run_is_the_uninterrupted_one(two_ranks):
    assert two_ranks.losses("wsd_again") == two_ranks.losses("wsd")[4:]
    expected = two_ranks.weights("wsd")
    assert all(torch.equal(tensor, expected[key]) for key, tensor in two_ranks.weights("wsd_again").items())


def test_a_decay_is_branched_off_at_a_checkpoint_and_the_stable_phase_goes_on(two_ranks):
    assert recorded_rates(two_ranks, "branch") == pytest.approx([PEAK / 2, 0.0])
    assert recorded_rates(two_ranks, "longer") == pytest.approx([PEAK] * 8 + [PEAK * 2 / 3, PEAK / 3, 0.0])
    assert two_ranks.losses("longer")[:3] == two_ranks.losses("wsd")[4:7]


def test_what_differs_from_the_checkpoint_is_said(two_ranks):
    output = (two_ranks.workspace / "output").read_text()
    assert output.count("the learning rate jumps") == 1
    assert "(the decay begins here with --decay_steps 2)" in output
    assert "goes on by another schedule than that of the checkpoint: --lr_schedule wsd → constant" in output


def test_the_schedule_is_recorded(two_ranks):
    output = (two_ranks.workspace / "output").read_text()
    assert "2 of warm-up, 2 epochs; --lr 0.01, wsd, constant, then linear decay to 0 of --lr in the last 3" in output
    folder = two_ranks.workspace
    assert json.loads((folder / "wsd" / "config.json").read_text())["decay_steps"] == 3
    plan = json.loads((folder / "default_decay" / "config.json.dry_run.json").read_text())
    assert (plan["total_steps"], plan["warmup_steps"], plan["decay_steps"]) == (10, 2, 1)
    saved = json.loads((folder / "wsd" / "save" / "epoch-1_step-8" / "lr_scheduler").read_text())
    assert {"schedule": "wsd", "min_lr_ratio": 0.0, "decay_steps": 3, "step": 8}.items() <= saved.items()
