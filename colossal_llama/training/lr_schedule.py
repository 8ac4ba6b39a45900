"""Learning rate schedule and number of steps of a run: arithmetic of rows, ranks and epochs."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from colossal_llama.dataset.epoch_plan import plan_epoch
from colossal_llama.dataset.loader import StepGeometry
from colossal_llama.training.arguments import LR_SCHEDULES, DataArguments, OptimizerArguments, PluginArguments
from colossal_llama.training.checkpoint.state import LR_SCHEDULER, Origin, Progress
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.json_files import read_json_object

JUMP_FRACTION = 0.01
"""Relative difference from the checkpoint's schedule beyond which a resumed run's rate is said to
jump."""
WARMUP_FRACTION = 0.025
"""Default warm-up steps over all steps."""
DECAY_FRACTION = 0.1
"""Default steps of wsd's decay over all steps, which its paper found to suffice."""


def default_warmup_steps(total_steps: int) -> int:
    """Default number of warm-up steps: 2.5 % of all steps."""
    return round(WARMUP_FRACTION * total_steps)


def default_decay_steps(total_steps: int, warmup_steps: int) -> int:
    """Default number of steps of wsd's decay: 10 % of all steps, none of them of the warm-up."""
    return min(round(DECAY_FRACTION * total_steps), max(0, total_steps - warmup_steps))


@dataclass(frozen=True)
class Schedule:
    """Length of a run in optimizer steps, and its learning rates.

    Warm-up is linear, from `peak / warmup_steps` in the first step to the peak in step
    `warmup_steps − 1`, counted from 0. Then, with the share p of the decay that is done:

        cosine    floor + (peak − floor) · (1 + cos(π p)) / 2,
                  p = (step − warmup_steps) / (total_steps − 1 − warmup_steps)
        linear    floor + (peak − floor) · (1 − p), with the same p
        constant  peak
        wsd       peak; in the last decay_steps steps floor + (peak − floor) · (1 − p),
                  p = 1 − (total_steps − 1 − step) / decay_steps

    The floor, `min_ratio · peak`, is the rate of the last step, `total_steps − 1`. So linear is wsd
    with all steps of decay but one.

    Sources: SGDR without restarts (arXiv 1608.03983); warmup-stable-decay (arXiv 2404.06395), with
    the linear decay of SmolLM2 (arXiv 2502.02737).
    """

    total_steps: int
    """Of the whole run, warm-up included."""
    warmup_steps: int
    peak_learning_rate: float
    num_epochs: int
    kind: str = "cosine"
    """One of `arguments.LR_SCHEDULES`."""
    min_ratio: float = 0.1
    """Last learning rate over the peak."""
    decay_steps: int | None = None
    """Of wsd; None for others."""
    group_ratios: Mapping[str, float] = field(default_factory=dict)
    """Of parameter groups, see `trained_parameters.learning_rate_ratios`."""

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        peak, floor = self.peak_learning_rate, self.min_ratio * self.peak_learning_rate
        if step < self.warmup_steps:
            return peak * (step + 1) / self.warmup_steps
        if step < self.decay_start:
            return peak
        length = self.total_steps - 1 - self.decay_start if self.decay_steps is None else self.decay_steps
        progress = min(1.0, (step - self.decay_start) / max(1, length))
        left = 0.5 * (1.0 + math.cos(math.pi * progress)) if self.kind == "cosine" else 1.0 - progress
        return floor + (peak - floor) * left

    @property
    def decay_start(self) -> int | float:
        """The last step at the peak, counted from 0; infinity without a decay."""
        if self.kind == "constant" or self.decay_steps == 0:
            return math.inf
        return self.warmup_steps if self.decay_steps is None else self.total_steps - 1 - self.decay_steps

    def describe(self) -> str:
        """Names peaks and schedule, as in `learning rate 0.01, cosine decay to 0.1 of the peak`."""
        groups = ", ".join(f"{name} {ratio * self.peak_learning_rate:g}" for name, ratio in self.group_ratios.items())
        begin = f"learning rate {self.peak_learning_rate:g}{f' ({groups})' if groups else ''}, "
        if self.decay_start == math.inf:
            return f"{begin}{self.kind}, no decay"
        end = f"to {self.min_ratio:g} of the peak"
        if self.decay_steps is None:
            return f"{begin}{self.kind} decay {end}"
        steps = "step" if self.decay_steps == 1 else f"{self.decay_steps:,} steps"
        return f"{begin}{self.kind}, constant, then linear decay {end} in the last {steps}"

    def as_json(self, steps_done: int) -> dict[str, Any]:
        """Record in a checkpoint of the schedule after so many steps."""
        return {
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "peak_learning_rate": self.peak_learning_rate,
            "schedule": self.kind,
            "min_lr_ratio": self.min_ratio,
            "decay_steps": self.decay_steps,
            "group_ratios": dict(self.group_ratios),
            "last_learning_rate": self.rate(max(0, steps_done - 1)),
        }


def schedule_differences(checkpoint: Path, schedule: Schedule, step: int) -> Iterator[str]:
    """Describes how the learning rates of a resumed run differ from those of its checkpoint.

    Args:
        checkpoint: directory, whose schedule is compared with the present one.
        schedule: of the resumed run.
        step: number of steps done.

    Yields:
        A warning where the next step has another rate than it would have had, a note where only
        later ones have, by another kind of schedule; and a note where groups of parameters have
        other rates than they had. Nothing where only the length of the run differs.
    """
    if step >= schedule.total_steps:
        return
    try:
        saved = read_json_object(checkpoint / LR_SCHEDULER)
        last, former = float(saved["last_learning_rate"]), _saved_schedule(saved)
        groups = _group_changes(saved.get("group_ratios"), schedule.group_ratios)
    except (UserError, AttributeError, KeyError, OverflowError, TypeError, ValueError):
        yield f"{checkpoint / LR_SCHEDULER} tells no learning rate, so that it may jump here without a notice"
        return
    if difference := _difference(former, last, schedule, step):
        yield difference
    if groups:
        yield f"rates over --lr that are not those of the checkpoint: {', '.join(groups)}"


