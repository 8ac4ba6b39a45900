"""Activation checkpointing of whole decoder layers, and selective recomputation in the others.

**Whole layers** (arXiv 1604.06174). A checkpointed layer keeps its input alone and runs again in
the backward pass, a third more work for that layer. The number of such layers is a choice, not all
or nothing: recomputing only as many as memory demands is the faster way. Which ones makes no
difference to the peak at the end of the forward pass; the first ones are taken.

**Selective activation recomputation** (arXiv 2205.05198) in the layers that are not checkpointed.
They do not save what one pass over memory recomputes from tensors that are saved anyway:

    hidden ──► norm ──► result ──► q, k, v      saved: hidden, q, k, v      recomputed: result
    gate, up ──► silu(gate) * up ──► down       saved: gate, up             recomputed: the product

At the widths of LLaMA 7 B these are 29 % of a layer's activations, so fewer layers need be
checkpointed in the same memory: with 4 rows of 4,096 tokens on H200s 5 of 32 where it was 14, and
1,329 ms a step where it was 1,389. The recomputed tensors are the same bit for bit
(tests/support/kernels_in_interpreter.py).

It is built on PyTorch's saved_tensors_hooks. The selective mode of torch.utils.checkpoint chooses
among operations of the dispatcher, and the fused kernels are none; it would also run all of a
layer's Python again.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from types import MethodType

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel


def recompute_layers(model: PreTrainedModel, layers: int, reentrant: bool, selective: bool = False) -> None:
    """Enables activation checkpointing for the first `layers` decoder layers, in place.

    The layers' own forward functions are wrapped. transformers' switch
    (`gradient_checkpointing_enable`) is left alone: it is another one in each version, is part of
    the very function that the fused kernels replace in 5, and is for all layers or none.

    Args:
        model: as `from_pretrained` gives it, with its kernels.
        layers: 0 to all.
        reentrant: the variant of torch.utils.checkpoint.
        selective: selective activation recomputation in the other layers. Only the fused kernels
            (`use_fused_kernels`) mark recomputable tensors.
    """
    if layers:
        model.config.use_cache = False  # a recomputed layer would append to its key-value cache once more
    for index, layer in enumerate(model.model.layers):
        if index < layers:
            layer.forward = MethodType(_checkpointed(layer.forward, reentrant), layer)
        elif selective:
            layer.forward = MethodType(_selectively_recomputed(layer.forward), layer)


def _checkpointed(forward: Callable, reentrant: bool) -> Callable:
    """Returns a layer's forward function, checkpointed in training.

    Its keyword arguments need no gradient: the reentrant variant gives them none.
    """

    def call(layer: nn.Module, hidden_states: torch.Tensor, **settings: object) -> object:
        if not (layer.training and torch.is_grad_enabled()):
            return forward(hidden_states, **settings)
        return checkpoint(partial(forward, **settings), hidden_states, use_reentrant=reentrant)

    return call


def _selectively_recomputed(forward: Callable) -> Callable:
    """Returns a layer's forward function, within `selective_recomputation` in training."""

    def call(layer: nn.Module, hidden_states: torch.Tensor, **settings: object) -> object:
        with selective_recomputation() if layer.training else nullcontext():
            return forward(hidden_states, **settings)

    return call


@dataclass(frozen=True)
class _Recomputed:
    """Stands in for a saved tensor that the backward pass recomputes."""

    recompute: Callable[[], torch.Tensor]
    shape: torch.Size


_marked: ContextVar[list[tuple[torch.Tensor, Callable[[], torch.Tensor]]] | None] = ContextVar("marked", default=None)
"""Recomputable tensors of the running layer and the functions that recompute them; None outside
`selective_recomputation`. The tensors stay alive until the layer ends, so that no other tensor can
reuse their memory and be mistaken for one of them."""


@contextmanager
def selective_recomputation() -> Iterator[None]:
    """Saves no tensor for the backward pass that `mark_recomputable` names within the context."""
    marked: list[tuple[torch.Tensor, Callable[[], torch.Tensor]]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor | _Recomputed:
        for result, recompute in marked:
            if _share_all_memory(tensor, result):
                return _Recomputed(recompute, tensor.shape)
        return tensor.detach()  # the tensor itself would hold the node that saves it, should no backward pass follow

    def unpack(saved: torch.Tensor | _Recomputed) -> torch.Tensor:
        return saved.recompute().view(saved.shape) if isinstance(saved, _Recomputed) else saved

    token = _marked.set(marked)
    try:
        with saved_tensors_hooks(pack, unpack):
            yield
    finally:
        _marked.reset(token)
        marked.clear()


def mark_recomputable(result: torch.Tensor, recompute: Callable[[], torch.Tensor]) -> None:
    """Marks a tensor as recomputable if the running layer is within `selective_recomputation`.

    Args:
        result: contiguous.
        recompute: returns the same tensor, bit for bit. The tensors it needs must be saved by the
            layer anyway, and must be detached, or their graph would be kept alive, too.
    """
    marked = _marked.get()
    if marked is not None:
        marked.append((result, recompute))


def _share_all_memory(tensor: torch.Tensor, result: torch.Tensor) -> bool:
    """True when both are the same values in memory, perhaps in another shape."""
    same = tensor.data_ptr() == result.data_ptr() and tensor.numel() == result.numel()
    return same and tensor.dtype == result.dtype and tensor.is_contiguous()
