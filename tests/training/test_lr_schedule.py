"""Step arithmetic and learning rate at every border."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from transformers import get_linear_schedule_with_warmup, get_wsd_schedule

from colossal_llama.dataset.loader import StepGeometry
from colossal_llama.training.arguments import OptimizerArguments
from colossal_llama.training.checkpoint.state import Origin, Progress
from colossal_llama.training.lr_schedule import (
    Schedule,
    default_decay_steps,
    default_warmup_steps,
    plan_schedule,
    plan_steps,
    schedule_differences,
)
from colossal_llama.utils.errors import UserError

COSINE = Schedule(100, 5, 3e-4, 1)
lengths = st.integers(1, 300), st.integers(0, 60)


def rates_of(schedule: Schedule) -> list[float]:
    return [schedule.rate(step) for step in range(schedule.total_steps)]


def cosine_as_ever(step: int, total: int, warmup: int, peak: float) -> float:
    """The rates of runs before there were other schedules, whose checkpoints are resumed."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
    return 0.1 * peak + (peak - 0.1 * peak) * 0.5 * (1.0 + math.cos(math.pi * progress))


@given(*lengths, st.floats(1e-8, 1.0))
def test_the_default_is_the_cosine_of_old_to_the_last_bit(total, warmup, peak):
    assert rates_of(Schedule(total, warmup, peak, 1)) == [
        cosine_as_ever(step, total, warmup, peak) for step in range(total)
    ]


