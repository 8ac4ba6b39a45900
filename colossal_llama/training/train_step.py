"""Training step: gradients averaged over the step's target tokens, then the update; evaluation."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from colossal_llama.dataset.collator import MicroBatch
from colossal_llama.engine.backend import Backend
from colossal_llama.model.attention.document_mask import encode_document_mask
from colossal_llama.model.neftune import NeftuneNoise
from colossal_llama.training.category_losses import CategorySums

SKIP_BELOW_TARGET_SHARE = 0.9
"""Share of targets below which the output layer computes their positions only."""
STOP_POLL_INTERVAL = 16
"""Micro-batches of an evaluation after which it is polled again whether the run is to end."""


@dataclass(frozen=True)
class StepResult:
    """Results of a step over all ranks."""

    loss: float
    """Mean cross-entropy in nats: over the step's target tokens, or of the micro-batches' means."""
    gradient_norm: float | None
    """Norm before clipping, without the loss scale; None where the plugin does not compute it, or
    where the loss scaler skipped an overflowed fp16 step."""
    tokens: int
    target_tokens: int
    rows: int
    samples: int
    """Prepared rows; more than `rows` where samples were packed together."""
    stop_requested: bool
    """True when some rank requested the end of the run."""
    category_losses: tuple[float, ...]
    """Summed over the targets of each category."""
    category_targets: tuple[int, ...]


@dataclass(frozen=True)
class EvaluationSums:
    """Sums of losses over a data set, and the numbers of their targets, over all ranks."""

    loss: float
    targets: float
    category_losses: tuple[float, ...]
    category_targets: tuple[float, ...]


@dataclass
class TrainStep:
    """Computes optimizer steps of a prepared model.

    Every micro-batch's mean loss is weighted with its target tokens over those of the whole step
    (all ranks and micro-batches). So a batch with few targets counts less than a full one, and N
    accumulated micro-batches give the gradient of one batch of N. `average="micro_batch"` restores
    the mean of means.
    """

    backend: Backend
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    average: str = "token"
    noise: NeftuneNoise | None = None
    seed: int = 0
    skips_ignored_positions: bool = False
    """True when the model's loss accepts the positions of the targets, and skips the others."""
    categories: int = 0
    """Number of the data's categories; 0 without categories."""

    def step(self, micro_batches: Sequence[MicroBatch], step: int, stop_requested: bool = False) -> StepResult:
        """Runs forward, backward and update.

        Args:
            micro_batches: this rank's, on the host; every rank must have the same number.
            step: number of the step, which seeds the NEFTune noise.
            stop_requested: True when this rank requests the end of the run; summed over the ranks
                with the losses.
        """
        counts = self._summed_counts(micro_batches, stop_requested)
        weights = [self._weight(batch, *counts[:2]) for batch in micro_batches]
        categories = CategorySums(self.categories, self.device)
        inputs = self._inputs(micro_batches, categories, step)
        if self.backend.pipeline_stages > 1:
            loss_sum = self._run_pipeline(micro_batches, inputs, weights, categories)
        else:
            loss_sum = self._run_micro_batches(inputs, weights, categories)
        gradient_norm = self.backend.optimizer_step(self.model, self.optimizer)
        losses = torch.cat([loss_sum.view(1), categories.sums])
        dist.all_reduce(losses)
        losses /= self._replicas // self.backend.pipeline_stages  # only the last stage has them
        numbers = torch.cat([counts, losses.to(counts.dtype)]).tolist()
        targets, _, tokens, rows, samples, stops, *by_category = numbers
        return StepResult(
            loss=by_category[self.categories] / self.backend.data_parallel_size,
            gradient_norm=gradient_norm,
            tokens=int(tokens),
            target_tokens=int(targets),
            rows=int(rows),
            samples=int(samples),
            stop_requested=stops > 0,
            category_losses=tuple(by_category[self.categories + 1 :]),
            category_targets=tuple(int(number) for number in by_category[: self.categories]),
        )

    @property
    def _replicas(self) -> int:
        """Number of processes that share each batch: sums over all processes count it as often."""
        return dist.get_world_size() // self.backend.data_parallel_size

    def _summed_counts(self, micro_batches: Sequence[MicroBatch], stop_requested: bool) -> torch.Tensor:
        """Counts of a step, summed over all ranks.

        Returns:
            float64: targets, micro-batches with targets, tokens, rows, samples, stop requests, and
            the targets of each category.
        """
        counts = torch.tensor(
            [
                sum(batch.target_tokens for batch in micro_batches),
                sum(batch.target_tokens > 0 for batch in micro_batches),
                sum(batch.tokens for batch in micro_batches),
                sum(batch.rows for batch in micro_batches),
                sum(len(batch.sample_ids) for batch in micro_batches),
                int(stop_requested),
                *(sum(batch.category_targets[c] for batch in micro_batches) for c in range(self.categories)),
            ],
            dtype=torch.float64,  # exact where float32 would not be: 16.8 million tokens, counted once a process
        ).to(self.device, non_blocking=True)
        dist.all_reduce(counts)
        return counts / self._replicas

    def _weight(
        self, batch: MicroBatch, step_targets: torch.Tensor, with_targets: torch.Tensor
    ) -> torch.Tensor | float:
        """Factor on a micro-batch's mean loss.

        The plugins average gradients over data-parallel ranks, hence the factor of their number.

        Args:
            batch: the micro-batch.
            step_targets: targets of the step.
            with_targets: micro-batches of the step that have targets: those that fill up a short
                last step have none.
        """
        if batch.target_tokens == 0:
            return 0.0
        share = 1 / with_targets if self.average == "micro_batch" else batch.target_tokens / step_targets
        return (share * self.backend.data_parallel_size).float()

    @torch.no_grad()
    def evaluate(self, batches: Iterable[MicroBatch], stop_requested: Callable[[], bool]) -> EvaluationSums | None:
        """Computes losses without dropout and noise; weights and random generators do not change.

        Args:
            batches: this rank's; every rank must have the same number.
            stop_requested: True when this rank requests the end of the run; polled every
                `STOP_POLL_INTERVAL` micro-batches, on all ranks.

        Returns:
            The sums; None when a rank requested the end of the run before they were complete.
        """
        found = torch.zeros(2 + 2 * self.categories, dtype=torch.float64, device=self.device)
        for group in self._evaluated_groups(batches, stop_requested):
            if group is None:
                return None
            categories = CategorySums(self.categories, self.device)
            inputs = self._inputs(group, categories, step=0)
            targets = [float(batch.target_tokens) for batch in group]
            loss: Any
            if self.backend.pipeline_stages > 1:
                loss = self._run_pipeline(group, inputs, targets, categories)
            else:
                loss = sum(self._loss(arguments, categories) * t for arguments, t in zip(inputs, targets, strict=True))
            found[0] += loss.double()
            found[2 : 2 + self.categories] += categories.sums.double()
            if self.backend.is_last_stage:  # only it has the losses
                found[1] += sum(targets)
                found[2 + self.categories :] += found.new_tensor([batch.category_targets for batch in group]).sum(dim=0)
        dist.all_reduce(found)
        loss, targets, *by_category = (found / (self._replicas // self.backend.pipeline_stages)).tolist()
        return EvaluationSums(
            loss, targets, tuple(by_category[: self.categories]), tuple(by_category[self.categories :])
        )

    @torch.no_grad()
    def last_logits(
        self,
        batches: Iterable[MicroBatch],
        receive: Callable[[torch.Tensor], None],
        stop_requested: Callable[[], bool],
    ) -> bool:
        """Computes the logits after each row's last document, without dropout and noise.

        Weights and random generators do not change. Loss kernels that never build logits are passed
        over.

        Args:
            batches: this rank's; every rank must have the same number. Each row is one document.
            receive: called with the logits (rows, at least the vocabulary) in fp32 of each
                micro-batch in order, a placeholder's included; on the last pipeline stage only.
            stop_requested: see `evaluate`.

        Returns:
            False when a rank requested the end of the run before all were computed.
        """
        for group in self._evaluated_groups(batches, stop_requested):
            if group is None:
                return False
            inputs = (self._logit_arguments(batch) for batch in group)
            if self.backend.pipeline_stages > 1:
                self._run_pipeline_for_logits(group, inputs, receive)
                continue
            for arguments in inputs:
                with self._autocast():
                    outputs = self.model(**arguments)
                receive(outputs.logits.float())
        return True

    def _run_pipeline_for_logits(
        self,
        micro_batches: Sequence[MicroBatch],
        inputs: Iterator[dict[str, torch.Tensor]],
        receive: Callable[[torch.Tensor], None],
    ) -> None:
        def take(outputs: Any) -> torch.Tensor:
            receive(outputs.logits.float())
            return torch.zeros((), device=self.device)

        shapes = [tuple(batch.input_ids.shape) for batch in micro_batches]
        self.backend.run_pipeline(self.model, self.optimizer, shapes, inputs, take)

    def _evaluated_groups(
        self, batches: Iterable[MicroBatch], stop_requested: Callable[[], bool]
    ) -> Iterator[list[MicroBatch] | None]:
        """Micro-batches that are computed at once, while the model is in evaluation mode.

        Several only in a pipeline. The last item is None when a rank requested the end of the run.
        """
        group_size = 4 * self.backend.pipeline_stages if self.backend.pipeline_stages > 1 else 1
        batches = iter(batches)
        self.model.eval()
        try:
            for number in itertools.count():
                group = list(itertools.islice(batches, group_size))
                if not group:
                    return
                if number % STOP_POLL_INTERVAL == 0 and self._on_any_rank(stop_requested()):
                    yield None
                    return
                yield group
        finally:
            self.model.train()

    def _on_any_rank(self, flag: bool) -> bool:
        flags = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(flags)
        return bool(flags.item())

    def _loss(self, arguments: dict[str, torch.Tensor], categories: CategorySums) -> torch.Tensor:
        """Mean loss over a micro-batch's targets."""
        with self._autocast():
            outputs = self.model(**arguments)
        categories.add(outputs)
        return outputs.loss

    def _run_micro_batches(
        self,
        inputs: Iterator[dict[str, torch.Tensor]],
        weights: Sequence[torch.Tensor | float],
        categories: CategorySums,
    ) -> torch.Tensor:
        """Runs forward and backward of each micro-batch; returns the sum of weighted losses."""
        loss_sum = torch.zeros((), dtype=torch.float32, device=self.device)
        for index, (arguments, weight) in enumerate(zip(inputs, weights, strict=True)):
            is_last = index == len(weights) - 1
            with nullcontext() if is_last else self.backend.no_sync(self.model, self.optimizer):
                loss = self._loss(arguments, categories) * weight
                self.backend.backward(loss, self.optimizer)
            loss_sum += loss.detach().float()
        return loss_sum

    def _run_pipeline(
        self,
        micro_batches: Sequence[MicroBatch],
        inputs: Iterator[dict[str, torch.Tensor]],
        weights: Sequence[torch.Tensor | float],
        categories: CategorySums,
    ) -> torch.Tensor:
        """Runs forward, and with gradients backward, of the micro-batches through the pipeline.

        Returns:
            The sum of the weighted losses on the last stage, zero on the others.
        """
        remaining = iter(weights)

        def weighted_loss(outputs: Any) -> torch.Tensor:
            categories.add(outputs)
            return outputs.loss * next(remaining)

        shapes = [tuple(batch.input_ids.shape) for batch in micro_batches]
        loss = self.backend.run_pipeline(self.model, self.optimizer, shapes, inputs, weighted_loss)
        return torch.zeros((), device=self.device) if loss is None else loss.float()

    def _inputs(
        self, micro_batches: Sequence[MicroBatch], categories: CategorySums, step: int
    ) -> Iterator[dict[str, torch.Tensor]]:
        """The model's arguments for each micro-batch, moved to the device when they are needed."""
        for batch in micro_batches:
            moved = batch.to(self.device)
            categories.expect(moved.target_categories if batch.target_tokens else None)
            if self.noise is not None and self.model.training:
                row_lengths = [sum(lengths) for lengths in batch.document_lengths[: batch.rows]]
                self.noise.prepare(moved.token_lengths, row_lengths, self._noise_seeds(batch, step))
            yield self._arguments(batch, moved)

    def _noise_seeds(self, batch: MicroBatch, step: int) -> list[int]:
        """Seeds of the rows by their samples: the same noise on any number of ranks."""
        return [hash((self.seed, step, samples[0])) % 2**63 for samples in batch.samples_of_rows()]

    def _arguments(self, batch: MicroBatch, moved: MicroBatch) -> dict[str, torch.Tensor]:
        """The model's arguments; the loss is finite also without targets."""
        labels = moved.labels
        if batch.target_tokens == 0:
            # The mean over no targets is 0/0, and NaN times the weight 0 is NaN: one token becomes
            # a target, with that weight.
            labels = labels.clone()
            labels[0, 1] = moved.input_ids[0, 1]
        return {
            "input_ids": moved.input_ids,
            "attention_mask": self._document_mask(batch),
            "position_ids": moved.position_ids,
            "labels": labels,
            **self._positions(batch, moved),
        }

    def _document_mask(self, batch: MicroBatch) -> torch.Tensor:
        """The encoded mask, copied as the few values that differ and expanded on the device."""
        mask = encode_document_mask(batch.document_lengths, batch.input_ids.shape[1])
        return mask[:, :1, :1].to(self.device, non_blocking=True).expand(mask.shape)

    def _logit_arguments(self, batch: MicroBatch) -> dict[str, torch.Tensor]:
        """The model's arguments for the logits at the end of each row's documents."""
        width = batch.input_ids.shape[1]
        ends = [row * width + sum(lengths) - 1 for row, lengths in enumerate(batch.document_lengths)]
        return {
            "input_ids": batch.input_ids.to(self.device),
            "attention_mask": self._document_mask(batch),
            "position_ids": batch.position_ids.to(self.device),
            "logit_positions": torch.tensor(ends, device=self.device),
        }

    def _positions(self, batch: MicroBatch, moved: MicroBatch) -> dict[str, torch.Tensor]:
        """Positions of the targets, where skipping the others saves more than the copies cost."""
        computed = batch.target_tokens / batch.labels.numel()
        if not self.skips_ignored_positions or not 0 < computed < SKIP_BELOW_TARGET_SHARE:
            return {}
        return {"target_positions": moved.target_positions}

    def _autocast(self):
        if self.backend.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.backend.autocast_dtype)
