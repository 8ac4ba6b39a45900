"""Training loop: epochs, steps, evaluations, checkpoints, stop signals and metrics."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from colossal_llama.dataset.collator import MicroBatch
from colossal_llama.dataset.epoch_plan import plan_epoch
from colossal_llama.dataset.loader import RowReader, StepGeometry, step_batches
from colossal_llama.engine.parameter_groups import set_learning_rate
from colossal_llama.training.category_losses import means_by_name
from colossal_llama.training.checkpoint.saver import CheckpointSaver
from colossal_llama.training.checkpoint.state import Origin, Progress
from colossal_llama.training.evaluation import Evaluator
from colossal_llama.training.lr_schedule import Schedule
from colossal_llama.training.metrics import MetricsWriter, peak_flops
from colossal_llama.training.nonfinite_steps import NonFiniteSteps, finite
from colossal_llama.training.signals import REQUEST, Phase, StopRequest
from colossal_llama.training.task_evaluation import TaskEvaluator
from colossal_llama.training.train_step import StepResult, TrainStep
from colossal_llama.utils.console import log_rank_zero, progress_bar

RETRIES_PER_INTERVAL = 10
"""Number of times that a checkpoint which could not be written is retried within one
`--save_interval`."""


@dataclass
class Trainer:
    """Runs the training loop of one rank."""

    train_step: TrainStep
    reader: RowReader
    part_lengths: list[np.ndarray]
    """For each part an integer array (rows,): tokens of its prepared rows."""
    geometry: StepGeometry
    schedule: Schedule
    tokenizer: PreTrainedTokenizerBase
    origin: Origin
    metrics: MetricsWriter
    save_interval: int
    save_each_epoch: bool
    saver: CheckpointSaver | None
    """None for a benchmark, which saves nothing."""
    flops_per_token: float
    nonfinite_steps: NonFiniteSteps
    categories: tuple[str, ...] = ()
    """Names of the data's categories."""
    evaluators: Sequence[Evaluator | TaskEvaluator] = ()
    resumes_unevaluated: bool = False
    """True where the line of the resumed step in metrics.jsonl lacks an evaluation."""
    progress: Progress = field(default_factory=Progress)

    def fit(self) -> bool:
        """Trains to the end of the run. A collective.

        Returns:
            False when a signal ended the run early; its checkpoint is saved.
        """
        self.train_step.model.train()
        bar = progress_bar(total=self.schedule.total_steps, initial=self.progress.step, desc="training", unit="step")
        saving = self.saver or contextlib.nullcontext()
        stop = REQUEST
        stop.begin(Phase.TRAINING)
        with bar, contextlib.closing(self.metrics), saving:
            self._make_up_for_evaluations(stop)
            while self.progress.epoch < self.schedule.num_epochs and not self._is_finished():
                if not self._train_epoch(stop, bar):
                    stop.begin(Phase.FINISHING, is_announced=True)
                    return False
                self.progress = self.progress.next_epoch()
            stop.begin(Phase.FINISHING)
        return True

    def _is_finished(self) -> bool:
        return self.progress.step >= self.schedule.total_steps

    def _train_epoch(self, stop: StopRequest, bar: Any) -> bool:
        """Trains the remaining steps of an epoch; returns False when the run must stop."""
        saved = True
        for micro_batches, wait_s in _timed(self._remaining_steps()):
            started = time.perf_counter()
            rate = self.schedule.rate(self.progress.step)
            set_learning_rate(self.train_step.optimizer, rate)
            result = self.train_step.step(micro_batches, self.progress.step, stop.received)
            seconds = time.perf_counter() - started + wait_s
            self.progress = self.progress.advanced(result.rows, result.samples, result.tokens, result.target_tokens)
            self.nonfinite_steps.observe(self.progress.step, result.loss, result.gradient_norm, micro_batches)
            stops = result.stop_requested and not self._is_finished()
            ends = stops or self.nonfinite_steps.limit_reached
            evaluation = {} if ends else self._evaluate_if_due(stop)
            self._record(result, rate, seconds, wait_s, evaluation, bar)
            self.nonfinite_steps.raise_if_limit_reached()
            saved = self._save_at_interval()
            if stops:
                self._stop_early(saved)
                return False
            if self._is_finished():
                break
        if self.save_each_epoch and not saved:
            self._save()
        return True

    def _remaining_steps(self) -> Iterator[list[MicroBatch]]:
        plan = plan_epoch(
            self.part_lengths, self.origin.seed, self.progress.epoch, self.origin.shuffle, self.origin.packed_to_tokens
        )
        return step_batches(
            self.reader,
            plan,
            self.progress.rows_done_in_epoch,
            self.geometry,
            self.train_step.backend.data_parallel_rank,
            pin_memory=self.train_step.device.type == "cuda",
        )

    def _make_up_for_evaluations(self, stop: StopRequest) -> None:
        """Evaluates what the run before has left out after the step from which this one resumes.

        Also where no step is left, so that the loop evaluates nothing.
        """
        found = self._evaluate_if_due(stop) if self.resumes_unevaluated or self._is_finished() else {}
        if self.resumes_unevaluated:
            self.metrics.amend(self.progress.step, found)

    def _evaluate_if_due(self, stop: StopRequest) -> dict[str, object]:
        """Entries of metrics.jsonl of the evaluations that follow after this step; a collective."""
        found: dict[str, object] = {}
        for evaluator in self.evaluators:
            if evaluator.is_due(self.progress.step, self._is_finished()):
                evaluation = evaluator.evaluate(self.progress.step, lambda: stop.received)
                found |= evaluation.metrics() if evaluation is not None else {}
        return found

    def _record(
        self,
        result: StepResult,
        rate: float,
        seconds: float,
        wait_s: float,
        evaluation: dict[str, object],
        bar: Any,
    ) -> None:
        tokens_per_s = result.tokens / seconds
        values = {
            "epoch": self.progress.epoch,
            "loss": finite(result.loss),
            "learning_rate": rate,
            **self._rates_by_group(rate),
            "gradient_norm": finite(result.gradient_norm),
            "bad_steps_in_a_row": self.nonfinite_steps.in_a_row,
            "loss_by_category": means_by_name(self.categories, result.category_losses, result.category_targets),
            "tokens_per_s": round(tokens_per_s, 1),
            "target_tokens_per_s": round(result.target_tokens / seconds, 1),
            "model_flops_utilisation": self._utilisation(tokens_per_s),
            "data_wait_s": round(wait_s, 4),
            "step_s": round(seconds, 4),
            "peak_memory_gib": _peak_memory_gib(self.train_step.device),
            "samples_seen": self.progress.samples_seen,
            "tokens_seen": self.progress.tokens_seen,
            "target_tokens_seen": self.progress.target_tokens_seen,
            **(self.saver.metrics() if self.saver else {}),
            **evaluation,
        }
        self.metrics.write(self.progress.step, values)
        bar.update(1)
        bar.set_postfix(loss=f"{result.loss:.4f}", lr=f"{rate:.2e}", tok_s=f"{tokens_per_s:,.0f}", refresh=False)

    def _rates_by_group(self, rate: float) -> dict[str, object]:
        """Entry of metrics.jsonl where some parameters are not trained with the rate of `--lr`."""
        ratios = self.schedule.group_ratios
        if set(ratios.values()) <= {1.0}:
            return {}
        return {"lr": {name: rate * ratio for name, ratio in ratios.items()}}

    def _utilisation(self, tokens_per_s: float) -> float | None:
        """Model FLOPs utilisation: model FLOPs/s over the peak of all devices (arXiv 2204.02311).

        Model FLOPs are those of model.param_count.flops_per_token, peaks those of
        metrics.PEAK_FLOPS. None where the device's peak is unknown.
        """
        peak = peak_flops(self.train_step.device)
        if peak is None:
            return None
        return round(tokens_per_s * self.flops_per_token / (peak * torch.distributed.get_world_size()), 4)

    def _save_at_interval(self) -> bool:
        step = self.progress.step
        is_due = step % self.save_interval == 0
        if not is_due and self.saver is not None and step % max(1, self.save_interval // RETRIES_PER_INTERVAL) == 0:
            is_due = self.saver.must_retry()
        if is_due:
            self._save()
        return is_due

    def _stop_early(self, saved: bool) -> None:
        outcome = "a benchmark saves nothing"
        if self.saver is not None:
            if not saved or not self.saver.wait():
                self._save()
            self.saver.require_saved()
            outcome = "everything is saved. Resume with the same command and --load_checkpoint auto"
        log_rank_zero(f"stopped by a signal after step {self.progress.step} of {self.schedule.total_steps}; {outcome}")

    def _save(self) -> None:
        if self.saver is None:
            return
        step = self.progress.step
        self.saver.save(self.progress, {"step": step, **self.schedule.as_json(step)})


def _timed(steps: Iterator[list[MicroBatch]]) -> Iterator[tuple[list[MicroBatch], float]]:
    """Yields each step's micro-batches with the seconds spent waiting for them."""
    while True:
        started = time.perf_counter()
        try:
            micro_batches = next(steps)
        except StopIteration:
            return
        yield micro_batches, time.perf_counter() - started


def _peak_memory_gib(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
