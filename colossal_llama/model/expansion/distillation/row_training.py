"""Training of new rows alone, in front of and behind a frozen model."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn.functional import embedding
from transformers import PreTrainedModel

from colossal_llama.model.expansion.distillation.windows import Batch
from colossal_llama.model.kernels.linear_cross_entropy import linear_cross_entropy
from colossal_llama.utils.console import progress_bar
from colossal_llama.utils.errors import UserError

_WARM_UP = 0.02
"""Part of the tokens in which the learning rate rises."""
_BETAS = (0.9, 0.95)
_SHOWN_EVERY_STEPS = 10
SAVED_EVERY_S = 60.0


@dataclass
class NewRows:
    """New rows of a model's embeddings, in fp32; one matrix where they are tied.

    Attributes:
        model: the source model, frozen.
        first: the id of the first new row; rows of the source from there on are padding.
        input: [new rows, width].
        output: the same of the output layer; the very `input` where tied.
        is_seen: bool [new rows]: the rows that are trained.
    """

    model: PreTrainedModel
    first: int
    input: torch.Tensor
    output: torch.Tensor
    is_seen: torch.Tensor

    @property
    def trained(self) -> list[torch.Tensor]:
        """Matrices, each once."""
        return [self.input] if self.input is self.output else [self.input, self.output]

    def scales(self) -> list[float]:
        """Root mean squares of the source's values, of each matrix of `trained`."""
        known = (self.model.get_input_embeddings().weight, self.model.get_output_embeddings().weight)
        return [matrix[: self.first].float().square().mean().sqrt().item() for matrix in known[: len(self.trained)]]

    def keep_unseen(self) -> None:
        """Takes the gradient from rows that never occur, which Adam then leaves as they are."""
        for matrix in self.trained:
            assert matrix.grad is not None
            matrix.grad.mul_(self.is_seen)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Looks up ids of the expanded vocabulary."""
        is_new = ids >= self.first
        old = embedding(ids.masked_fill(is_new, 0), self.model.get_input_embeddings().weight)
        new = embedding((ids - self.first).clamp(min=0), self.input)
        return torch.where(is_new.unsqueeze(-1), new.to(old.dtype), old)

    def output_matrix(self) -> torch.Tensor:
        """The output layer of the expanded vocabulary."""
        old = self.model.get_output_embeddings().weight[: self.first]
        return torch.cat([old, self.output.to(old.dtype)])


@dataclass
class Progress:
    """Steps done, and the losses of the first and the last ones."""

    step: int = 0
    losses: list[tuple[int, float, float]] = field(default_factory=list)
    """Number of steps, mean cross-entropy of a token and mean distance of them, every few steps."""


def step_losses(rows: NewRows, batch: Batch, is_compared: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes the two losses of a batch.

    Args:
        rows: in their model.
        batch: of windows.
        is_compared: computes the source model's hidden states, too.

    Returns:
        Cross-entropy of the next token in nats; squared distance of the hidden states (last layer,
        after the final norm) to the source model's, over the squared norm of those: NaN where they
        are not compared.
    """
    model = rows.model.model
    ids = {name: _on_device(value, rows.input.device) for name, value in vars(batch).items()}
    outputs = model(inputs_embeds=rows.embed(ids["target_ids"]), use_cache=False)
    hidden = outputs.last_hidden_state.flatten(0, 1)
    cross_entropy, _ = linear_cross_entropy(hidden, rows.output_matrix(), ids["labels"])
    if not is_compared:
        return cross_entropy, torch.full_like(cross_entropy, torch.nan)
    with torch.no_grad():
        wanted = _states(model(input_ids=ids["source_ids"], use_cache=False), ids["source_positions"]).float()
    distance = (_states(outputs, ids["target_positions"]).float() - wanted).square().sum()
    return cross_entropy, distance / wanted.square().sum().clamp(min=1e-6)


def _on_device(values: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(values)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def _states(outputs: Any, positions: torch.Tensor) -> torch.Tensor:
    return outputs.last_hidden_state.flatten(0, 1)[positions]


def train_rows(
    rows: NewRows,
    batches: Sequence[np.ndarray],
    batch_of: Callable[[np.ndarray], Batch],
    tokens: Sequence[int],
    learning_rate: float,
    hidden_weight: float,
    state: dict[str, Any] | None,
    save: Callable[[dict[str, Any]], None],
) -> Progress:
    """Trains the rows in place, batch by batch; goes on from a state.

    Args:
        rows: to train.
        batches: numbers of the windows of each.
        batch_of: makes a batch of such numbers.
        tokens: of each batch.
        learning_rate: the largest, over the root mean square of the source's values.
        hidden_weight: of the distance, next to the cross-entropy.
        state: what `save` was given; None at the beginning.
        save: called once a minute.

    Raises:
        UserError: the loss is NaN or Inf.
    """
    for matrix in rows.trained:
        matrix.requires_grad_(True)
    rates = [learning_rate * scale for scale in rows.scales()]
    optimizer = torch.optim.Adam([{"params": [matrix]} for matrix in rows.trained], betas=_BETAS, fused=True)
    progress = Progress() if state is None else _restored(rows, optimizer, state)
    done, total, saved = sum(tokens[: progress.step]), sum(tokens), time.monotonic()
    recent: list[tuple[torch.Tensor, torch.Tensor]] = []
    with progress_bar(total=total, initial=done, unit="token", unit_scale=True, desc="distilling") as bar:
        for step in range(progress.step, len(batches)):
            losses = step_losses(rows, batch_of(batches[step]), is_compared=hidden_weight > 0)
            (losses[0] + hidden_weight * losses[1] if hidden_weight else losses[0]).backward()
            done += tokens[step]
            for parameters, rate in zip(optimizer.param_groups, rates, strict=True):
                parameters["lr"] = rate * rate_factor(done / total)
            rows.keep_unseen()
            optimizer.step()
            optimizer.zero_grad()
            recent.append((losses[0].detach(), losses[1].detach()))
            bar.update(tokens[step])
            is_due = time.monotonic() - saved >= SAVED_EVERY_S
            if len(recent) == _SHOWN_EVERY_STEPS or is_due or step == len(batches) - 1:
                progress.step = step + 1
                progress.losses.append(_mean_losses(recent))
                recent.clear()
                bar.set_postfix(loss=f"{progress.losses[-1][1]:.3f}")
            if is_due:
                save(_state(rows, optimizer, progress))
                saved = time.monotonic()
    return progress


def rate_factor(part: float) -> float:
    """Learning rate over the largest, when a part of the tokens is done: up, then down to 0."""
    return min(1.0, part / _WARM_UP) * (1.0 - part)


def _mean_losses(recent: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[int, float, float]:
    means = [torch.stack(values).mean().item() for values in zip(*recent, strict=True)]
    if not np.isfinite(means[0]) or np.isinf(means[1]):
        raise UserError(
            "the loss of the distillation is NaN or Inf: give a lower --distill_lr, or --distill_dtype fp32"
        )
    return len(recent), means[0], means[1]


def _state(rows: NewRows, optimizer: torch.optim.Optimizer, progress: Progress) -> dict[str, Any]:
    return {
        "rows": [matrix.detach() for matrix in rows.trained],
        "optimizer": optimizer.state_dict(),
        "step": progress.step,
        "losses": progress.losses,
    }


def _restored(rows: NewRows, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Progress:
    with torch.no_grad():
        for matrix, saved in zip(rows.trained, state["rows"], strict=True):
            matrix.copy_(saved)
    optimizer.load_state_dict(state["optimizer"])
    return Progress(state["step"], state["losses"])
