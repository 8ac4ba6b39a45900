"""Compares Triton kernels with plain PyTorch on a host without GPU, under TRITON_INTERPRET=1."""

import gc
import itertools
import math
import weakref
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import triton
import triton.language as tl
from liger_kernel.ops import fused_add_rms_norm as liger_fused_add_rms_norm
from liger_kernel.ops import rms_norm as liger_rms_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import PretrainedConfig, PreTrainedModel
from triton.runtime import interpreter

from colossal_llama.model.activation_checkpointing import recompute_layers
from colossal_llama.model.architectures import ARCHITECTURES, architecture_of
from colossal_llama.model.attention.document_mask import encode_document_mask
from colossal_llama.model.attention.varlen import SDPA
from colossal_llama.model.kernels import eight_bit_moments, rms_norm
from colossal_llama.model.kernels.adamw import adamw_fused, adamw_reference, step_scalars
from colossal_llama.model.kernels.apply import use_fused_kernels
from colossal_llama.model.kernels.low_precision_adamw import Noise, low_precision_adamw
from colossal_llama.model.loading import model_class
from colossal_llama.training.memory.estimate import activation_bytes_per_layer

ROWS, WIDTH = 7, 48  # a width that is no power of two
LENGTH = 9
SHAPE = {
    "vocab_size": 50,
    "hidden_size": WIDTH,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "sliding_window": 4,  # shorter than the documents
}
CONFIGS = [model_class(architecture).config_class(**SHAPE) for architecture in ARCHITECTURES]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations within it create, until they are freed."""

    def __init__(self):
        super().__init__()
        self.live, self._sizes = 0, {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:  # once, however many tensors share it
            self._sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def main() -> None:
    """Norms, a whole model, selective recomputation, and the update."""
    liger_rms_norm.rsqrt = liger_fused_add_rms_norm.rsqrt = rsqrt
    interpreter._implicit_cvt = partial(as_compiled, interpreter._implicit_cvt)
    for check in (norms, model, selective_recomputation, update, low_precision_update):
        check()
        print(f"{check.__name__}: equal", flush=True)


def as_compiled(convert: Callable, argument: object) -> object:
    """Makes a kernel's argument of type float a value in fp32, as the compiler does.

    The interpreter hands floats on as Python's, whose `.to` Liger 0.8 calls.
    """
    if isinstance(argument, float):
        return tl.tensor(interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32), tl.float32)
    return convert(argument)


@triton.jit
def rsqrt(value):
    """Stands in for libdevice's function, which the interpreter lacks."""
    return tl.rsqrt(value)


