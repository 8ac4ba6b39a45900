"""Matrix products of the decoder layers in 8-bit floating point (`--fp8`).

Inputs and weights are rounded to e4m3, gradients to e5m2 (model.kernels.fp8_cast), each with a
scale found anew in every call, and multiplied at twice the rate of bf16; sums are fp32, results
have the dtype of the input. Weights, optimizer states, attention, norms and the output layer stay
as they were. The input is kept for the backward pass in 8 bits, half of what it takes otherwise.

ColossalAI's own `use_fp8` cannot be used: in 0.5.0 it takes `[0]` of what `torch._scaled_mm`
returns, which has been the product itself since PyTorch 2.5, so it would be its first row.
"""

import importlib.util
from collections.abc import Callable
from types import MethodType

import torch
from torch import nn
from torch.nn.functional import ScalingType, scaled_mm
from transformers import LlamaForCausalLM, PretrainedConfig

from colossal_llama.model.kernels.fp8_cast import GRADIENTS, MULTIPLE, Rounded, largest_magnitude, rounded
from colossal_llama.model.kernels.torch_function import through_torch_function

ABLE = (8, 9)
"""Compute capability from which on NVIDIA's devices multiply in 8 bits: Ada and Hopper."""


def why_no_fp8(device: torch.device, config: PretrainedConfig) -> str | None:
    """The reason why a model's products cannot be computed in 8 bits on a device, or None when they can."""
    if device.type != "cuda":
        return f"it needs a CUDA device, this is {device.type}"
    if torch.cuda.get_device_capability(device) < ABLE:
        return f"{torch.cuda.get_device_name(device)} has no 8-bit matrix units; Hopper and Ada have"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    odd = [size for size in (config.hidden_size, config.intermediate_size) if size % MULTIPLE]
    if odd:
        return f"the model's widths must be multiples of {MULTIPLE}, and it has {odd[0]}"
    return None


def use_fp8(model: LlamaForCausalLM) -> None:
    """Lets the linear layers of all decoder layers multiply in 8 bits, in place.

    Args:
        model: as `from_pretrained` gives it, before any plugin wraps it.
    """
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for group in (
            (attention.q_proj, attention.k_proj, attention.v_proj),
            (attention.o_proj,),
            (mlp.gate_proj, mlp.up_proj),
            (mlp.down_proj,),
        ):
            shared = SharedInput(len(group))
            for linear in group:
                linear.forward = MethodType(_forward_of(shared), linear)


class SharedInput:
    """Rounds the input of layers that all read the same once instead of once a layer."""

    def __init__(self, layers: int):
        self._layers = layers
        self._forget()

    def rounded(self, tensor: torch.Tensor, for_backward: bool) -> Rounded:
        """The tensor (…, width), flattened to (tokens, width), in 8 bits; transposed as well where a backward pass will follow."""
        # By its memory: Gemini hands each layer a tensor object of its own.
        is_known = self._tensor is not None and tensor.is_set_to(self._tensor)
        if not is_known or self._for_backward != for_backward:
            flat = tensor.detach().reshape(-1, tensor.shape[-1]).contiguous()
            self._result = rounded(flat, largest_magnitude(flat), transposed=for_backward)
            self._tensor, self._for_backward, self._used = tensor, for_backward, 0
        result = self._result
        self._used += 1
        if self._used == self._layers:
            self._forget()
        return result

    def _forget(self) -> None:
        """Lets go of a tensor that all layers have read, or its memory would be held to the next call."""
        self._tensor: torch.Tensor | None = None
        self._result: Rounded | None = None
        self._for_backward, self._used = False, 0


def _forward_of(shared: SharedInput) -> Callable[[nn.Linear, torch.Tensor], torch.Tensor]:
    def forward(self: nn.Linear, hidden_states: torch.Tensor) -> torch.Tensor:
        output = fp8_linear(hidden_states, self.weight, shared=shared)
        return output if self.bias is None else output + self.bias.to(output.dtype)

    return forward


@through_torch_function
def fp8_linear(hidden: torch.Tensor, weight: torch.Tensor, shared: SharedInput) -> torch.Tensor:
    """`hidden @ weight.T` in 8 bits.

    Args:
        hidden: (…, in), bf16 or fp16; under autocast anything.
        weight: (out, in), in the same dtype.
        shared: of the layers that read the same input.

    Returns:
        (…, out), in the dtype of the input.
    """
    dtype = hidden.dtype
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        weight = weight.to(dtype)
    for_backward = torch.is_grad_enabled() and weight.requires_grad
    return _Fp8Linear.apply(hidden, weight, shared.rounded(hidden, for_backward), dtype)


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, small, dtype):
        """The product, (…, out) in `dtype`; `small` is the input, rounded already."""
        largest = largest_magnitude(weight)
        small_weight = rounded(weight, largest, transposed=False)
        tokens = hidden.numel() // hidden.shape[-1]
        output = _product(small.rows, small.scale, small_weight.rows, small_weight.scale, dtype, fast=True)
        # Through save_for_backward, which lets gradient checkpointing drop them and make them
        # again.
        ctx.save_for_backward(weight, largest, small.transposed, small.scale)
        ctx.input_dtype, ctx.shape = hidden.dtype, hidden.shape
        return output[:tokens].view(*hidden.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx, gradient):
        """Gradients of input and weight, each only where it is wanted; the weight is rounded anew, since keeping it would take memory."""
        weight, largest, input_transposed, input_scale = ctx.saved_tensors
        wants_input, wants_weight, *_ = ctx.needs_input_grad
        flat = gradient.reshape(-1, gradient.shape[-1]).contiguous()
        small = rounded(flat, largest_magnitude(flat), GRADIENTS, rows=wants_input, transposed=wants_weight)
        input_gradient = weight_gradient = None
        if wants_input:
            small_weight = rounded(weight.contiguous(), largest, rows=False)
            input_gradient = _product(small.rows, small.scale, small_weight.transposed, small_weight.scale, flat.dtype)
            input_gradient = input_gradient[: flat.shape[0]].view(ctx.shape).to(ctx.input_dtype)
        if wants_weight:
            weight_gradient = _product(small.transposed, small.scale, input_transposed, input_scale, weight.dtype)
        return input_gradient, weight_gradient, None, None


def _product(
    left: torch.Tensor,
    left_scale: torch.Tensor,
    right_transposed: torch.Tensor,
    right_scale: torch.Tensor,
    dtype: torch.dtype,
    fast: bool = False,
) -> torch.Tensor:
    """Left (m, k) times the transpose of right_transposed (n, k); `fast` sums a little less exactly, which the forward pass can bear."""
    return scaled_mm(
        left,
        right_transposed.t(),
        left_scale,
        ScalingType.TensorWise,
        right_scale,
        ScalingType.TensorWise,
        output_dtype=dtype,
        use_fast_accum=fast,
    )
