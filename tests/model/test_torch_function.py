"""A custom function announces a plugin's parameters, as PyTorch's own functions do."""

import torch
from colossalai.tensor.colo_parameter import ColoParameter
from colossalai.tensor.param_op_hook import ColoParamOpHook, ColoParamOpHookManager

from colossal_llama.model.kernels.apply import fused_kernels_unavailable_reason
from colossal_llama.model.kernels.torch_function import through_torch_function


class Recorder(ColoParamOpHook):
    """Notes what Gemini would be told."""

    def __init__(self):
        self.events = []

    def pre_forward(self, params):
        self.events.append("pre_forward")

    def post_forward(self, params):
        self.events.append("post_forward")

    def pre_backward(self, params):
        self.events.append("pre_backward")

    def post_backward(self, params):
        self.events.append("post_backward")


class Scaling(torch.autograd.Function):
    """A custom autograd function, as the fused kernels are: PyTorch announces no arguments."""

    @staticmethod
    def forward(ctx, hidden, weight):
        ctx.save_for_backward(hidden, weight)
        with torch._C.DisableTorchFunctionSubclass():  # a Triton kernel works on memory, not with PyTorch's functions
            return hidden * weight

    @staticmethod
    def backward(ctx, gradient):
        hidden, weight = ctx.saved_tensors
        with torch._C.DisableTorchFunctionSubclass():
            return gradient * weight, gradient * hidden


def apply(hidden, weight, factor=1.0):
    return Scaling.apply(hidden, weight) * factor


def test_a_custom_function_announces_its_parameters():
    hidden, weight = torch.randn(3, 4, requires_grad=True), ColoParameter(torch.randn(4))
    recorder = Recorder()
    with ColoParamOpHookManager.use_hooks(recorder):
        through_torch_function(apply)(hidden, weight, factor=2.0).sum().backward()
    assert recorder.events == ["pre_forward", "post_forward", "pre_backward", "post_backward"]
    torch.testing.assert_close(weight.grad, 2.0 * hidden.sum(0).detach())


def test_without_the_protocol_nothing_is_announced():
    """Fails when PyTorch announces custom functions: then `through_torch_function` can go."""
    recorder = Recorder()
    with ColoParamOpHookManager.use_hooks(recorder):
        Scaling.apply(torch.randn(3, 4, requires_grad=True), ColoParameter(torch.randn(4))).sum().backward()
    assert recorder.events == []


def test_plain_tensors_pass_straight_through():
    hidden, weight = torch.randn(3, 4), torch.randn(4)
    torch.testing.assert_close(through_torch_function(apply)(hidden, weight), hidden * weight)


def test_a_cpu_has_no_fused_kernels():
    assert "cpu" in fused_kernels_unavailable_reason(torch.device("cpu"))
