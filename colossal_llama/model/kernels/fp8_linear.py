"""fp8 matrix products of the decoder layers' linear layers (`--fp8`).

Inputs and weights are quantized to e4m3, gradients to e5m2 (model.kernels.fp8_cast), with dynamic
per-tensor scaling: each scale comes from the tensor's amax in every call. They are multiplied at
twice the rate of bf16; accumulation is fp32, results have the dtype of the input. Weights,
optimizer states, attention, norms and the output layer are unchanged. The input is saved for the
backward pass in fp8, half of what it takes otherwise.

ColossalAI's own `use_fp8` cannot be used: in 0.5.0 it takes `[0]` of what `torch._scaled_mm`
returns, which has been the product itself since PyTorch 2.5, so it would be its first row.
"""

import importlib.util
from collections.abc import Callable
from types import MethodType

import torch
from torch import nn
from torch.nn.functional import ScalingType, scaled_mm
from transformers import PretrainedConfig, PreTrainedModel

from colossal_llama.model.kernels.fp8_cast import ALIGNMENT, E5M2, Quantized, amax, quantize
from colossal_llama.model.kernels.grouped_linear import SharedInput, linear_groups
from colossal_llama.model.kernels.torch_function import through_torch_function
from colossal_llama.model.param_count import attention_widths

MIN_CAPABILITY = (8, 9)
"""Compute capability from which on NVIDIA's devices have fp8 matrix units: Ada and Hopper."""


def fp8_unavailable_reason(device: torch.device, config: PretrainedConfig) -> str | None:
    """Names the reason why a model cannot compute in fp8 on a device; None when it can."""
    if device.type != "cuda":
        return f"it needs a CUDA device, this is {device.type}"
    if torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} has no fp8 matrix units; Hopper and Ada have"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    widths = (config.hidden_size, config.intermediate_size, *attention_widths(config))
    unaligned = [size for size in widths if size % ALIGNMENT]
    if unaligned:
        return f"the model's widths must be multiples of {ALIGNMENT}, and it has {unaligned[0]}"
    return None


def use_fp8(model: PreTrainedModel) -> None:
    """Makes the linear layers of all decoder layers multiply in fp8, in place.

    Args:
        model: as `from_pretrained` gives it, before any plugin wraps it.
    """
    for layer in model.model.layers:
        for group in linear_groups(layer):
            shared = SharedInput(len(group))
            for index, linear in enumerate(group):
                linear.forward = MethodType(_forward_of(shared, index), linear)


def _forward_of(shared: SharedInput, index: int) -> Callable[[nn.Linear, torch.Tensor], torch.Tensor]:
    """Makes the forward function of layer `index` of a group."""

    def forward(self: nn.Linear, hidden_states: torch.Tensor) -> torch.Tensor:
        output = fp8_linear(hidden_states, self.weight, shared=shared, index=index)
        return output if self.bias is None else output + self.bias.to(output.dtype)

    return forward


@through_torch_function
def fp8_linear(hidden: torch.Tensor, weight: torch.Tensor, shared: SharedInput, index: int = 0) -> torch.Tensor:
    """Computes `hidden @ weight.T` in fp8.

    Args:
        hidden: (…, in), bf16 or fp16; under autocast anything.
        weight: (out, in), in the same dtype.
        shared: of the group of layers that read the same input.
        index: of the layer in that group.

    Returns:
        (…, out), in the dtype of the input.
    """
    dtype = hidden.dtype
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        weight = weight.to(dtype)
    for_backward = torch.is_grad_enabled() and weight.requires_grad
    quantized = shared.result(index, hidden, lambda: _quantize_input(hidden, for_backward), key=for_backward)
    return _Fp8Linear.apply(hidden, weight, quantized, dtype)


def _quantize_input(hidden: torch.Tensor, for_backward: bool) -> Quantized:
    """Quantizes an input (…, width) as (tokens, width); also transposed for a backward pass."""
    flat = hidden.detach().reshape(-1, hidden.shape[-1]).contiguous()
    return quantize(flat, amax(flat), transposed=for_backward)


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, quantized, dtype):
        """Computes the product, (…, out) in `dtype`; `quantized` is the input in fp8."""
        weight_amax = amax(weight)
        quantized_weight = quantize(weight, weight_amax, transposed=False)
        tokens = hidden.numel() // hidden.shape[-1]
        output = _product(
            quantized.rows,
            quantized.scale,
            quantized_weight.rows,
            quantized_weight.scale,
            dtype,
            fast_accumulation=True,
        )
        # Through save_for_backward, so that gradient checkpointing can drop and recompute them.
        ctx.save_for_backward(weight, weight_amax, quantized.transposed, quantized.scale)
        ctx.input_dtype, ctx.shape = hidden.dtype, hidden.shape
        return output[:tokens].view(*hidden.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx, gradient):
        """Computes the gradients of input and weight, each only where it is needed.

        The weight is quantized anew, since saving it would take memory.
        """
        weight, weight_amax, input_transposed, input_scale = ctx.saved_tensors
        needs_input, needs_weight, *_ = ctx.needs_input_grad
        flat = gradient.reshape(-1, gradient.shape[-1]).contiguous()
        quantized = quantize(flat, amax(flat), E5M2, rows=needs_input, transposed=needs_weight)
        input_gradient = weight_gradient = None
        if needs_input:
            quantized_weight = quantize(weight.contiguous(), weight_amax, rows=False)
            input_gradient = _product(
                quantized.rows, quantized.scale, quantized_weight.transposed, quantized_weight.scale, flat.dtype
            )
            input_gradient = input_gradient[: flat.shape[0]].view(ctx.shape).to(ctx.input_dtype)
        if needs_weight:
            weight_gradient = _product(
                quantized.transposed, quantized.scale, input_transposed, input_scale, weight.dtype
            )
        return input_gradient, weight_gradient, None, None


def _product(
    left: torch.Tensor | None,
    left_scale: torch.Tensor,
    right_transposed: torch.Tensor | None,
    right_scale: torch.Tensor,
    dtype: torch.dtype,
    fast_accumulation: bool = False,
) -> torch.Tensor:
    """Multiplies left (m, k) by the transpose of right_transposed (n, k).

    `fast_accumulation` is a little less exact, which the forward pass can bear.
    """
    assert left is not None, "quantize was asked for this layout"
    assert right_transposed is not None, "quantize was asked for this layout"
    return scaled_mm(
        left,
        right_transposed.t(),
        left_scale,
        ScalingType.TensorWise,
        right_scale,
        ScalingType.TensorWise,
        output_dtype=dtype,
        use_fast_accum=fast_accumulation,
    )
