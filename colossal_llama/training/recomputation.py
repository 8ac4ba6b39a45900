"""How many layers recompute their activations: as few as the device's memory demands, by the estimate of `memory_estimate`."""

from dataclasses import replace

import torch
import torch.distributed as dist
from transformers import PretrainedConfig

from colossal_llama.training.arguments import TrainingArguments
from colossal_llama.training.memory_estimate import estimate
from colossal_llama.training.memory_setup import Setup, setup_of

MARGIN = 0.03
"""Share of the device left free beside `memory_estimate.ALLOWANCE_BYTES`. The estimate was within 1 % of the allocated peak on an H200
(58.3 and 134.2 GiB), and what the allocator holds beyond that was up to 2.8 GiB."""


def fewest_recomputed_layers(config: PretrainedConfig, setup: Setup, device_bytes: int) -> int:
    """The smallest number of layers with which a step fits, or all of them when none does, and in a pipeline.

    Args:
        config: the model's.
        setup: plugin, ranks, batch; its `recomputed_layers` is not looked at.
        device_bytes: memory that this process can have on its device.
    """
    if setup.pipeline_stages > 1:  # the first few are the first stage's alone; the estimate does not look at the others
        return config.num_hidden_layers
    usable = int(device_bytes * (1.0 - MARGIN))
    for layers in range(config.num_hidden_layers):
        if estimate(config, replace(setup, recomputed_layers=layers)).fits(usable):
            return layers
    return config.num_hidden_layers


def choose_recomputed_layers(
    arguments: TrainingArguments, config: PretrainedConfig, device: torch.device, data_parallel_size: int
) -> int:
    """How many layers to recompute under `--use_grad_checkpoint`: what was asked for, else the fewest on a GPU, all on a CPU.

    The same on every rank, since tensor parallelism communicates in a recomputation too.
    """
    of = config.num_hidden_layers
    if arguments.recompute_layers is not None or device.type != "cuda":
        return min(of, arguments.recompute_layers or of)
    free_bytes, _ = torch.cuda.mem_get_info(device)
    available_bytes = free_bytes + torch.cuda.memory_reserved(device)
    setup = setup_of(arguments, config, data_parallel_size, arguments.fused_kernels, flash_attention=True)
    fewest = torch.tensor(fewest_recomputed_layers(config, setup, available_bytes), device=device)
    dist.all_reduce(fewest, op=dist.ReduceOp.MAX)
    return int(fewest)
