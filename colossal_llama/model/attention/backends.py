"""Backends of PyTorch's `scaled_dot_product_attention`, in the order in which they are taken."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""For shapes that recur: cuDNN's is the fastest on Hopper."""
BACKENDS_WITHOUT_PLANS = BACKENDS[1:]
"""For varying lengths, for each of which cuDNN builds a new execution plan. On an H200 with
PyTorch's own choice, steps of 190 M parameters on real rows took 1.8 s at first. They took 0.7 s
after 200 steps, when most lengths had been seen, and 0.3 s in a process that had seen all."""


@contextmanager
def attention_without_plans() -> Iterator[None]:
    """Context, or decorator, for texts of varying lengths; not for several threads at once.

    The choice is the process's: of two threads the last to leave would restore the other's.
    """
    with sdpa_kernel(BACKENDS_WITHOUT_PLANS, set_priority=True):
        yield
