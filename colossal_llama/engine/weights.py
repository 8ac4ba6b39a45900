"""Weights of a checkpoint: which process writes which, gathered whole from the plugin's shards."""

from collections.abc import Iterator
from typing import Any

import torch
from colossalai.booster.plugin.plugin_base import Plugin
from colossalai.checkpoint_io.utils import gather_distributed_param
from colossalai.tensor.d_tensor import is_distributed_tensor
from colossalai.tensor.padded_tensor import is_padded_tensor, to_unpadded_tensor
from colossalai.zero import GeminiDDP
from peft import PeftModel

from colossal_llama.engine.optimizer_shards import saved_name
from colossal_llama.engine.process_groups import replicas
from colossal_llama.model.lora import adapter_tensors
from colossal_llama.utils.console import is_rank_zero


def weights_to_save(plugin: Plugin, model: Any, parameter_dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Whole weights that this process writes, without padding; a collective over all ranks.

    Weights that several ranks hold are divided among these; with LoRA, rank 0 writes the adapter.

    Args:
        plugin: has wrapped the model.
        model: the wrapped model.
        parameter_dtype: in which weights are saved.

    Yields:
        Name in the file, and tensor on its device (not a copy).
    """
    network = model.unwrap(unwrap_peft=False)
    if isinstance(network, PeftModel):
        if is_rank_zero():
            yield from adapter_tensors(network).items()
    elif isinstance(model, GeminiDDP):
        _update_working_weights(model)
        for shard, _ in model.state_dict_shard(max_shard_size=1024, only_rank_0=True):
            if is_rank_zero():  # chunks that every rank keeps whole come in fp32
                yield from ((name, weight.to(parameter_dtype)) for name, weight in shard.items())
    else:
        if hasattr(model, "_force_wait_all_gather"):
            model._force_wait_all_gather()  # ZeRO may still be gathering the last update
        yield from _divided_among_replicas(plugin, network)


def _update_working_weights(model: GeminiDDP) -> None:
    """Copies the last update to half-precision weights in host memory.

    Gemini itself does that only when it uses them next. It saves these weights when it accumulates
    gradients; else it saves the master weights.
    """
    if model.chunk_manager.reuse_fp16_chunk:
        return
    for chunk in model.chunk_manager.get_chunks(model.fp16_params):
        if not chunk.optim_sync_flag:
            chunk.payload.copy_(chunk.paired_chunk.payload)


def _divided_among_replicas(plugin: Plugin, network: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for number, (name, parameter) in enumerate(network.named_parameters()):
        if saved_name(network, name) is None:
            continue
        whole = parameter.detach()
        if is_distributed_tensor(parameter):
            count, index = replicas(plugin, over_data=True, over_tensor=False)
            if number % count != index:
                continue
            whole = gather_distributed_param(parameter)  # a collective of the tensor-parallel ranks
            is_written_here = replicas(plugin, over_data=False, over_tensor=True)[1] == 0
        else:
            count, index = replicas(plugin, over_data=True, over_tensor=True)
            is_written_here = number % count == index
        if is_written_here:
            yield name, to_unpadded_tensor(whole) if is_padded_tensor(whole) else whole
