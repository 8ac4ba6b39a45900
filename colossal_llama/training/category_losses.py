"""Losses by category: sums over the targets of each category, from the loss of every token."""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch


class CategorySums:
    """Sums losses by category over micro-batches, on the device.

    `expect` takes the categories of a micro-batch before its forward pass, `add` the model's output
    after it, in the same order. A pipeline calls `expect` several micro-batches ahead of `add`.

    Args:
        categories: their number.
        device: of the sums.
    """

    def __init__(self, categories: int, device: torch.device):
        self.sums = torch.zeros(categories, dtype=torch.float32, device=device)
        self._expected: deque[torch.Tensor | None] = deque()

    def expect(self, target_categories: torch.Tensor | None) -> None:
        """Queues the categories of a micro-batch's targets.

        Args:
            target_categories: int64 (rows, length); None for a micro-batch without targets.
        """
        self._expected.append(target_categories)

    def add(self, outputs: Any) -> None:
        """Adds the `token_losses` of a model's output."""
        categories = self._expected.popleft()
        if categories is not None and len(self.sums):
            self.sums += category_sums(outputs.token_losses, categories, len(self.sums))


def category_sums(token_losses: torch.Tensor, target_categories: torch.Tensor, categories: int) -> torch.Tensor:
    """Sums the losses of each category's targets.

    Args:
        token_losses: fp32 (rows, length); 0 where there is no target.
        target_categories: int64 (rows, length), index of each token's category.
        categories: their number.

    Returns:
        fp32 (categories,). A NaN or Inf among the losses changes the sum of its own category only.

    >>> category_sums(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0, 1, 0]]), 2)
    tensor([5., 2.])
    """
    indices = torch.arange(categories, device=target_categories.device).unsqueeze(1)
    return torch.where(target_categories.reshape(1, -1) == indices, token_losses.reshape(1, -1), 0.0).sum(dim=1)


def means_by_name(names: Sequence[str], sums: Sequence[float], targets: Sequence[float]) -> dict[str, float | None]:
    """Mean loss per target of each category.

    None stands for a category without targets, and for a NaN or Inf, which JSON cannot hold.
    """
    return {
        name: total / count if count and math.isfinite(total) else None
        for name, total, count in zip(names, sums, targets, strict=True)
    }
