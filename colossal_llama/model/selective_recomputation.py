"""Decoder layers that do not keep for the backward pass what one pass over memory makes again from what they keep anyway.

    hidden ──► norm ──► result ──► q, k, v        kept: hidden, q, k, v        made again: result
    gate, up ──► silu(gate) * up ──► down         kept: gate, up               made again: the product

At the widths of LLaMA 7 B these are 29 % of a layer's activations, so that in the same memory fewer
layers need be recomputed whole (model.activation_checkpointing): 4 rows of 4,096 tokens on H200s, 5
of 32 where it was 14, and 1,329 ms a step where it was 1,389. Selective recomputation, arXiv
2205.05198. What is made again is the same, bit by bit (tests/support/kernels_in_interpreter.py).

Through PyTorch's saved_tensors_hooks. torch.utils.checkpoint's own selective way chooses among
operations of the dispatcher, and the fused kernels are none; it would also run all of a layer's
Python again.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch.autograd.graph import saved_tensors_hooks


@dataclass(frozen=True)
class _MadeAgain:
    """What is kept in place of a tensor."""

    recipe: Callable[[], torch.Tensor]
    shape: torch.Size


_recipes: ContextVar[list[tuple[torch.Tensor, Callable[[], torch.Tensor]]] | None] = ContextVar("recipes", default=None)
"""Of the layer that runs frugally: results, alive until the layer ends so that no other tensor
can have their memory, and recipes."""


@contextmanager
def frugally() -> Iterator[None]:
    """What is announced by `can_be_made_again` within is not kept for the backward pass."""
    known: list[tuple[torch.Tensor, Callable[[], torch.Tensor]]] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor | _MadeAgain:
        for result, recipe in known:
            if _is_all_of(tensor, result):
                return _MadeAgain(recipe, tensor.shape)
        return tensor.detach()  # the tensor itself would hold the node that saves it, should no backward pass follow

    def give(kept: torch.Tensor | _MadeAgain) -> torch.Tensor:
        return kept.recipe().view(kept.shape) if isinstance(kept, _MadeAgain) else kept

    before = _recipes.set(known)
    try:
        with saved_tensors_hooks(keep, give):
            yield
    finally:
        _recipes.reset(before)
        known.clear()


def can_be_made_again(result: torch.Tensor, recipe: Callable[[], torch.Tensor]) -> None:
    """Announces a result to the layer that runs, if it runs frugally.

    Args:
        result: contiguous.
        recipe: makes it again, the same bits; what it needs must be kept by the layer anyway, and
            must be without history (`.detach()`), or it would keep that, too.
    """
    known = _recipes.get()
    if known is not None:
        known.append((result, recipe))


def _is_all_of(tensor: torch.Tensor, result: torch.Tensor) -> bool:
    """Whether both are the same numbers in memory, perhaps in another shape."""
    same = tensor.data_ptr() == result.data_ptr() and tensor.numel() == result.numel()
    return same and tensor.dtype == result.dtype and tensor.is_contiguous()
