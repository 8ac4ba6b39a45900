"""What is recomputed in the backward pass: as little as the device's memory demands, by the estimate of `memory_estimate`.

Nothing where a step fits; else first what is cheap to make again (model.activation_checkpointing),
then whole layers, as few as it takes. Where the user says how many layers, it is only chosen
whether the others are frugal.
"""

from dataclasses import replace

import torch
import torch.distributed as dist
from transformers import PretrainedConfig

from colossal_llama.model.kernels.apply import fused_kernels_unavailable_reason
from colossal_llama.training.arguments import TrainingArguments
from colossal_llama.training.memory.config import Setup, setup_of
from colossal_llama.training.memory.estimate import estimate

MARGIN = 0.03
"""Share of the device left free beside `memory_estimate.ALLOWANCE_BYTES`. The estimate was within 1
% of the allocated peak on an H200
(58.3 and 134.2 GiB), and what the allocator holds beyond that was up to 2.8 GiB."""


def least_recomputation(
    config: PretrainedConfig, setup: Setup, device_bytes: int, layers_wanted: int | None = None
) -> Setup:
    """The setup with as little computed again as a step that fits allows; everything when none does, and in a pipeline.

    Args:
        config: the model's.
        setup: plugin, ranks, batch; `frugal` where the layers can be; its `recomputed_layers` is
            not looked at.
        device_bytes: memory that this process can have on its device.
        layers_wanted: recompute just so many layers.
    """
    of = config.num_hidden_layers
    numbers = range(of) if layers_wanted is None else (min(of, layers_wanted),)
    everything = replace(setup, recomputed_layers=of if layers_wanted is None else numbers[0])
    if setup.pipeline_stages > 1:  # the first few are the first stage's alone; the estimate does not look at the others
        return everything
    usable = int(device_bytes * (1.0 - MARGIN))
    ways = dict.fromkeys((False, setup.frugal))
    candidates = (replace(setup, recomputed_layers=layers, frugal=way) for layers in numbers for way in ways)
    return next((candidate for candidate in candidates if estimate(config, candidate).fits(usable)), everything)


def choose_recomputation(
    arguments: TrainingArguments, config: PretrainedConfig, device: torch.device, data_parallel_size: int
) -> tuple[int, bool]:
    """How many layers to recompute under `--use_grad_checkpoint`, and whether the others keep no more than they must.

    As many as were asked for, else the fewest on a GPU, all on a CPU. The same on every rank, since
    tensor parallelism communicates in a recomputation too.
    """
    fused = arguments.fused_kernels and fused_kernels_unavailable_reason(device) is None
    setup = setup_of(arguments, config, data_parallel_size, fused, flash_attention=True)
    if device.type != "cuda":
        return setup.recomputed_layers, False
    free_bytes, _ = torch.cuda.mem_get_info(device)
    available_bytes = free_bytes + torch.cuda.memory_reserved(device)
    least = least_recomputation(config, setup, available_bytes, arguments.recompute_layers)
    chosen = torch.tensor([least.recomputed_layers, least.frugal], device=device)
    dist.all_reduce(chosen, op=dist.ReduceOp.MAX)
    layers, frugal = chosen.tolist()
    return layers, bool(frugal)


def recomputed_in_words(layers: int, of: int, frugal: bool) -> str:
    """As the plan says it: "6 of 32 layers are recomputed, of the others norms and SwiGLU"."""
    others = ", of the others norms and SwiGLU" if frugal and layers < of else ""
    return f"{layers} of {of} layers are recomputed{others}"
