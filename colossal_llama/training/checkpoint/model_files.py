"""The model directory of a checkpoint: which process writes which weights, and the small files beside them."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from colossalai.checkpoint_io.utils import gather_distributed_param
from colossalai.tensor.d_tensor import is_distributed_tensor
from colossalai.tensor.padded_tensor import is_padded_tensor, to_unpadded_tensor
from colossalai.zero import GeminiDDP
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from colossal_llama.engine.optimizer_shards import replicas, saved_name
from colossal_llama.engine.plugins import Engine
from colossal_llama.model.weights.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from colossal_llama.model.weights.generation_config import write_generation_settings
from colossal_llama.model.weights.weight_files import SAFETENSORS_INDEX, find_weight_files
from colossal_llama.utils.atomic_io import write_bytes, write_json
from colossal_llama.utils.console import is_rank_zero


def weights_to_save(engine: Engine, model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights that this process writes, whole, without padding; all ranks must go through it together.

    Weights that several ranks hold are shared out among these; with LoRA, rank 0 writes the
    adapter.
    """
    network = model.unwrap(unwrap_peft=False)
    if isinstance(network, PeftModel):
        if is_rank_zero():
            yield from get_peft_model_state_dict(network).items()
    elif isinstance(model, GeminiDDP):
        _update_working_weights(model)
        for shard, _ in model.state_dict_shard(max_shard_size=1024, only_rank_0=True):
            if is_rank_zero():  # chunks that every rank keeps whole come in fp32
                yield from ((name, weight.to(engine.parameter_dtype)) for name, weight in shard.items())
    else:
        if hasattr(model, "_force_wait_all_gather"):
            model._force_wait_all_gather()  # ZeRO may still be spreading the last update
        yield from _shared_out(engine, network)


def _update_working_weights(model: GeminiDDP) -> None:
    """Gives half-precision weights in host memory the last update, which Gemini puts off until it moves them to the device.

    It saves them as they are when it accumulates gradients; else it saves the master weights.
    """
    if model.chunk_manager.reuse_fp16_chunk:
        return
    for chunk in model.chunk_manager.get_chunks(model.fp16_params):
        if not chunk.optim_sync_flag:
            chunk.payload.copy_(chunk.paired_chunk.payload)


def _shared_out(engine: Engine, network: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for number, (name, parameter) in enumerate(network.named_parameters()):
        if saved_name(network, name) is None:
            continue
        whole = parameter.detach()
        if is_distributed_tensor(parameter):
            count, index = replicas(engine, over_data=True, over_tensor=False)
            if number % count != index:
                continue
            whole = gather_distributed_param(parameter)  # by the tensor-parallel ranks together
            is_mine = replicas(engine, over_data=False, over_tensor=True)[1] == 0
        else:
            count, index = replicas(engine, over_data=True, over_tensor=True)
            is_mine = number % count == index
        if is_mine:
            yield name, to_unpadded_tensor(whole) if is_padded_tensor(whole) else whole


def small_files(
    network: PreTrainedModel | PeftModel, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase
) -> dict[str, bytes]:
    """Configurations and tokenizer, file by file; the same in every checkpoint of a run."""
    with tempfile.TemporaryDirectory() as place:
        if isinstance(network, PeftModel):
            network.save_pretrained(place)
            (Path(place) / ADAPTER_WEIGHTS).unlink()
        else:
            _write_configurations(Path(place), network, dtype)
        tokenizer.save_pretrained(place)
        return {path.name: path.read_bytes() for path in Path(place).iterdir()}


def _write_configurations(target: Path, network: PreTrainedModel, dtype: torch.dtype) -> None:
    config = network.config.__class__.from_dict(network.config.to_dict())
    config.use_cache = True  # off while training
    config.architectures = ["LlamaForCausalLM"]
    config.torch_dtype = dtype
    config.save_pretrained(target)
    write_generation_settings(network, target)


def complete_model_directory(
    directory: Path, weights: Mapping[str, Mapping[str, int]], others: Mapping[str, bytes]
) -> None:
    """Gives the weight files that the ranks wrote their usual names, and adds the index and the small files.

    Args:
        directory: holds the weight files.
        weights: file name → tensor name → bytes.
        others: from `small_files`.
    """
    if ADAPTER_CONFIG in others:
        (file,) = weights
        (directory / file).rename(directory / ADAPTER_WEIGHTS)
    else:
        weight_map = {}
        for number, file in enumerate(sorted(weights), start=1):
            name = f"model-{number:05d}-of-{len(weights):05d}.safetensors"
            (directory / file).rename(directory / name)
            weight_map |= dict.fromkeys(weights[file], name)
        total = sum(size for tensors in weights.values() for size in tensors.values())
        write_json(directory / SAFETENSORS_INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    for name, content in others.items():
        write_bytes(directory / name, content)


def fp32_weights(directory: Path) -> dict[str, Any]:
    """Functions that read the fp32 weights of a model directory, by name."""

    def reader(path: Path, name: str) -> Any:
        def read() -> torch.Tensor:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name)

        return read

    if not any(directory.glob("model*.safetensors*")):
        return {}
    return {
        name: reader(shard.path, name)
        for shard in find_weight_files(directory).shards
        for name, tensor in shard.tensors.items()
        if tensor.dtype == "F32"
    }
