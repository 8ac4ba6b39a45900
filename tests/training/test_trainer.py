"""The training loop at every border: rows, saves and evaluations of whole and of resumed runs.

The loop, its plan, the shares of the ranks and the prefetching are the real ones; the step itself,
and the writing, are recorded only.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.dataset.loader import StepGeometry
from colossal_llama.training.checkpoint.state import Origin, Progress
from colossal_llama.training.lr_schedule import Schedule, default_warmup_steps, plan_steps, rows_of_epoch
from colossal_llama.training.nonfinite_steps import NonFiniteSteps
from colossal_llama.training.train_step import StepResult
from colossal_llama.training.trainer import Trainer


@dataclass
class Notes:
    """What one rank's loop did."""

    rows: list[tuple[int, ...]] = field(default_factory=list)
    """Prepared rows of each step, this rank's."""
    saves: list[Progress] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Setting:
    part_sizes: list[int]
    geometry: StepGeometry
    epochs: int
    max_steps: int | None
    save_interval: int
    save_each_epoch: bool
    packed: bool
    shuffle: str

    @property
    def lengths(self) -> list[np.ndarray]:
        generator = np.random.default_rng(1)
        return [generator.integers(1, 20, size) for size in self.part_sizes]

    @property
    def origin(self) -> Origin:
        return Origin("data", "tokenizer", len(self.part_sizes), 7, self.shuffle, 40 if self.packed else None)


geometries = st.builds(StepGeometry, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
settings_of_runs = st.builds(
    Setting,
    st.lists(st.integers(0, 9), min_size=1, max_size=3).filter(any),
    geometries,
    st.integers(1, 3),
    st.none() | st.integers(1, 12),
    st.integers(1, 7),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["bucket", "global", "none"]),
)


def walk(setting: Setting, rank: int = 0, progress: Progress | None = None) -> Notes:
    """One rank's loop from a position on."""
    progress, notes, lengths, origin = progress or Progress(), Notes(), setting.lengths, setting.origin
    geometry = setting.geometry
    total = plan_steps(
        lambda epoch: rows_of_epoch(lengths, origin, epoch), geometry, setting.epochs, progress, setting.max_steps
    )
    optimizer = SimpleNamespace(param_groups=[{"name": "all", "lr": None, "lr_ratio": 1.0}])
    run: Trainer

    def step(micro_batches, number, stop):
        assert number == run.progress.step
        notes.rows.append(tuple(row for batch in micro_batches for row in batch.sample_ids))
        notes.rates.append(optimizer.param_groups[0]["lr"])
        planned = rows_of_epoch(lengths, origin, run.progress.epoch) - run.progress.rows_done_in_epoch
        rows = min(geometry.rows_per_step, planned)
        return StepResult(1.0, 1.0, rows, rows, rows, rows, False, (), ())

    train_step = SimpleNamespace(
        model=torch.nn.Identity(),
        device=torch.device("cpu"),
        optimizer=optimizer,
        backend=SimpleNamespace(data_parallel_rank=rank),
        step=step,
    )
    run = Trainer(
        train_step=train_step,
        reader=SimpleNamespace(micro_batch=lambda rows: SimpleNamespace(sample_ids=[int(s) for r in rows for s in r])),
        part_lengths=lengths,
        geometry=geometry,
        schedule=Schedule(total, default_warmup_steps(total), 1.0, setting.epochs),
        tokenizer=None,
        origin=origin,
        metrics=SimpleNamespace(write=lambda *_: None, close=lambda: None),
        save_interval=setting.save_interval,
        save_each_epoch=setting.save_each_epoch,
        saver=_Saver(notes),
        flops_per_token=1.0,
        nonfinite_steps=NonFiniteSteps(None, None, 1),
        evaluators=[_Evaluator(notes)],
        progress=progress,
    )
    assert run.fit()
    assert run.progress.step == total
    return notes


class _Saver:
    def __init__(self, notes: Notes):
        self.notes = notes

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def metrics(self):
        return {}

    def must_retry(self, *_):
        return False

    def save(self, progress, schedule):
        assert schedule["step"] == progress.step
        self.notes.saves.append(progress)


class _Evaluator:
    interval = 3

    def __init__(self, notes: Notes):
        self.notes = notes

    def is_due(self, step, is_last):
        return is_last or step % self.interval == 0

    def evaluate(self, step, stop_requested):
        self.notes.evaluations.append(step)


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    """No progress bars: rank 1 has none."""
    for name, value in {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "::1", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))


@settings(max_examples=60, deadline=None)
@given(settings_of_runs)
def test_every_row_once_an_epoch_over_all_ranks(setting):
    ranks = [walk(setting, rank) for rank in range(setting.geometry.data_parallel_size)]
    assert len({len(notes.rows) for notes in ranks}) == 1  # as many steps on every rank
    trained = sorted(row for notes in ranks for step in notes.rows for row in step)
    everything = sorted(list(range(sum(setting.part_sizes))) * setting.epochs)
    if setting.max_steps is None:
        assert trained == everything
    else:
        assert len(ranks[0].rows) <= setting.max_steps


@settings(max_examples=60, deadline=None)
@given(settings_of_runs)
def test_saved_and_evaluated_at_intervals_and_ends(setting):
    notes = walk(setting)
    steps, total = [progress.step for progress in notes.saves], len(notes.rows)
    assert steps == sorted(set(steps))  # nothing twice
    per_epoch = [
        setting.geometry.steps_for(rows_of_epoch(setting.lengths, setting.origin, e)) for e in range(setting.epochs)
    ]
    ends = {int(end) for end in np.cumsum(per_epoch) if end < total} | {total}
    expected = {step for step in range(1, total + 1) if step % setting.save_interval == 0}
    assert set(steps) == (expected | ends if setting.save_each_epoch else expected)
    assert notes.evaluations == [s for s in range(1, total + 1) if s % _Evaluator.interval == 0 or s == total]


@settings(max_examples=60, deadline=None)
@given(settings_of_runs, st.data())
def test_going_on_from_any_save_does_what_was_left(setting, data):
    """Also from the last one, after which only the end of an epoch is left to do."""
    whole = walk(setting)
    if not whole.saves:
        return
    saved = data.draw(st.sampled_from(whole.saves))
    rest = walk(setting, progress=saved)
    assert rest.rows == whole.rows[saved.step :]
    assert rest.rates == whole.rates[saved.step :]
    assert [p for p in rest.saves if p.step > saved.step] == [p for p in whole.saves if p.step > saved.step]