def plain_norm(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return weight * hidden * torch.rsqrt(hidden.square().mean(dim=-1, keepdim=True) + 1e-6)


def norms() -> None:
    """Results and gradients of the three forms; the residual stream is read on its own, too."""
    torch.manual_seed(0)
    tensors = [torch.randn(1, ROWS, WIDTH), torch.randn(1, ROWS, WIDTH), torch.randn(WIDTH)]
    factors = torch.randn(2, 1, ROWS, WIDTH)

    def fused(added, hidden, weight):
        first, hidden = rms_norm.rms_norm_with_residual(hidden, weight, eps=1e-6)
        second, total = rms_norm.add_rms_norm(added, hidden, weight, eps=1e-6)
        return rms_norm.rms_norm(first + second * factors[0], weight, eps=1e-6) + total * factors[1]

    def plain(added, hidden, weight):
        first, total = plain_norm(hidden, weight), hidden + added
        return plain_norm(first + plain_norm(total, weight) * factors[0], weight) + total * factors[1]

    results = []
    for function in (fused, plain):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        result = function(*leaves)
        result.square().sum().backward()
        results.append([result.detach(), *(leaf.grad for leaf in leaves)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def model() -> None:
    """Logits and gradients of models with all fused kernels, their first layer recomputed."""
    for config in CONFIGS:
        plain = computed(config, False, recomputed=1, selective=False)[0]
        fused = computed(config, True, recomputed=1, selective=False)[0]
        for mine, theirs in zip(fused, plain, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5, msg=config.model_type)


def selective_recomputation() -> None:
    """Selective recomputation: the same bits, and as many bytes less as the estimate predicts.

    Nothing is left alive of a forward pass that no backward pass follows.
    """
    cases = itertools.product(CONFIGS[:1], (0, 1), (torch.float32, torch.float16))
    for config, recomputed, dtype in (*cases, *((config, 0, torch.float32) for config in CONFIGS[1:])):
        (plain, plain_bytes), (selective, selective_bytes) = (
            computed(config, True, recomputed, selective, dtype) for selective in (False, True)
        )
        for mine, theirs in zip(selective, plain, strict=True):
            assert torch.equal(mine, theirs)
        sizes = activation_bytes_per_layer(config, 2 * LENGTH, fused_kernels=True, value_bytes=dtype.itemsize)
        layers = config.num_hidden_layers - recomputed
        assert plain_bytes - selective_bytes == layers * (sizes[0] - sizes[1]) > 0, (plain_bytes, selective_bytes)
    left_bytes = [bytes_alive_after(selective) for selective in (False, True)]
    assert left_bytes[0] == left_bytes[1], left_bytes


def computed(
    config: PretrainedConfig, fused: bool, recomputed: int, selective: bool, dtype: torch.dtype = torch.float32
) -> tuple[list[torch.Tensor], int]:
    """Logits and gradients of a model, and the bytes alive between forward and backward."""
    network, counter = network_of(config, fused, recomputed, selective, dtype), LiveBytes()
    logits = logits_of(network, counter)
    between = counter.live
    logits.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    return [logits.detach(), *(parameter.grad for parameter in network.parameters())], between


def bytes_alive_after(selective: bool) -> int:
    """Bytes alive when a forward pass is over and its result forgotten."""
    network, counter = network_of(CONFIGS[0], True, 0, selective, torch.float32), LiveBytes()
    logits_of(network, counter)
    gc.collect()
    return counter.live


def network_of(
    config: PretrainedConfig, fused: bool, recomputed: int, selective: bool, dtype: torch.dtype
) -> PreTrainedModel:
    torch.manual_seed(0)
    network = model_class(architecture_of(config))(config).train().to(dtype)
    network.config._attn_implementation = SDPA
    if fused:
        use_fused_kernels(network, fuse_loss=False)
    recompute_layers(network, recomputed, reentrant=False, selective=selective)
    return network


def logits_of(network: PreTrainedModel, counter: LiveBytes) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 50, (2, LENGTH), generator=generator)
    settings = {"attention_mask": encode_document_mask([[4, 5], [9]], LENGTH), "use_cache": False}
    with counter:
        logits = network(input_ids=ids, position_ids=torch.arange(LENGTH).repeat(2, 1), **settings).logits
    gc.collect()  # Triton's interpreter leaves cycles that hold a kernel's arguments
    return logits


def update() -> None:
    """The AdamW kernel against its reference, also in a non-finite step, which changes nothing."""
    for factor in (0.5, math.nan):
        torch.manual_seed(0)
        tensors = [torch.randn(1500), torch.randn(1500), torch.randn(1500), torch.rand(1500)]
        tensors.append(tensors[0].clone())
        scalars = torch.tensor([1e-2, 0.1, 0.05, factor])
        expected = [tensor.clone() for tensor in tensors]
        adamw_reference((*expected, scalars), (0.9, 0.95, 1e-8, 0.1))
        adamw_fused((*tensors, scalars), (0.9, 0.95, 1e-8, 0.1))
        for mine, theirs in zip(tensors, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def low_precision_update() -> None:
    """The kernels for states in 16 and 8 bits, bit for bit, on a range and on everything."""
    for eight_bit, elements, factor in itertools.product((False, True), (None, slice(300, 2111)), (0.5, math.nan)):
        results = []
        for fused in (False, True):
            generator = torch.Generator().manual_seed(3)
            weight = torch.randn(3000, generator=generator).bfloat16()
            states = {name: torch.zeros(3000).bfloat16() for name in ("exp_avg", "exp_avg_sq")}
            if eight_bit:
                states = eight_bit_moments.zeros(3000, torch.device("cpu"))
            for step in range(1, 5):
                gradient = (torch.randn(3000, generator=generator) * torch.logspace(-6, 2, 3000)).bfloat16()
                scalars = step_scalars(1e-2, 0.9, 0.95, step, factor if step == 4 else 0.5)
                chance, hyper = Noise(12345 + step, 2**32 - 100), (0.9, 0.95, 1e-8, 0.1)
                low_precision_adamw(weight, gradient, states, elements, scalars, chance, hyper, fused)
            results.append([weight, *states.values()])
        for mine, theirs in zip(*results, strict=True):
            assert torch.equal(mine, theirs)


if __name__ == "__main__":
    main()
