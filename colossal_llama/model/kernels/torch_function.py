"""Functions of parameters that take part in PyTorch's `__torch_function__` protocol."""

import functools
from collections.abc import Callable

import torch
from torch.overrides import handle_torch_function, has_torch_function


def through_torch_function(function: Callable) -> Callable:
    """Lets a function of parameters take part in the protocol, as PyTorch's own functions do.

    Gemini keeps parameters apart in chunks and learns from that protocol which are about to be
    used; a custom autograd function called directly would find their memory empty
    (https://pytorch.org/docs/stable/notes/extending.html#extending-torch).
    """

    @functools.wraps(function)
    def wrapped(*tensors: torch.Tensor, **settings: object) -> torch.Tensor:
        if has_torch_function(tensors):
            return handle_torch_function(wrapped, tensors, *tensors, **settings)
        return function(*tensors, **settings)

    return wrapped
