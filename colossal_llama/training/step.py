"""One optimizer step: the micro-batches' gradients, averaged over the step's target tokens, then the update."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from colossalai.booster.plugin import HybridParallelPlugin, TorchDDPPlugin

from colossal_llama.dataset.loader import MicroBatch
from colossal_llama.model.attention import boundaries_of
from colossal_llama.model.neftune import NeftuneNoise
from colossal_llama.training.optimizer import loss_scale, skipped_last_step
from colossal_llama.training.pipeline import StepInputs
from colossal_llama.training.plugins import Engine

WORTH_SKIPPING = 0.9
"""Share of targets below which the output layer computes their positions only."""


@dataclass(frozen=True)
class StepResult:
    """What a step did, over all ranks."""

    loss: float
    """Mean cross-entropy in nats: over the step's target tokens, or of the micro-batches' means."""
    gradient_norm: float | None
    """Before clipping, without the loss scale; None where the plugin does not compute it, or skipped an fp16 step that overflowed."""
    tokens: int
    target_tokens: int
    rows: int
    samples: int
    """Prepared rows; more than `rows` where samples were packed together."""
    stop_requested: bool
    """Whether some rank asked for the end of the run."""


@dataclass
class Stepper:
    """Computes optimizer steps for a boosted model.

    Every micro-batch's mean loss is weighted with its target tokens over those of the whole step, all ranks and micro-batches
    together, so a batch with few targets does not count as much as a full one, and N accumulated micro-batches give the gradient
    of one batch of N. `average="micro_batch"` restores the mean of means.
    """

    engine: Engine
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    data_parallel_rank: int
    data_parallel_size: int
    gradient_clipping: float
    average: str = "token"
    noise: NeftuneNoise | None = None
    seed: int = 0
    skips_ignored_positions: bool = False
    """Whether the model's loss takes the positions of the targets, and leaves out the others."""

    def step(self, micro_batches: Sequence[MicroBatch], step: int, stop_requested: bool = False) -> StepResult:
        """Forward, backward and update.

        Args:
            micro_batches: this rank's, on the host; every rank must have the same number.
            step: number of the step, which seeds the NEFTune noise.
            stop_requested: whether this rank wants the run to end; shared with all ranks beside the loss.
        """
        # One sum over all processes: those that share a batch each add it, so the sums are theirs times too large.
        copies = dist.get_world_size() // self.data_parallel_size
        counts = torch.tensor(
            [
                sum(batch.target_tokens for batch in micro_batches),
                sum(batch.tokens for batch in micro_batches),
                sum(batch.rows for batch in micro_batches),
                sum(len(batch.sample_ids) for batch in micro_batches),
                int(stop_requested),
            ],
            dtype=torch.float64,  # exact where float32 would not be: 16.8 million tokens, counted once a process
        ).to(self.device, non_blocking=True)
        dist.all_reduce(counts)
        counts /= copies
        weights = [self._weight(batch, counts[0], len(micro_batches)) for batch in micro_batches]
        inputs = self._inputs(micro_batches, step)
        if self.engine.pipeline_stages > 1:
            loss_sum = self._through_pipeline(micro_batches, inputs, weights)
        else:
            loss_sum = self._one_by_one(inputs, weights)
        gradient_norm = self._update()
        dist.all_reduce(loss_sum)
        numbers = torch.cat([counts, loss_sum.to(counts.dtype).view(1)]).tolist()
        copies_of_loss = copies // self.engine.pipeline_stages  # the last stage alone has it
        return StepResult(
            loss=numbers[5] / copies_of_loss / self.data_parallel_size,
            gradient_norm=gradient_norm,
            tokens=int(numbers[1]),
            target_tokens=int(numbers[0]),
            rows=int(numbers[2]),
            samples=int(numbers[3]),
            stop_requested=numbers[4] > 0,
        )

    def _weight(self, batch: MicroBatch, step_targets: torch.Tensor, micro_batches: int) -> torch.Tensor | float:
        """Factor on a micro-batch's mean loss. The plugins average gradients over data-parallel ranks, hence their number."""
        if batch.target_tokens == 0:
            return 0.0
        if self.average == "micro_batch":
            return 1.0 / micro_batches
        return (batch.target_tokens * self.data_parallel_size / step_targets).float()

    def _one_by_one(
        self, inputs: Iterator[dict[str, torch.Tensor]], weights: Sequence[torch.Tensor | float]
    ) -> torch.Tensor:
        """Forward and backward of each micro-batch; returns the sum of their weighted losses."""
        loss_sum = torch.zeros((), dtype=torch.float32, device=self.device)
        for index, (arguments, weight) in enumerate(zip(inputs, weights, strict=True)):
            is_last = index == len(weights) - 1
            with nullcontext() if is_last else self._without_gradient_sync():
                with self._autocast():
                    loss = self.model(**arguments).loss
                loss = loss * weight
                self.engine.booster.backward(loss, self.optimizer)
            loss_sum += loss.detach().float()
        return loss_sum

    def _through_pipeline(
        self,
        micro_batches: Sequence[MicroBatch],
        inputs: Iterator[dict[str, torch.Tensor]],
        weights: Sequence[torch.Tensor | float],
    ) -> torch.Tensor:
        """The same through the stages of a pipeline; the sum of the weighted losses on the last stage, zero on the others."""
        remaining = iter(weights)

        def weighted_loss(outputs: Any, _: object) -> torch.Tensor:
            return outputs.loss * next(remaining) * len(weights)  # the schedule divides by their number

        shapes = [tuple(batch.input_ids.shape) for batch in micro_batches]
        result = self.engine.booster.execute_pipeline(
            StepInputs(shapes, inputs), self.model, weighted_loss, self.optimizer, return_loss=True
        )
        return torch.zeros((), device=self.device) if result["loss"] is None else result["loss"].float()

    def _inputs(self, micro_batches: Sequence[MicroBatch], step: int) -> Iterator[dict[str, torch.Tensor]]:
        """The model's arguments for each micro-batch, on the device, each made when it is asked for."""
        for index, batch in enumerate(micro_batches):
            if self.noise is not None:
                lengths = batch.token_lengths.to(self.device, non_blocking=True)
                self.noise.prepare(lengths, self._noise_seed(step, index))
            yield self._arguments(batch)

    def _arguments(self, batch: MicroBatch) -> dict[str, torch.Tensor]:
        """The model's arguments; the loss over them is a finite number also when there are no targets."""
        boundaries = boundaries_of(batch.document_lengths, batch.input_ids.shape[1])
        moved = batch.to(self.device)
        labels = moved.labels
        if batch.target_tokens == 0:
            # The mean over no targets is 0/0, and NaN survives the weight 0: let one token count, with that weight.
            labels = labels.clone()
            labels[0, 1] = moved.input_ids[0, 1]
        # Copied as the few numbers that it is; expanded again on the device.
        on_device = boundaries[:, :1, :1].to(self.device, non_blocking=True).expand(boundaries.shape)
        return {
            "input_ids": moved.input_ids,
            "attention_mask": on_device,
            "position_ids": moved.position_ids,
            "labels": labels,
            **self._positions(batch, moved),
        }

    def _positions(self, batch: MicroBatch, moved: MicroBatch) -> dict[str, torch.Tensor]:
        """The positions to compute, where leaving out the rest is worth the copies of their rows."""
        computed = batch.target_tokens / batch.labels.numel()
        if not self.skips_ignored_positions or not 0 < computed < WORTH_SKIPPING:
            return {}
        return {"target_positions": moved.target_positions}

    def _update(self) -> float | None:
        """Clips, updates, clears; returns the gradient norm before clipping."""
        if self.engine.clips_itself:
            scale = loss_scale(self.optimizer)
            self.optimizer.step()
            norm = self.optimizer.get_grad_norm()
            if skipped_last_step(self.optimizer):
                norm = None
            elif norm is not None:
                norm = norm / scale
        else:
            norm = self._clip()
            self.optimizer.step()
        self.optimizer.zero_grad()
        return None if norm is None else float(norm)

    def _clip(self) -> torch.Tensor:
        if hasattr(self.optimizer, "scaler"):  # fp16: norm and limit are meant for the gradients without the loss scale
            self.optimizer.unscale_grad()
        limit = self.gradient_clipping or float("inf")
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)

    def _autocast(self):
        if self.engine.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.engine.autocast_dtype)

    def _without_gradient_sync(self):
        """Leaves out the exchange of gradients that the last micro-batch will do for all, where the plugin can."""
        plugin = self.engine.plugin
        partitioned = isinstance(plugin, HybridParallelPlugin) and plugin.zero_stage == 2
        if isinstance(plugin, TorchDDPPlugin | HybridParallelPlugin) and not partitioned:
            return self.engine.booster.no_sync(self.model, self.optimizer)
        return nullcontext()

    def _noise_seed(self, step: int, micro_batch: int) -> int:
        return hash((self.seed, step, micro_batch, self.data_parallel_rank)) % 2**63
