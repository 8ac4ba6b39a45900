"""The training step written out with PyTorch and transformers alone, document by document."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PreTrainedModel

BETAS = (0.9, 0.95)


def rows_of(parts: Iterable[Path]) -> list[dict]:
    """The rows of prepared parts, in their order."""
    return [row for part in parts for row in datasets.load_from_disk(str(part))]


def mean_loss(model: Callable[..., Any], rows: Sequence[dict]) -> torch.Tensor:
    """Mean over all targets of the rows; no document sees another."""
    sums, count = [], 0
    for row in rows:
        begin = 0
        for length in row["document_lengths"]:
            ids, labels = (torch.tensor([row[name][begin : begin + length]]) for name in ("input_ids", "labels"))
            logits = model(input_ids=ids).logits[0, :-1]
            sums.append(torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum"))
            count += int((labels[0, 1:] != -100).sum())
            begin += length
    return torch.stack(sums).sum() / count


def train_plainly(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Sequence[dict]],
    rates: Sequence[float],
    before_clipping: Callable[[], None] = lambda: None,
) -> list[float]:
    """Trains on each batch with a rate, which a group's `lr_ratio` multiplies; returns the losses.

    Gradients are clipped to the norm 1.
    """
    losses = []
    for batch, rate in zip(batches, rates, strict=True):
        loss = mean_loss(model, batch)
        loss.backward()
        losses.append(loss.item())
        before_clipping()
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_ratio", 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return losses
