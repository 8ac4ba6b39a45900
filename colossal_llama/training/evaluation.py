"""Validation loss at intervals: the same rows in the same order every time, without dropout, noise or gradient.

The data order is a pure function of the lengths, sums are over targets, and no random number is
drawn, so the loss is the same on any number of ranks and with every plugin (up to the rounding of
sums), and training goes on as if there had been no evaluation.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from colossal_llama.dataset.collator import MicroBatch
from colossal_llama.dataset.epoch_plan import plan_epoch
from colossal_llama.dataset.loader import RowReader, StepGeometry, step_batches
from colossal_llama.dataset.part_reader import Part
from colossal_llama.dataset.splicing import Rows
from colossal_llama.training.arguments import TrainingArguments
from colossal_llama.training.category_losses import means_by_name
from colossal_llama.training.lr_schedule import step_geometry
from colossal_llama.training.train_step import TrainStep
from colossal_llama.utils.console import log_rank_zero, progress_bar


@dataclass(frozen=True)
class Evaluation:
    """A validation loss."""

    loss: float
    """Mean cross-entropy in nats over all targets."""
    by_category: dict[str, float | None]
    """The same over those of each category; empty where the data name none."""
    target_tokens: int
    seconds: float

    def numbers(self) -> dict[str, object]:
        """What the record of a run has of it."""
        return {
            "eval_loss": self.loss if math.isfinite(self.loss) else None,
            "eval_loss_by_category": self.by_category,
            "eval_target_tokens": self.target_tokens,
            "eval_s": round(self.seconds, 3),
        }


@dataclass
class Evaluator:
    """Evaluates the model that a train_step trains on `--eval_dataset`."""

    train_step: TrainStep
    reader: RowReader
    plan: Rows
    categories: tuple[str, ...]
    micro_batch_size: int
    interval: int
    """In steps."""
    last_step: int = -1

    def is_due(self, step: int, is_last: bool) -> bool:
        """Whether to evaluate after `step` steps: at intervals, and at the end of the run."""
        return step != self.last_step and (is_last or step % self.interval == 0)

    def evaluate(self, step: int, stop_requested: Callable[[], bool]) -> Evaluation | None:
        """The loss over all rows, by all ranks together; says it too. None when the run is to end before that is done."""
        begun = time.perf_counter()
        geometry = StepGeometry(self.micro_batch_size, 1, self.train_step.backend.data_parallel_size)
        bar = progress_bar(total=geometry.steps_for(len(self.plan)), desc="evaluating", unit="batch", leave=False)
        with bar:
            sums = self.train_step.evaluate(self._batches(geometry, bar), stop_requested)
        if sums is None:
            log_rank_zero(f"step {step}: the evaluation is broken off, since the run is to end")
            return None
        self.last_step = step
        found = Evaluation(
            loss=sums.loss / sums.targets if sums.targets else float("nan"),
            by_category=means_by_name(self.categories, sums.category_losses, sums.category_targets),
            target_tokens=int(sums.targets),
            seconds=time.perf_counter() - begun,
        )
        shares = ", ".join(f"{name} {loss:.4f}" for name, loss in found.by_category.items() if loss is not None)
        log_rank_zero(
            f"step {step}: validation loss {found.loss:.4f} per target token over {found.target_tokens:,}"
            f"{f' ({shares})' if shares else ''}, {found.seconds:.1f} s"
        )
        return found

    def _batches(self, geometry: StepGeometry, bar: object) -> Iterator[MicroBatch]:
        train_step = self.train_step
        pin = train_step.device.type == "cuda"
        for batches in step_batches(
            self.reader, self.plan, 0, geometry, train_step.backend.data_parallel_rank, pin_memory=pin
        ):
            yield from batches
            bar.update(1)


def build_evaluator(
    arguments: TrainingArguments,
    train_step: TrainStep,
    parts: Sequence[Part],
    reader: RowReader,
    packed_to_tokens: int | None,
    categories: tuple[str, ...],
) -> Evaluator:
    """The evaluator of a command line.

    Args:
        arguments: the run's.
        train_step: what trains the model.
        parts: of `--eval_dataset`.
        reader: of their rows.
        packed_to_tokens: samples are packed into rows of so many tokens; None: each by itself.
        categories: names of all data's categories.
    """
    lengths = [part.row_lengths_tokens() for part in parts]
    return Evaluator(
        train_step=train_step,
        reader=reader,
        plan=plan_epoch(lengths, 0, 0, "none", packed_to_tokens),
        categories=categories,
        micro_batch_size=step_geometry(arguments, 1).micro_batch_size,
        interval=arguments.records.eval_interval or arguments.checkpoint.save_interval,
    )
