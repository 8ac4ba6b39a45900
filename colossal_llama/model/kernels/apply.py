"""Fused kernels that need no CUDA toolkit, and which part of a model each of them replaces.

    norm, and the residual addition before it   Liger   model.kernels.rms_norm
    q, k, v and gate, up projections            ours    model.kernels.grouped_linear
    rotary embedding                            Liger   within 1/5 of an H200's memory bandwidth
    SwiGLU                                      Liger   within 1/20 of it
    output layer and cross-entropy              ours    model.kernels.linear_cross_entropy

Liger's are Triton kernels (https://github.com/linkedin/Liger-Kernel). `torch.compile` of each layer
in place of them was no faster on an H200 (1.25 B, 32,768 tokens, forward and backward: 528 ms
against 517), takes longer to start and does not work with Gemini.
"""

import importlib.util
import sys
from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel

from colossal_llama.model.activation_checkpointing import mark_recomputable
from colossal_llama.model.architectures import architecture_of
from colossal_llama.model.kernels.grouped_linear import share_input_gradients
from colossal_llama.model.kernels.linear_cross_entropy import linear_cross_entropy, next_token_labels
from colossal_llama.model.kernels.per_token_loss import LossOutput, states_at
from colossal_llama.model.kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_with_residual
from colossal_llama.model.kernels.torch_function import through_torch_function
from colossal_llama.utils.transformers_version import is_transformers_5


def fused_kernels_unavailable_reason(device: torch.device) -> str | None:
    """Names the reason why the fused kernels cannot be used on a device; None when they can."""
    if device.type != "cuda":
        return f"they are for CUDA devices, this is {device.type}"
    if importlib.util.find_spec("liger_kernel") is None:
        return "the package liger-kernel is not installed"
    return None


def use_fused_kernels(model: PreTrainedModel, fuse_loss: bool = True, fuse_rotary: bool = True) -> None:
    """Replaces the parts of a loaded model named above by fused kernels, in place.

    Args:
        model: as `from_pretrained` gives it, before any plugin wraps it.
        fuse_loss: also fuse output layer and cross-entropy; the model then returns a loss and no
            logits in training. It needs the output layer's weight whole and without padding, so it
            must be off under tensor parallelism, which shards it.
        fuse_rotary: also fuse the rotary embedding. Its kernel is compiled for each number of rows
            in a batch, so that it must be off where that number changes from step to step.
    """
    if fuse_rotary:
        _replace_rotary_embedding(model)
    model.model.norm.forward = MethodType(_norm_forward, model.model.norm)
    has_qk_norm = architecture_of(model.config).has_qk_norm
    for layer in model.model.layers:
        layer.forward = MethodType(_layer_forward, layer)
        layer.mlp.forward = MethodType(_mlp_forward, layer.mlp)
        for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm) if has_qk_norm else ():
            norm.forward = MethodType(_norm_forward, norm)
    share_input_gradients(model)
    model.fuses_loss = fuse_loss  # for a parallelised model's forward (engine.patches.llama_parallel)
    if fuse_loss:
        model.forward = MethodType(_forward_with_fused_loss, model)


def _replace_rotary_embedding(model: PreTrainedModel) -> None:
    """Replaces the function by which the attention of this architecture rotates queries and keys.

    It is a name in the module of transformers that defines the attention; Liger's own patches set
    it, too, but it has none for some versions of transformers.
    """
    from liger_kernel.transformers.rope import liger_rotary_pos_emb

    module: Any = sys.modules[type(model.model.layers[0].self_attn).__module__]
    assert hasattr(module, "apply_rotary_pos_emb"), "this version of transformers rotates otherwise"
    module.apply_rotary_pos_emb = liger_rotary_pos_emb


@through_torch_function
def fused_linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes `linear_cross_entropy` as an overridable function."""
    return linear_cross_entropy(hidden, weight, labels, positions)


def _norm_forward(self: torch.nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    return rms_norm(hidden_states, self.weight, eps=self.variance_epsilon)


def _layer_forward(self: Any, hidden_states: torch.Tensor, **settings: object) -> object:
    """Replaces a decoder layer's forward function; fuses the norms.

    `settings` are what transformers passes to the attention layer; 4.51 names, and asks for, more
    than 5, and takes a tuple from its layers, where 5 takes a tensor.
    """
    before, after = self.input_layernorm, self.post_attention_layernorm
    normed, hidden = rms_norm_with_residual(hidden_states, before.weight, eps=before.variance_epsilon)
    attended, weights = self.self_attn(hidden_states=normed, **settings)
    normed, hidden = add_rms_norm(attended, hidden, after.weight, eps=after.variance_epsilon)
    hidden = hidden + self.mlp(normed)
    if is_transformers_5():
        return hidden
    return (hidden, weights) if settings.get("output_attentions") else (hidden,)


def _mlp_forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """Replaces the SwiGLU's forward by Liger's SwiGLU, whose product is recomputable."""
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction, swiglu_forward

    gate, up = self.gate_proj(hidden_states), self.up_proj(hidden_states)
    product = LigerSiLUMulFunction.apply(gate, up)
    # Its backward pass overwrites both, but only after that of `down_proj`, which needs the
    # product.
    inputs = gate.detach(), up.detach()
    mark_recomputable(product, lambda: swiglu_forward(*inputs)[2])
    return self.down_proj(product)


def _forward_with_fused_loss(
    self: PreTrainedModel,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    target_positions: torch.Tensor | None = None,
    logit_positions: torch.Tensor | None = None,
    **settings: object,
) -> LossOutput:
    """Replaces the causal model's forward; computes the loss from the hidden states.

    `target_positions`, if given, are the positions in the flattened batch whose next token is a
    target, (targets,) int64. Without them the output layer computes all positions.
    `logit_positions` are those whose logits are returned where there are no labels.
    """
    outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **settings)
    hidden = outputs[0]
    if labels is None:
        return LossOutput(logits=self.lm_head(states_at(hidden, logit_positions)))
    shifted = next_token_labels(labels).reshape(-1)
    flat = hidden.reshape(-1, hidden.shape[-1])
    loss, token_losses = fused_linear_cross_entropy(flat, self.lm_head.weight, shifted, target_positions)
    return LossOutput(loss=loss, token_losses=token_losses.view(labels.shape))
