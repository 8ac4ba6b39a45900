"""Step arithmetic and learning rate at every border."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.dataset.loader import StepGeometry
from colossal_llama.training.checkpoint.state import Progress
from colossal_llama.training.lr_schedule import (
    Schedule,
    default_warmup_steps,
    learning_rate,
    learning_rate_jump,
    plan_steps,
)


@given(st.integers(1, 300), st.integers(0, 60))
def test_rate_rises_to_the_peak_and_falls_to_a_tenth(total, warmup):
    rates = [learning_rate(step, total, warmup, 1.0) for step in range(total)]
    assert all(0 < rate <= 1.0 for rate in rates)
    rising, falling = rates[: min(warmup, total)], rates[warmup:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    if total > warmup + 1:
        assert falling[0] == pytest.approx(1.0)
        assert falling[-1] == pytest.approx(0.1)
    if 0 < warmup <= total:
        assert rates[warmup - 1] == pytest.approx(1.0)


def test_default_warmup_is_a_fortieth():
    assert [default_warmup_steps(total) for total in (1, 40, 1000)] == [0, 1, 25]


def save_schedule(directory, schedule, step):
    content = {
        "step": step,
        "total_steps": schedule.total_steps,
        "warmup_steps": schedule.warmup_steps,
        "peak_learning_rate": schedule.peak_learning_rate,
        "last_learning_rate": schedule.rate(step - 1),
    }
    (directory / "lr_scheduler").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("resumed", "step", "said"),
    [
        (Schedule(100, 5, 3e-4, 1), 40, None),
        (Schedule(101, 5, 3e-4, 1), 40, None),  # a rank more or less: half a percent
        (Schedule(200, 5, 3e-4, 2), 100, "from 3.00e-05 in step 100 to 1.69e-04 in step 101"),
        (Schedule(200, 5, 3e-4, 2), 100, "steps 100 → 200"),
        (Schedule(100, 5, 6e-4, 1), 40, "--lr 0.0003 → 0.0006"),
        (Schedule(100, 60, 3e-4, 1), 40, "warm-up steps 5 → 60"),
        (Schedule(40, 5, 6e-4, 1), 40, None),  # nothing is left to train
    ],
)
def test_a_jump_of_the_learning_rate_is_described(tmp_path, resumed, step, said):
    save_schedule(tmp_path, Schedule(100, 5, 3e-4, 1), step)
    jump = learning_rate_jump(tmp_path, resumed, step)
    assert jump is None if said is None else said in jump


@pytest.mark.parametrize("content", [None, "[]", "{}", '{"last_learning_rate": null}'])
def test_a_checkpoint_without_a_learning_rate_is_said(tmp_path, content):
    if content is not None:
        (tmp_path / "lr_scheduler").write_text(content)
    assert "tells no learning rate" in learning_rate_jump(tmp_path, Schedule(100, 5, 3e-4, 1), 40)


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
