"""Fused kernels that need no CUDA toolkit: Liger's Triton kernels (https://github.com/linkedin/Liger-Kernel).

Root-mean-square norm, rotary embedding, SwiGLU, and the output layer with its cross-entropy (model.linear_cross_entropy).
`torch.compile` of each layer in their place was no faster on an H200 (1.25 B, 32,768 tokens, forward and backward: 528 ms against
517), takes longer to start and does not go with Gemini.
"""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType

import torch
from torch.overrides import handle_torch_function, has_torch_function
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from colossal_llama.model.linear_cross_entropy import linear_cross_entropy


def why_no_fused_kernels(device: torch.device) -> str | None:
    """The reason why the fused kernels cannot be used on a device, or None when they can."""
    if device.type != "cuda":
        return f"they are for CUDA devices, this is {device.type}"
    if importlib.util.find_spec("liger_kernel") is None:
        return "the package liger-kernel is not installed"
    return None


def use_fused_kernels(model: LlamaForCausalLM, fuse_loss: bool = True) -> None:
    """Replaces norms, rotary embedding and MLPs of a loaded model by fused kernels, in place.

    Args:
        model: as `from_pretrained` gives it, before any plugin wraps it.
        fuse_loss: also fuse output layer and cross-entropy. Only where the output layer's weight is whole and not padded:
            tensor parallelism splits it, so it must be off there. The model then returns a loss and no logits when it trains.
    """
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    apply_liger_kernel_to_llama(model=model, rms_norm=False, fused_linear_cross_entropy=False)
    network = model.model
    norms = [network.norm]
    for layer in network.layers:
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
    for norm in norms:
        norm.forward = MethodType(_norm_forward, norm)
    model.fuses_loss = fuse_loss  # for the forward of a model divided over ranks (model.sharded)
    if fuse_loss:
        model.forward = MethodType(_forward_with_fused_loss, model)


def through_torch_function(function: Callable) -> Callable:
    """Lets a function of parameters take part in PyTorch's `__torch_function__` protocol, as PyTorch's own functions do.

    Gemini keeps parameters apart in chunks and learns from that protocol which are about to be used; a custom autograd function
    called directly would find their memory empty (https://pytorch.org/docs/stable/notes/extending.html#extending-torch).
    """

    @functools.wraps(function)
    def wrapped(*tensors: torch.Tensor, **settings: object) -> torch.Tensor:
        if has_torch_function(tensors):
            return handle_torch_function(wrapped, tensors, *tensors, **settings)
        return function(*tensors, **settings)

    return wrapped


@through_torch_function
def fused_rms_norm(hidden: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """Root-mean-square norm over the last dimension, computed in fp32, as LLaMA does.

    Args:
        hidden: (…, width), any floating dtype.
        weight: (width,).
        eps: added to the mean square.
    """
    from liger_kernel.ops import LigerRMSNormFunction

    return LigerRMSNormFunction.apply(hidden, weight, eps, 0.0, "llama", True, None)


@through_torch_function
def fused_linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`linear_cross_entropy`, announced to the plugins."""
    return linear_cross_entropy(hidden, weight, labels, positions)


@dataclass
class LossOutput(CausalLMOutputWithPast):
    """The model's output with the loss of every token, (rows, length) in fp32: at a position that of the token after it, without
    gradient; 0 where that is no target."""

    token_losses: torch.Tensor | None = None


def _norm_forward(self: torch.nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    return fused_rms_norm(hidden_states, self.weight, eps=self.variance_epsilon)


def _forward_with_fused_loss(
    self: LlamaForCausalLM,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    target_positions: torch.Tensor | None = None,
    **settings: object,
) -> "LossOutput":
    """`LlamaForCausalLM.forward` with the loss computed straight from the hidden states.

    Args:
        input_ids, attention_mask, position_ids, labels: as there.
        target_positions: (targets,) int64: the positions in the flattened batch whose next token is a target. Without them the
            output layer computes every position.
    """
    outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **settings)
    hidden = outputs[0]
    if labels is None:
        return LossOutput(logits=self.lm_head(hidden))
    shifted = torch.nn.functional.pad(labels, (0, 1), value=-100)[..., 1:].reshape(-1)
    flat = hidden.reshape(-1, hidden.shape[-1])
    loss, token_losses = fused_linear_cross_entropy(flat, self.lm_head.weight, shifted, target_positions)
    return LossOutput(loss=loss, token_losses=token_losses.view(labels.shape))
