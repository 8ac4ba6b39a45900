"""Custom functions that take part in PyTorch's `__torch_function__` protocol."""

import functools
from collections.abc import Callable

import torch
from torch.overrides import handle_torch_function, has_torch_function


def through_torch_function(function: Callable) -> Callable:
    """Makes a function of parameters overridable by `__torch_function__`, as PyTorch's own are.

    Gemini keeps parameters in chunks and learns from that protocol which are about to be used. A
    custom autograd function called directly would find their memory empty
    (https://pytorch.org/docs/stable/notes/extending.html#extending-torch).
    """

    @functools.wraps(function)
    def wrapped(*tensors: torch.Tensor, **settings: object) -> torch.Tensor:
        if has_torch_function(tensors):
            return handle_torch_function(wrapped, tensors, *tensors, **settings)
        return function(*tensors, **settings)

    return wrapped
