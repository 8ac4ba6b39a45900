"""Recomputation policy: recomputes as little as the device's memory demands, by the memory estimate.

Nothing where a step fits; else first norms and SwiGLU (model.selective_recomputation), then whole
layers, as few as it takes. With `--recompute_layers` only the former is chosen.
"""

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from transformers import PretrainedConfig

from colossal_llama.model.kernels.apply import fused_kernels_unavailable_reason
from colossal_llama.training.arguments import TrainingArguments
from colossal_llama.training.memory.config import MemoryConfig, memory_config_of
from colossal_llama.training.memory.estimate import estimate

MARGIN = 0.03
"""Share of the device left free beside `estimate.ALLOWANCE_BYTES`. The estimate was within 1 % of the
allocated peak on an H200 (58.3 and 134.2 GiB); the allocator held up to 2.8 GiB beyond that."""


@dataclass(frozen=True)
class Recomputation:
    """Activations that the backward pass recomputes."""

    layers: int
    """Number of layers recomputed whole, the first ones."""
    selective: bool
    """True when the other layers recompute norms and SwiGLU."""

    def describe(self, num_layers: int) -> str:
        """Sentence of the start-up report: "6 of 32 layers are recomputed, of the others norms …"."""
        others = ", of the others norms and SwiGLU" if self.selective and self.layers < num_layers else ""
        return f"{self.layers} of {num_layers} layers are recomputed{others}"


def minimal_recomputation(config: PretrainedConfig, setup: MemoryConfig, device_bytes: int) -> MemoryConfig:
    """Configuration with as little recomputation as a step that fits allows.

    Everything is recomputed when nothing fits, and in a pipeline.

    Args:
        config: the model's.
        setup: plugin, ranks, batch; `selective` where the layers can be, `requested_layers` of the
            user; its `recomputed_layers` is replaced.
        device_bytes: memory that this process can have on its device.
    """
    num_layers, requested = config.num_hidden_layers, setup.requested_layers
    candidates = range(num_layers) if requested is None else (min(num_layers, requested),)
    everything = replace(setup, recomputed_layers=num_layers if requested is None else candidates[0])
    if setup.pipeline_stages > 1:  # the first layers are the first stage's; the estimate does not look at the others
        return everything
    usable_bytes = int(device_bytes * (1.0 - MARGIN))
    ways = dict.fromkeys((False, setup.selective))
    configs = (replace(setup, recomputed_layers=layers, selective=way) for layers in candidates for way in ways)
    return next((found for found in configs if estimate(config, found).fits(usable_bytes)), everything)


def choose_recomputation(
    arguments: TrainingArguments, config: PretrainedConfig, device: torch.device, data_parallel_size: int
) -> Recomputation:
    """Chooses what `--use_grad_checkpoint` recomputes; on a GPU a collective.

    As many layers as were asked for, else the fewest on a GPU, all on a CPU. The same on every rank,
    since tensor parallelism communicates in a recomputation too.
    """
    fused = arguments.model.fused_kernels and fused_kernels_unavailable_reason(device) is None
    setup = memory_config_of(arguments, config, data_parallel_size, fused, flash_attention=True)
    if device.type != "cuda":
        return Recomputation(setup.recomputed_layers, selective=False)
    free_bytes, _ = torch.cuda.mem_get_info(device)
    available_bytes = free_bytes + torch.cuda.memory_reserved(device)
    least = minimal_recomputation(config, setup, available_bytes)
    chosen = torch.tensor([least.recomputed_layers, least.selective], device=device)
    dist.all_reduce(chosen, op=dist.ReduceOp.MAX)
    layers, selective = chosen.tolist()
    return Recomputation(layers, bool(selective))
