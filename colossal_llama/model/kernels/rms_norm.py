"""RMSNorm in fp32 as LLaMA computes it, fused with the residual stream, by Liger's Triton kernels.

    hidden ──┬────────────────────────────► hidden      `rms_norm_with_residual`
             └─► norm ─► result

    added ───┐
    hidden ──┴─► + ──┬────────────────────► total       `add_rms_norm`
                     └─► norm ─► result

The norm's backward adds the gradients of both outputs, and its forward computes the sum. Autograd
would add the two gradients in a pass of its own: 6.2 ms of a step of 452 (1.25 B, 8 rows of 4,096
tokens, H200).

Kernels of our own, two more programs of 100 lines, were deleted: they were only 0.7 % of a step
faster at 1.25 B and 0.2 % at 7 B (docs/measurements.md).
"""

import inspect
from collections.abc import Callable
from functools import partial

import torch

from colossal_llama.model.activation_checkpointing import mark_recomputable
from colossal_llama.model.kernels.torch_function import through_torch_function

_SETTINGS = (0.0, "llama")
"""Liger's offset of the weight, and its casting mode: fp32 for the mean square alone."""

_STAGES = 2
"""Pipeline stages of Liger's fused kernels on NVIDIA GPUs."""


@through_torch_function
def rms_norm(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Computes `weight * hidden / rms(hidden)` over the last dimension.

    Args:
        hidden: (…, width), any floating dtype, on a CUDA device.
        weight: (width,).
        eps: added to the mean square.
    """
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    return LigerRMSNormFunction.apply(hidden, weight, eps, *_SETTINGS, False)


@through_torch_function
def rms_norm_with_residual(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns `(rms_norm(hidden), hidden)`; the second replaces `hidden` from then on."""
    result, hidden = _NormWithResidual.apply(hidden, weight, eps)
    mark_recomputable(result, partial(_recompute_norm, hidden.detach(), weight.detach(), eps))
    return result, hidden


@through_torch_function
def add_rms_norm(
    added: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns `(rms_norm(hidden + added), hidden + added)`, the sum in the dtype of `hidden`."""
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction

    # Under autocast (`ddp`) the residual stream is fp32; Liger takes the dtype of `added`.
    added = added.to(hidden.dtype)
    result, total = LigerFusedAddRMSNormFunction.apply(added, hidden, weight, eps, *_SETTINGS, False)
    mark_recomputable(result, partial(_recompute_norm, total.detach(), weight.detach(), eps))
    return result, total


def _recompute_norm(total: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    from liger_kernel.ops.rms_norm import rms_norm_forward

    return rms_norm_forward(total, weight, eps, *_SETTINGS, None)[0]


def _backward_settings(kernel: Callable) -> dict[str, object]:
    """Returns the last arguments of Liger's backward kernel: 0.8 also takes the pipeline stages."""
    stages = {"num_stages": _STAGES} if "num_stages" in inspect.signature(kernel).parameters else {}
    return {"in_place": False, **stages}


class _NormWithResidual(torch.autograd.Function):
    """Joins the forward kernel of Liger's norm to the backward kernel of its fused addition."""

    @staticmethod
    def forward(ctx, hidden, weight, eps):
        """Computes the norm; passes `hidden` on, so that the backward pass adds its gradient."""
        from liger_kernel.ops.rms_norm import rms_norm_forward

        contiguous = hidden.contiguous()
        result, _, inverse_rms, block, warps, casting_mode = rms_norm_forward(contiguous, weight, eps, *_SETTINGS, None)
        ctx.save_for_backward(contiguous, weight, inverse_rms)
        ctx.settings = (_SETTINGS[0], casting_mode, block, warps)
        return result, hidden.view_as(hidden)

    @staticmethod
    def backward(ctx, gradient, residual_gradient):
        """Adds the residual stream's gradient to that of the norm's input, in one kernel."""
        from liger_kernel.ops.fused_add_rms_norm import fused_add_rms_norm_backward as kernel

        gradients = gradient.contiguous(), residual_gradient.contiguous()
        hidden_gradient, _, weight_gradient = kernel(
            *gradients, *ctx.saved_tensors, *ctx.settings, **_backward_settings(kernel)
        )
        return hidden_gradient, weight_gradient, None
