"""Fused kernels that need no compiler at hand: Liger's Triton kernels (https://github.com/linkedin/Liger-Kernel).

Root-mean-square norm, rotary embedding, SwiGLU, and a cross-entropy that never builds the logits (at a vocabulary of 69,104
the logits of 32,768 tokens are 4.5 GB in bf16, and their gradient as much again).
"""

import importlib.util

import torch
from transformers import LlamaForCausalLM


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
            tensor parallelism splits it, so it must be off there.
    """
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    apply_liger_kernel_to_llama(model=model, fused_linear_cross_entropy=fuse_loss)
