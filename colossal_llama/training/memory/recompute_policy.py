"""Recomputation policy: recomputes as little as fits the device's memory, by the memory estimate.

Nothing where a step fits; else norms and SwiGLU (model.activation_checkpointing); else also whole
layers, as few as possible. `--recompute_layers` sets the number of layers; then only the selective
recomputation is chosen.
"""

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from transformers import PretrainedConfig

from colossal_llama.training.arguments import TrainingArguments
from colossal_llama.training.memory.config import MemoryConfig, memory_config_of
from colossal_llama.training.memory.estimate import estimate

MARGIN = 0.03
"""Share of the device's memory left free in addition to `estimate.ALLOWANCE_BYTES`.

The estimate was within 1 % of the allocated peak on an H200 (58.3 and 134.2 GiB); the allocator
reserved up to 2.8 GiB more."""


@dataclass(frozen=True)
class Recomputation:
    """Activations that the backward pass recomputes."""

    layers: int
    """Number of layers that are recomputed whole, the first ones."""
    selective: bool
    """True when the other layers recompute norms and SwiGLU."""

    def describe(self, num_layers: int) -> str:
        """Describes the choice: "6 of 32 layers are recomputed, of the others norms and SwiGLU"."""
        others = ", of the others norms and SwiGLU" if self.selective and self.layers < num_layers else ""
        return f"{self.layers} of {num_layers} layers are recomputed{others}"


def minimal_recomputation(config: PretrainedConfig, settings: MemoryConfig, device_bytes: int) -> MemoryConfig:
    """Replaces `recomputed_layers` and `selective` by the least recomputation that fits.

    Every layer is recomputed when nothing fits, and in a pipeline.

    Args:
        config: the model's.
        settings: `selective` is True where selective recomputation is possible.
        device_bytes: memory available to this process on its device.
    """
    num_layers, requested = config.num_hidden_layers, settings.requested_layers
    candidates = range(num_layers) if requested is None else (min(num_layers, requested),)
    everything = replace(settings, recomputed_layers=num_layers if requested is None else candidates[0])
    if settings.pipeline_stages > 1:  # the first layers are on the first stage, and the estimate is of one stage
        return everything
    usable_bytes = int(device_bytes * (1.0 - MARGIN))
    choices = (
        replace(settings, recomputed_layers=layers, selective=selective)
        for layers in candidates
        for selective in dict.fromkeys((False, settings.selective))
    )
    return next((choice for choice in choices if estimate(config, choice).fits(usable_bytes)), everything)


def choose_recomputation(
    arguments: TrainingArguments,
    config: PretrainedConfig,
    device: torch.device,
    data_parallel_size: int,
    fused_kernels: bool,
) -> Recomputation:
    """Chooses the recomputation of `--use_grad_checkpoint`; on a GPU a collective.

    The number of layers is the requested one, else the smallest that fits on a GPU and all on a
    CPU. It is the same on every rank: with tensor parallelism, recomputation communicates too.

    Args:
        arguments: of the run.
        config: the model's.
        device: of this process.
        data_parallel_size: ranks that see different rows.
        fused_kernels: True when the run uses them.
    """
    settings = memory_config_of(arguments, config, data_parallel_size, fused_kernels, flash_attention=True)
    if device.type != "cuda":
        return Recomputation(settings.recomputed_layers, selective=False)
    free_bytes, _ = torch.cuda.mem_get_info(device)
    available_bytes = free_bytes + torch.cuda.memory_reserved(device)
    least = minimal_recomputation(config, settings, available_bytes)
    chosen = torch.tensor([least.recomputed_layers, least.selective], device=device)
    dist.all_reduce(chosen, op=dist.ReduceOp.MAX)
    layers, selective = chosen.tolist()
    return Recomputation(layers, bool(selective))
