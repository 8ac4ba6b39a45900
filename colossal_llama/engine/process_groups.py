"""The plugin's process groups: data-parallel rank, pipeline stage, and the replicas of a tensor."""

import torch.distributed as dist
from colossalai.booster.plugin import HybridParallelPlugin
from colossalai.booster.plugin.plugin_base import Plugin


def data_parallel_group(plugin: Plugin) -> dist.ProcessGroup | None:
    """Process group over whose ranks the data are divided; None for all processes."""
    return plugin.dp_group if isinstance(plugin, HybridParallelPlugin) else None


def pipeline_stages(plugin: Plugin) -> int:
    """Number of pipeline stages; 1 without a pipeline."""
    return plugin.pp_size if isinstance(plugin, HybridParallelPlugin) else 1


def is_last_stage(plugin: Plugin) -> bool:
    """True when this process has the model's last layers, and so the loss."""
    return pipeline_stages(plugin) == 1 or plugin.stage_manager.is_last_stage()


def replicas(plugin: Plugin, over_data: bool, over_tensor: bool) -> tuple[int, int]:
    """Number of processes that hold the same tensor, and this process's index among them.

    Args:
        plugin: divides the processes into groups.
        over_data: data-parallel ranks hold replicas of it.
        over_tensor: tensor-parallel ranks hold replicas of it.
    """
    if not isinstance(plugin, HybridParallelPlugin):
        return (dist.get_world_size(), dist.get_rank()) if over_data else (1, 0)
    count, index = 1, 0
    for group, is_replicated in ((plugin.mixed_dp_group, over_data), (plugin.tp_group, over_tensor)):
        if is_replicated:
            count, index = count * dist.get_world_size(group), index * dist.get_world_size(group) + dist.get_rank(group)
    return count, index