@given(*lengths, st.sampled_from(["cosine", "linear"]), st.sampled_from([0.0, 0.1, 1.0]))
def test_rate_rises_to_the_peak_and_falls_to_its_last(total, warmup, kind, ratio):
    rates = rates_of(Schedule(total, warmup, 1.0, 1, kind, ratio))
    assert all(0 <= rate <= 1.0 for rate in rates)
    rising, falling = rates[: min(warmup, total)], rates[warmup:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    if total > warmup + 1:
        assert falling[0] == pytest.approx(1.0)
        assert falling[-1] == ratio
    if 0 < warmup <= total:
        assert rates[warmup - 1] == pytest.approx(1.0)


def torch_rates(steps: int, build) -> list[float]:
    """Rates of a scheduler of PyTorch or transformers over an optimizer with the rate 0.5."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    scheduler, rates = build(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("ratio", [0.0, 0.1])
@pytest.mark.parametrize(("total", "warmup"), [(50, 5), (50, 1), (7, 2)])
def test_cosine_and_linear_are_those_of_pytorch(total, warmup, ratio):
    left = total - 1 - warmup
    decays = {
        "cosine": lambda optimizer: CosineAnnealingLR(optimizer, left, eta_min=0.5 * ratio),
        "linear": lambda optimizer: LinearLR(optimizer, 1.0, ratio, left),
        "constant": lambda optimizer: LinearLR(optimizer, 1.0, 1.0, left),
    }
    for kind, decay in decays.items():

        def build(optimizer, decay=decay):
            rise = LinearLR(optimizer, 1 / warmup, 1.0, max(1, warmup - 1))
            return SequentialLR(optimizer, [rise, decay(optimizer)], [warmup])

        expected = torch_rates(total, build)
        assert rates_of(Schedule(total, warmup, 0.5, 1, kind, ratio)) == pytest.approx(expected, abs=1e-12), kind


def test_linear_is_that_of_transformers_which_warms_up_from_zero():
    expected = torch_rates(49, lambda optimizer: get_linear_schedule_with_warmup(optimizer, 5, 49))
    assert rates_of(Schedule(50, 5, 0.5, 1, "linear", 0.0))[5:49] == pytest.approx(expected[5:])


@pytest.mark.parametrize("ratio", [0.0, 0.1])
@pytest.mark.parametrize(("total", "warmup", "decay"), [(50, 5, 10), (50, 0, 50), (50, 5, 45), (50, 0, 1), (9, 2, 0)])
def test_wsd_is_that_of_transformers_a_step_later(total, warmup, decay, ratio):
    """It begins with a step at the rate 0, and has no step at the last rate within the run."""

    def build(optimizer):
        shape = {"warmup_type": "linear", "decay_type": "linear", "min_lr_ratio": ratio}
        stable = total - warmup - decay
        return get_wsd_schedule(optimizer, warmup, decay, num_stable_steps=stable, **shape)

    expected = torch_rates(total + 1, build)[1:]
    if decay == 0:
        expected[-1] = 0.5  # theirs decays after the last step
    rates = rates_of(Schedule(total, warmup, 0.5, 1, "wsd", ratio, decay))
    after = warmup if ratio else 0  # theirs warms up from the last rate
    assert rates[after:] == pytest.approx(expected[after:])
    assert rates[-1] == (0.5 * ratio if decay else 0.5)
    assert rates[warmup : total - decay] == [0.5] * (total - decay - warmup)


@given(*lengths)
def test_linear_is_wsd_with_all_steps_of_decay_but_one(total, warmup):
    if total > warmup + 1:
        linear, wsd = (
            rates_of(Schedule(total, warmup, 1.0, 1, kind, 0.1, decay))
            for kind, decay in (("linear", None), ("wsd", total - 1 - warmup))
        )
        assert linear == wsd


@given(st.integers(2, 300), st.data())
def test_a_decay_that_is_branched_off_begins_where_the_stable_phase_was_left(total, data):
    """Rates before the branch are those of the run from which it branches off."""
    warmup = data.draw(st.integers(0, total - 1))
    done = data.draw(st.integers(warmup, total))
    decay = data.draw(st.integers(1, 100))
    trunk, branch = (
        Schedule(total, warmup, 1.0, 1, "constant"),
        Schedule(done + decay, warmup, 1.0, 1, "wsd", 0.0, decay),
    )
    assert rates_of(branch)[:done] == rates_of(trunk)[:done]
    assert rates_of(branch)[done:] == pytest.approx([1 - (k + 1) / decay for k in range(decay)])


def test_default_warmup_is_a_fortieth():
    assert [default_warmup_steps(total) for total in (1, 40, 1000)] == [0, 1, 25]


def test_default_decay_is_a_tenth_and_leaves_the_warmup_alone():
    assert [default_decay_steps(total, 2) for total in (1, 4, 10, 1000)] == [0, 0, 1, 100]
    assert default_decay_steps(100, 95) == 5


def planned(**options) -> Schedule:
    """The schedule of a run over 50 rows, one a step."""
    origin = Origin("", "", 1, 0, "none", None)
    optimizer = OptimizerArguments(**options)
    return plan_schedule(optimizer, 1, [np.ones(50, int)], origin, StepGeometry(1, 1, 1), Progress(), {})


def test_options_set_the_schedule():
    assert planned() == Schedule(50, 1, 3e-4, 1)
    assert planned(lr_schedule="linear", min_lr_ratio=0.0) == Schedule(50, 1, 3e-4, 1, "linear", 0.0)
    assert planned(lr_schedule="wsd") == Schedule(50, 1, 3e-4, 1, "wsd", 0.1, 5)
    assert planned(lr_schedule="wsd", decay_steps=49).decay_steps == 49
    assert planned(lr_schedule="wsd", decay_steps=0).rate(49) == 3e-4
    with pytest.raises(UserError, match="--decay_steps 50 and 1 steps of warm-up are more than the 50 steps"):
        planned(lr_schedule="wsd", decay_steps=50)


def save_schedule(directory, schedule, step):
    content = {"step": step, **schedule.as_json(step)}
    (directory / "lr_scheduler").write_text(json.dumps(content))


WSD = Schedule(100, 5, 3e-4, 1, "wsd", 0.0, 10)


@pytest.mark.parametrize(
    ("former", "resumed", "step", "said"),
    [
        (COSINE, Schedule(100, 5, 3e-4, 1), 40, None),
        (COSINE, Schedule(101, 5, 3e-4, 1), 40, None),  # a rank more or less: half a percent
        (COSINE, Schedule(200, 5, 3e-4, 2), 100, "from 3.00e-05 in step 100 to 1.69e-04 in step 101"),
        (COSINE, Schedule(200, 5, 3e-4, 2), 100, "steps 100 → 200"),
        (COSINE, Schedule(100, 5, 6e-4, 1), 40, "--lr 0.0003 → 0.0006"),
        (COSINE, Schedule(100, 60, 3e-4, 1), 40, "warm-up steps 5 → 60"),
        (COSINE, Schedule(40, 5, 6e-4, 1), 40, None),  # nothing is left to train
        (COSINE, replace(COSINE, min_ratio=0.5), 90, "--min_lr_ratio 0.1 → 0.5"),
        (COSINE, WSD, 40, "--lr_schedule cosine → wsd"),
        (COSINE, replace(COSINE, kind="linear"), 5, "goes on by another schedule than that of the checkpoint: "),
        (WSD, WSD, 95, None),
        (WSD, replace(WSD, total_steps=50, decay_steps=10), 40, None),  # a decay that is branched off
        (WSD, replace(WSD, total_steps=1000, decay_steps=100), 40, None),  # a longer stable phase
        (WSD, replace(WSD, total_steps=50, decay_steps=20), 40, "the decay begins here with --decay_steps 10"),
        (WSD, replace(WSD, total_steps=200), 95, "steps 100 → 200"),  # back to the peak
        (replace(WSD, kind="constant", decay_steps=None), WSD, 40, "another schedule than that of the checkpoint"),
    ],
)
def test_a_jump_of_the_learning_rate_is_described(tmp_path, former, resumed, step, said):
    save_schedule(tmp_path, former, step)
    differences = list(schedule_differences(tmp_path, resumed, step))
    assert len(differences) == (said is not None)
    assert all(said in difference for difference in differences)


@pytest.mark.parametrize(
    ("former", "now", "said"),
    [
        ({}, {"layers": 1.0, "embeddings": 1.0}, None),
        ({"layers": 1.0, "embeddings": 0.5}, {"layers": 1.0, "embeddings": 0.5, "new_rows": 0.5}, None),
        ({}, {"layers": 1.0, "embeddings": 0.3}, "embeddings 1 → 0.3, new_rows 1 → 0.3"),
        ({"layers": 1.0, "embeddings": 0.5, "new_rows": 2.0}, {}, "embeddings 0.5 → 1, new_rows 2 → 1"),
        ({"new_rows": 3.0}, {"embeddings": 1.0}, "embeddings not trained → 1, new_rows 3 → 1"),
        ({"layers": 1.0, "embeddings": 1.0}, {"new_rows": 1.0}, "layers 1 → not trained, embeddings 1 → not trained"),
    ],
)
def test_other_rates_of_groups_are_said(tmp_path, former, now, said):
    save_schedule(tmp_path, replace(COSINE, group_ratios=former), 40)
    differences = list(schedule_differences(tmp_path, replace(COSINE, group_ratios=now), 40))
    assert [difference.partition(": ")[2] for difference in differences] == ([said] if said else [])


def test_a_checkpoint_from_before_there_were_other_schedules_is_a_cosine(tmp_path):
    saved = {"step": 40, "total_steps": 100, "warmup_steps": 5, "peak_learning_rate": 3e-4, "last_learning_rate": 2e-4}
    (tmp_path / "lr_scheduler").write_text(json.dumps(saved))
    assert not list(schedule_differences(tmp_path, replace(COSINE, group_ratios={"embeddings": 1.0}), 40))
    (difference,) = schedule_differences(tmp_path, WSD, 40)
    assert "--lr_schedule cosine → wsd" in difference


SAVED = {"total_steps": 9, "warmup_steps": 1, "peak_learning_rate": 1, "last_learning_rate": 1}
DAMAGED = [{"schedule": "other"}, {"decay_steps": math.inf}, {"group_ratios": 5}, {"group_ratios": {"layers": None}}]


@pytest.mark.parametrize(
    "content",
    [None, "[]", "{}", '{"last_learning_rate": null}', *(json.dumps(SAVED | damage) for damage in DAMAGED)],
)
def test_a_checkpoint_without_a_learning_rate_is_said(tmp_path, content):
    if content is not None:
        (tmp_path / "lr_scheduler").write_text(content)
    (difference,) = schedule_differences(tmp_path, Schedule(100, 5, 3e-4, 1), 40)
    assert "tells no learning rate" in difference


geometries = st.builds(StepGeometry, st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))


@given(st.integers(1, 200), geometries, st.integers(1, 4))
def test_planned_steps_are_the_steps_taken(rows, geometry, epochs):
    """Walks through the run as the loop does, and plans at every step, as a resumed run does."""
    total = plan_steps(lambda _: rows, geometry, epochs, Progress(), None)
    progress, taken = Progress(), 0
    while progress.epoch < epochs:
        while progress.rows_done_in_epoch < rows:
            assert plan_steps(lambda _: rows, geometry, epochs, progress, None) == total
            step_rows = min(geometry.rows_per_step, rows - progress.rows_done_in_epoch)
            progress = progress.advanced(step_rows, step_rows, 1, 1)
            taken += 1
        progress = progress.next_epoch()
    assert taken == total
    assert progress.samples_seen == rows * epochs
    assert plan_steps(lambda _: rows, geometry, epochs, progress, None) == total


def test_max_steps_ends_run_and_schedule():
    assert plan_steps(lambda _: 100, StepGeometry(1, 1, 1), 3, Progress(), 7) == 7