def _difference(former: Schedule, last: float, schedule: Schedule, step: int) -> str | None:
    """Compares the rate of the next step by both schedules; `last` is the checkpoint's own."""
    rate, expected = schedule.rate(step), former.rate(step)
    changes = ", ".join(_changes(former, schedule))
    branches_off = schedule.kind == "wsd" and _is_close(schedule.rate(max(0, step - 1)), last)
    if _is_close(rate, expected) or branches_off:
        if (former.kind, former.min_ratio) == (schedule.kind, schedule.min_ratio):
            return None
        return f"the learning rate goes on by another schedule than that of the checkpoint: {changes}"
    begun = schedule.kind == "wsd" and schedule.decay_start < step - 1 and expected == former.peak_learning_rate
    return (
        f"warning: the learning rate jumps from {last:.2e} in step {step} to {rate:.2e} in step {step + 1}, because "
        f"the schedule is not that of the checkpoint ({changes}), by which step {step + 1} would have {expected:.2e}: "
        "stop this run and set --lr, --warmup_steps, --num_epochs, --max_steps or the options of its schedule if that "
        "is not meant" + (f" (the decay begins here with --decay_steps {schedule.total_steps - step})" if begun else "")
    )


def _group_changes(former: Mapping[str, float] | None, now: Mapping[str, float]) -> list[str]:
    """Names the groups whose ratio differs; none for a checkpoint that does not record them."""
    if former is None:
        return []
    before, after = _ratio_of_each(former), _ratio_of_each(now)
    return [f"{name} {before[name]} → {after[name]}" for name in after if before[name] != after[name]]


def _ratio_of_each(ratios: Mapping[str, float]) -> dict[str, str]:
    """Ratio of layers, embeddings and new rows, also of those that have no group of their own."""
    names = ("layers", "embeddings", "new_rows")
    of_each = dict(ratios) or dict.fromkeys(names, 1.0)
    if "embeddings" in of_each:
        of_each.setdefault("new_rows", of_each["embeddings"])
    return {name: f"{float(of_each[name]):g}" if name in of_each else "not trained" for name in names}


def _is_close(rate: float, expected: float) -> bool:
    return abs(rate - expected) <= JUMP_FRACTION * expected


def _saved_schedule(saved: dict[str, Any]) -> Schedule:
    """The schedule in a checkpoint's file; one written before there were others is a cosine."""
    kind, decay_steps = saved.get("schedule", "cosine"), saved.get("decay_steps")
    if kind not in LR_SCHEDULES:
        raise ValueError(f"no schedule: {kind!r}")
    return Schedule(
        int(saved["total_steps"]),
        int(saved["warmup_steps"]),
        float(saved["peak_learning_rate"]),
        0,
        kind,
        float(saved.get("min_lr_ratio", 0.1)),
        None if decay_steps is None else int(decay_steps),
    )


def _changes(former: Schedule, schedule: Schedule) -> Iterator[str]:
    """Names what differs between two schedules."""
    if former.kind != schedule.kind:
        yield f"--lr_schedule {former.kind} → {schedule.kind}"
    for name, before, now in (
        ("steps", former.total_steps, schedule.total_steps),
        ("warm-up steps", former.warmup_steps, schedule.warmup_steps),
        ("steps of decay", former.decay_steps, schedule.decay_steps),
        ("--lr", former.peak_learning_rate, schedule.peak_learning_rate),
        ("--min_lr_ratio", former.min_ratio, schedule.min_ratio),
    ):
        if before is not None and now is not None and before != now:
            yield f"{name} {before:g} → {now:g}"


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
    group_ratios: Mapping[str, float],
) -> Schedule:
    """Plans the schedule of a run for its remaining rows, on the present ranks.

    Args:
        optimizer: learning rate, warm-up and largest number of steps.
        num_epochs: of the whole run.
        part_lengths: for each part an integer array (rows,): tokens of its prepared rows.
        origin: data, tokenizer and order that the run began with.
        geometry: rows a step.
        progress: steps and rows done.
        group_ratios: of the schedule.

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
    decay = _decay_steps(optimizer, total, warmup) if optimizer.lr_schedule == "wsd" else None
    kind, min_ratio = optimizer.lr_schedule, optimizer.min_lr_ratio
    return Schedule(total, warmup, optimizer.lr, num_epochs, kind, min_ratio, decay, group_ratios)


def _decay_steps(optimizer: OptimizerArguments, total_steps: int, warmup_steps: int) -> int:
    """Number of steps of wsd's decay; raises UserError where warm-up and decay are too long."""
    if optimizer.decay_steps is None:
        return default_decay_steps(total_steps, warmup_steps)
    if warmup_steps + optimizer.decay_steps > total_steps:
        raise UserError(
            f"--decay_steps {optimizer.decay_steps} and {warmup_steps} steps of warm-up are more than the "
            f"{total_steps} steps of the run: give smaller --decay_steps or --warmup_steps, or train longer"
        )
    return optimizer.decay_steps
