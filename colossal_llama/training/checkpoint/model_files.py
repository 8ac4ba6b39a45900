"""Model directory of a checkpoint: small files, names and index of the weight files, fp32 weights to read."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from colossal_llama.model.weights.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from colossal_llama.model.weights.generation_config import write_generation_config
from colossal_llama.model.weights.weight_files import SAFETENSORS_INDEX, find_weight_files
from colossal_llama.utils.atomic_io import write_bytes, write_json


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
    write_generation_config(network, target)


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
