"""Gradient checkpointing layer by layer: how many layers keep their activations is a choice, not all or nothing.

A layer that is recomputed keeps its input alone and runs again in the backward pass, a third more
work for that layer (arXiv 1604.06174). Recomputing only as many as memory demands is the faster
way; which ones makes no difference to the peak at the end of the forward pass, and the first ones
are taken. The others can keep less (model.selective_recomputation).
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

from torch import nn
from transformers import LlamaForCausalLM

from colossal_llama.model.selective_recomputation import frugally


def recompute_layers(model: LlamaForCausalLM, layers: int, reentrant: bool, frugal: bool = False) -> None:
    """Lets the first `layers` decoder layers recompute their activations in the backward pass.

    Args:
        model: as `from_pretrained` gives it.
        layers: 0 to all.
        reentrant: see torch.utils.checkpoint.
        frugal: the other layers do not keep what is cheap to make again; only with fused kernels
            (`use_fused_kernels`) is there any.
    """
    if not layers and not frugal:
        model.gradient_checkpointing_disable()
        return
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    network = model.model
    network._gradient_checkpointing_func = _for_some(
        network._gradient_checkpointing_func, list(network.layers[:layers]), frugally if frugal else nullcontext
    )


def _for_some(checkpoint: Callable, chosen: list[nn.Module], around_others: Callable) -> Callable:
    """Transformers' checkpoint function for the chosen layers, a call within a context for the others.

    It is given `layer.__call__`, by transformers within a `partial`, by ColossalAI's tensor
    parallelism as it is.
    """
    recomputed = {id(layer) for layer in chosen}

    def call(function: Callable, *arguments: object) -> object:
        method = function.func if isinstance(function, partial) else function
        if id(method.__self__) in recomputed:
            return checkpoint(function, *arguments)
        with around_others():
            return function(*arguments)

    return call
