"""Kernel extensions: PyTorch's fused AdamW in place of the Adam kernels of ColossalAI.

Those are compiled by nvcc on first use (about 100 s, and a CUDA toolkit).
"""

import importlib.util

import torch

from colossal_llama.model.kernels.adamw import adamw, step_scalars


class _Kernel:
    """Interface that ColossalAI's kernel loaders require, for a kernel that every PyTorch has."""

    priority = 100

    def is_available(self) -> bool:
        return True

    def assert_compatible(self) -> None:
        """Nothing to check."""

    def load(self) -> "_Kernel":
        return self


class TorchCpuAdam(_Kernel):
    """Extension for `CPUAdamLoader`: PyTorch's fused AdamW for CPU tensors.

    It needs no compiler and no CUDA toolkit.
    """

    name = "torch_cpu_adam"

    class CPUAdamOptimizer:
        """Optimizer that `HybridAdam` calls for CPU parameters; ColossalAI's signatures."""

        def __init__(self, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, adamw_mode: bool):
            self.adamw_mode = adamw_mode

        def step(
            self,
            step: int,
            lr: float,
            beta1: float,
            beta2: float,
            eps: float,
            weight_decay: float,
            bias_correction: bool,
            parameter: torch.Tensor,
            gradient: torch.Tensor,
            exp_avg: torch.Tensor,
            exp_avg_sq: torch.Tensor,
            div_scale: float,
        ) -> None:
            """Updates one tensor in place, its gradient divided by a positive `div_scale`."""
            hyper = (lr, beta1, beta2, eps, step, self.adamw_mode, bias_correction, weight_decay, div_scale)
            # Gemini's gradients are in fp16.
            fused_adam([gradient.to(parameter.dtype)], [parameter], [exp_avg], [exp_avg_sq], *hyper)


class TorchCudaAdam(_Kernel):
    """Extension for `FusedOptimizerLoader`: PyTorch's fused AdamW for CUDA tensors."""

    name = "torch_cuda_adam"

    @staticmethod
    def multi_tensor_adam(
        chunk_size: int,
        overflow_buffer: torch.Tensor,
        tensor_lists: list[list[torch.Tensor]],
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        step: int,
        adamw_mode: int,
        bias_correction: int,
        weight_decay: float,
        div_scale: float,
    ) -> None:
        """Updates lists of tensors in place; the signature is ColossalAI's.

        `tensor_lists` are gradients, parameters, first and second moments.
        """
        hyper = (lr, beta1, beta2, eps, step, adamw_mode, bias_correction, weight_decay, div_scale)
        update_tensors(tensor_lists, *hyper)


def update_tensors(
    tensor_lists: list[list[torch.Tensor]],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    adamw_mode: bool | int,
    bias_correction: bool | int,
    weight_decay: float,
    div_scale: float,
) -> None:
    """Updates lists of tensors of one device in place; the gradients may be in half precision.

    Args:
        tensor_lists: gradients, parameters, first and second moments.
        lr: this and the others as for `fused_adam`.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the denominator.
        step: from 1.
        adamw_mode: must be true.
        bias_correction: must be true.
        weight_decay: factor on the weights, times the learning rate.
        div_scale: gradients are divided by it when it is positive.
    """
    gradients, parameters, exp_avgs, exp_avg_sqs = tensor_lists
    hyper = (lr, beta1, beta2, eps, step, adamw_mode, bias_correction, weight_decay, div_scale)
    if all(gradient.dtype == parameter.dtype for gradient, parameter in zip(gradients, parameters, strict=True)):
        fused_adam(gradients, parameters, exp_avgs, exp_avg_sqs, *hyper)
        return
    # Gemini passes half-precision gradients for fp32 parameters.
    is_kernel_possible = parameters[0].is_cuda and importlib.util.find_spec("triton")
    if not (adamw_mode and bias_correction and is_kernel_possible):
        for lists in zip(gradients, parameters, exp_avgs, exp_avg_sqs, strict=True):  # only one fp32 copy at a time
            fused_adam([lists[0].to(lists[1].dtype)], [lists[1]], [lists[2]], [lists[3]], *hyper)
        return
    factor = 1.0 / div_scale if div_scale > 0 else 1.0
    changing = step_scalars(lr, beta1, beta2, step, factor, parameters[0].device)
    for gradient, parameter, exp_avg, exp_avg_sq in zip(gradients, parameters, exp_avgs, exp_avg_sqs, strict=True):
        adamw(parameter, gradient, exp_avg, exp_avg_sq, None, changing, beta1, beta2, eps, weight_decay)


def fused_adam(
    gradients: list[torch.Tensor],
    parameters: list[torch.Tensor],
    exp_avgs: list[torch.Tensor],
    exp_avg_sqs: list[torch.Tensor],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: float,
    adamw_mode: bool | int,
    bias_correction: bool | int,
    weight_decay: float,
    div_scale: float,
) -> None:
    """Updates lists of tensors of one device and dtype in place, by PyTorch's fused AdamW kernel.

    Args:
        gradients: of the parameters.
        parameters: updated.
        exp_avgs: first moments; updated.
        exp_avg_sqs: second moments; updated.
        lr: learning rate; this and the next four as in arXiv 1711.05101.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the denominator.
        step: from 1.
        adamw_mode: must be true.
        bias_correction: must be true.
        weight_decay: factor on the weights, times the learning rate.
        div_scale: gradients are divided by it when it is positive.

    Raises:
        NotImplementedError: another variant of Adam is requested.
    """
    if not adamw_mode or not bias_correction:
        raise NotImplementedError("only AdamW with bias correction is implemented")
    device = parameters[0].device
    step_tensor = torch.full((), float(step), dtype=torch.float32, device=device)
    scale = torch.full((), div_scale, dtype=torch.float32, device=device) if div_scale > 0 else None
    torch._fused_adamw_(
        parameters,
        gradients,
        exp_avgs,
        exp_avg_sqs,
        [],
        [step_tensor] * len(parameters),
        amsgrad=False,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
        grad_scale=scale,
    )
