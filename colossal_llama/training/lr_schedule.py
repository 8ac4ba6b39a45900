"""Learning rate schedule and number of steps of a run: arithmetic of rows, ranks and epochs."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from colossal_llama.dataset.epoch_plan import plan_epoch
from colossal_llama.dataset.loader import StepGeometry
from colossal_llama.training.arguments import DataArguments, OptimizerArguments, PluginArguments
from colossal_llama.training.checkpoint.state import LR_SCHEDULER, Origin, Progress
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.json_files import read_json_object

FINAL_FRACTION = 0.1
"""Last learning rate over the peak."""
JUMP_FRACTION = 0.01
"""Relative difference from the checkpoint's schedule beyond which a resumed run's rate is said to
jump."""
WARMUP_FRACTION = 0.025
"""Default warm-up steps over all steps."""


def default_warmup_steps(total_steps: int) -> int:
    """Default number of warm-up steps: 2.5 % of all steps."""
    return round(WARMUP_FRACTION * total_steps)


def learning_rate(step: int, total_steps: int, warmup_steps: int, peak: float) -> float:
    """Learning rate of a step: linear warm-up to the peak, then cosine decay to a tenth of it.

    Source: SGDR without restarts (arXiv 1608.03983).

    Args:
        step: 0 for the first step, `total_steps` − 1 for the last.
        total_steps: of the whole run, warm-up included.
        warmup_steps: step `warmup_steps` − 1 is the first at the peak.
        peak: largest learning rate.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    decay_steps = max(1, total_steps - 1 - warmup_steps)
    progress = min(1.0, (step - warmup_steps) / decay_steps)
    floor = FINAL_FRACTION * peak
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Schedule:
    """Length of a run in optimizer steps, and its learning rates."""

    total_steps: int
    warmup_steps: int
    peak_learning_rate: float
    num_epochs: int

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        return learning_rate(step, self.total_steps, self.warmup_steps, self.peak_learning_rate)


def learning_rate_jump(checkpoint: Path, schedule: Schedule, step: int) -> str | None:
    """Describes how far the learning rate of a resumed run is from where its checkpoint left it.

    Args:
        checkpoint: directory, whose schedule is compared with the present one.
        schedule: of the resumed run.
        step: number of steps done.

    Returns:
        One sentence; None where the next step has the rate that it would have had.
    """
    if step >= schedule.total_steps:
        return None
    try:
        saved = read_json_object(checkpoint / LR_SCHEDULER)
        last = float(saved["last_learning_rate"])
        former = Schedule(int(saved["total_steps"]), int(saved["warmup_steps"]), float(saved["peak_learning_rate"]), 0)
    except (UserError, KeyError, TypeError, ValueError):
        return f"{checkpoint / LR_SCHEDULER} tells no learning rate, so that it may jump here without a notice"
    rate, expected = schedule.rate(step), former.rate(step)
    if abs(rate - expected) <= JUMP_FRACTION * expected:
        return None
    changes = [
        f"{name} {before:g} → {now:g}"
        for name, before, now in (
            ("steps", former.total_steps, schedule.total_steps),
            ("warm-up steps", former.warmup_steps, schedule.warmup_steps),
            ("--lr", former.peak_learning_rate, schedule.peak_learning_rate),
        )
        if before != now
    ]
    return (
        f"warning: the learning rate jumps from {last:.2e} in step {step} to {rate:.2e} in step {step + 1}, because "
        f"the schedule is not that of the checkpoint ({', '.join(changes)}), by which step {step + 1} would have "
        f"{expected:.2e}: stop this run and set --lr, --warmup_steps, --num_epochs or --max_steps if that is not meant"
    )


