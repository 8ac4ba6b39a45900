"""Losses by category: exact sums over the targets of each, from the loss of every token."""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch


class CategorySums:
    """Adds up losses by category over some micro-batches, on the device.

    `expect` is told of each micro-batch before the model sees it, `add` of the model's output
    afterwards, in the same order; a pipeline is several micro-batches ahead with the first.
    """

    def __init__(self, number: int, device: torch.device):
        self.sums = torch.zeros(number, dtype=torch.float32, device=device)
        self._expected: deque[torch.Tensor | None] = deque()

    def expect(self, target_categories: torch.Tensor | None) -> None:
        """The categories of a micro-batch's targets, (rows, length); None where there is no target."""
        self._expected.append(target_categories)

    def add(self, outputs: Any) -> None:
        """Takes the `token_losses` of a model's output."""
        categories = self._expected.popleft()
        if categories is not None and len(self.sums):
            self.sums += category_sums(outputs.token_losses, categories, len(self.sums))


def category_sums(token_losses: torch.Tensor, categories: torch.Tensor, number: int) -> torch.Tensor:
    """Sum of the losses of each category's targets.

    Args:
        token_losses: (rows, length) in fp32; 0 where there is no target.
        categories: (rows, length) int64, the category to which each of them belongs.
        number: of categories.

    Returns:
        fp32, (number,). A category's sum is no number only if one of its own losses is none.

    >>> category_sums(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0, 1, 0]]), 2)
    tensor([5., 2.])
    """
    numbers = torch.arange(number, device=categories.device).unsqueeze(1)
    return torch.where(categories.reshape(1, -1) == numbers, token_losses.reshape(1, -1), 0.0).sum(dim=1)


def means_by_name(names: Sequence[str], sums: Sequence[float], targets: Sequence[float]) -> dict[str, float | None]:
    """Mean loss per target of each category; None for those that have no target, or whose loss is no number, which JSON cannot hold."""
    return {
        name: total / count if count and math.isfinite(total) else None
        for name, total, count in zip(names, sums, targets, strict=True)
    }
