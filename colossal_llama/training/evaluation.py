"""Validation loss at intervals: the same rows in the same order, without dropout or noise.

The row order is a pure function of the lengths, losses are summed over targets, and no random
number is drawn. So the loss is the same on any number of ranks and with every plugin, up to the
rounding of sums. Training continues as if there had been no evaluation.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from colossal_llama.dataset.collator import MicroBatch
from colossal_llama.dataset.loader import RowReader, StepGeometry, step_batches
from colossal_llama.dataset.splicing import Rows
from colossal_llama.training.category_losses import means_by_name
from colossal_llama.training.train_step import TrainStep
from colossal_llama.utils.console import log_rank_zero, progress_bar


@dataclass(frozen=True)
class Evaluation:
    """Validation loss of one evaluation."""

    loss: float
    """Mean cross-entropy in nats over all targets."""
    by_category: dict[str, float | None]
    """Mean cross-entropy over the targets of each category; empty for data without categories."""
    target_tokens: int
    seconds: float

    def metrics(self) -> dict[str, object]:
        """Entries of metrics.jsonl; a loss that is NaN or Inf becomes null."""
        return {
            "eval_loss": self.loss if math.isfinite(self.loss) else None,
            "eval_loss_by_category": self.by_category,
            "eval_target_tokens": self.target_tokens,
            "eval_s": round(self.seconds, 3),
        }


@dataclass
class Evaluator:
    """Evaluates the model that `train_step` trains, on the rows of `--eval_dataset`."""

    train_step: TrainStep
    reader: RowReader
    plan: Rows
    categories: tuple[str, ...]
    micro_batch_size: int
    interval_steps: int
    last_step: int = -1
    """Step after which the last evaluation was done; -1: none yet."""
    name: ClassVar[str] = "eval_loss"
    """Of a value in metrics.jsonl that an evaluation has."""

    def is_due(self, step: int, is_last: bool) -> bool:
        """True when an evaluation follows after `step` steps: at intervals and at the end."""
        return step != self.last_step and (is_last or step % self.interval_steps == 0)

    def evaluate(self, step: int, stop_requested: Callable[[], bool]) -> Evaluation | None:
        """Computes and logs the loss over all rows. A collective.

        Args:
            step: number of steps done.
            stop_requested: polled on every rank; True ends the evaluation.

        Returns:
            The evaluation; None when a rank requested the end of the run before it was complete.
        """
        started = time.perf_counter()
        geometry = StepGeometry(self.micro_batch_size, 1, self.train_step.backend.data_parallel_size)
        bar = progress_bar(total=geometry.steps_for(len(self.plan)), desc="evaluating", unit="batch", leave=False)
        with bar:
            sums = self.train_step.evaluate(self._batches(geometry, bar), stop_requested)
        if sums is None:
            log_rank_zero(f"step {step}: the evaluation is aborted, since the run is to end")
            return None
        self.last_step = step
        found = Evaluation(
            loss=sums.loss / sums.targets if sums.targets else float("nan"),
            by_category=means_by_name(self.categories, sums.category_losses, sums.category_targets),
            target_tokens=int(sums.targets),
            seconds=time.perf_counter() - started,
        )
        shares = ", ".join(f"{name} {loss:.4f}" for name, loss in found.by_category.items() if loss is not None)
        log_rank_zero(
            f"step {step}: validation loss {found.loss:.4f} per target token over {found.target_tokens:,}"
            f"{f' ({shares})' if shares else ''}, {found.seconds:.1f} s"
        )
        return found

    def _batches(self, geometry: StepGeometry, bar: Any) -> Iterator[MicroBatch]:
        train_step = self.train_step
        pin = train_step.device.type == "cuda"
        for batches in step_batches(
            self.reader, self.plan, 0, geometry, train_step.backend.data_parallel_rank, pin_memory=pin
        ):
            yield from batches
            bar.update(1)