def plan_steps(
    rows_of_epoch: Callable[[int], int], geometry: StepGeometry, num_epochs: int, done: Progress, max_steps: int | None
) -> int:
    """Number of steps of the whole run: those done, and those of the remaining rows.

    Args:
        rows_of_epoch: gives the number of rows of an epoch, which may differ by a packed row
            between epochs.
        geometry: rows a step.
        num_epochs: of the whole run.
        done: progress of the run.
        max_steps: upper limit; None: no limit.
    """
    total = done.step
    for epoch in range(done.epoch, num_epochs):
        already_done = done.rows_done_in_epoch if epoch == done.epoch else 0
        total += geometry.steps_for(max(0, rows_of_epoch(epoch) - already_done))
    return min(total, max_steps) if max_steps else total


def rows_of_epoch(part_lengths: list[np.ndarray], origin: Origin, epoch: int) -> int:
    """Number of rows of an epoch, after packing where samples are packed."""
    if origin.packed_to_tokens is None:
        return sum(len(lengths) for lengths in part_lengths)
    return len(plan_epoch(part_lengths, origin.seed, epoch, origin.shuffle, origin.packed_to_tokens))


def tokens_of_run(
    part_lengths: list[np.ndarray], origin: Origin, geometry: StepGeometry, done: Progress, schedule: Schedule
) -> int:
    """Number of tokens of the whole run: those seen, and those of the remaining steps' rows."""
    lengths, tokens = np.concatenate(part_lengths), done.tokens_seen
    steps, epoch, begin = schedule.total_steps - done.step, done.epoch, done.rows_done_in_epoch
    while steps > 0 and epoch < schedule.num_epochs:
        plan = plan_epoch(part_lengths, origin.seed, epoch, origin.shuffle, origin.packed_to_tokens)
        end = min(len(plan), begin + steps * geometry.rows_per_step)
        tokens += int(lengths[plan.items[plan.starts[begin] : plan.starts[end]]].sum())
        steps -= geometry.steps_for(end - begin)
        epoch, begin = epoch + 1, 0
    return tokens


def step_geometry(data: DataArguments, plugin: PluginArguments, data_parallel_size: int) -> StepGeometry:
    """Rows of a step: micro-batch size, micro-batches and data-parallel ranks.

    A pipeline runs all rows of a rank at once, accumulated ones included, in micro-batches of
    `--microbatch_size` rows.
    """
    assert data.accumulation_steps is not None, "set by inputs.with_data_defaults"
    if plugin.pp == 1:
        return StepGeometry(data.micro_batch_size, data.accumulation_steps, data_parallel_size)
    micro_batches = data.accumulation_steps * data.micro_batch_size // plugin.microbatch_size
    return StepGeometry(plugin.microbatch_size, micro_batches, data_parallel_size)


def plan_schedule(
    optimizer: OptimizerArguments,
    num_epochs: int,
    part_lengths: list[np.ndarray],
    origin: Origin,
    geometry: StepGeometry,
    progress: Progress,
) -> Schedule:
    """Plans the schedule of a run for its remaining rows, on the present ranks.

    Args:
        optimizer: learning rate, warm-up and largest number of steps.
        num_epochs: of the whole run.
        part_lengths: for each part an integer array (rows,): tokens of its prepared rows.
        origin: data, tokenizer and order that the run began with.
        geometry: rows a step.
        progress: steps and rows done.

    Raises:
        UserError: the current epoch has fewer rows than are done already (`--allow_other_data`).
    """
    rows = rows_of_epoch(part_lengths, origin, progress.epoch) if progress.rows_done_in_epoch else 0
    if progress.rows_done_in_epoch > rows:
        raise UserError(
            f"the run has trained on {progress.rows_done_in_epoch} rows of its epoch, and the data have only {rows}, "
            "so nothing would be trained: give all rows of the run, or begin a new stage with the weights alone "
            "(--load_checkpoint CHECKPOINT/modelling)"
        )
    total = plan_steps(
        lambda epoch: rows_of_epoch(part_lengths, origin, epoch),
        geometry,
        num_epochs,
        progress,
        optimizer.max_steps,
    )
    warmup = optimizer.warmup_steps if optimizer.warmup_steps is not None else default_warmup_steps(total)
    return Schedule(total, warmup, optimizer.lr, num_epochs)
