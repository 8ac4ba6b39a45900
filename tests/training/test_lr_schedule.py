"""Step arithmetic and learning rate at every border."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.dataset.loader import StepGeometry
from colossal_llama.training.checkpoint.state import Progress
from colossal_llama.training.lr_schedule import default_warmup_steps, learning_rate, plan_steps


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
