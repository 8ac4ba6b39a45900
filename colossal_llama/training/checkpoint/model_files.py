"""Model directory of a checkpoint: weight files, their index, configurations and tokenizer."""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
import torch.distributed as dist
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from colossal_llama.model.architectures import architecture_of
from colossal_llama.model.config_file import make_config_portable
from colossal_llama.model.lora import merge_adapter, trains_embeddings
from colossal_llama.model.weights.adapter_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    make_adapter_portable,
    name_base_repository,
    name_embeddings,
    write_adapter_card,
)
from colossal_llama.model.weights.generation_config import write_generation_config
from colossal_llama.model.weights.weight_files import SAFETENSORS_INDEX, find_weight_files
from colossal_llama.tokenizer.loading import REPEATED_FILES
from colossal_llama.tokenizer.settings_file import make_settings_portable
from colossal_llama.training.checkpoint.archive import make_way
from colossal_llama.training.checkpoint.commit import WrittenFile
from colossal_llama.training.checkpoint.state import MERGED_MODEL, MODEL
from colossal_llama.utils.atomic_io import fsync_tree, replace_directory, unfinished_path, write_bytes, write_json
from colossal_llama.utils.checksums import write_checksums
from colossal_llama.utils.console import is_rank_zero
from colossal_llama.utils.transformers_version import DTYPE_ATTRIBUTE


def small_files(
    network: PreTrainedModel | PeftModel,
    dtype: torch.dtype,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int] = (),
    carried_on: Mapping[str, bytes] = MappingProxyType({}),
) -> dict[str, bytes]:
    """Content of the configuration and tokenizer files by name, the same for a whole run.

    Args:
        network: the model, or its adapters.
        dtype: of the weights.
        tokenizer: of the run.
        stop_ids: tokens that end an answer, besides those of the model's generation settings.
        carried_on: files that go with every model of the run, by name.
    """
    with tempfile.TemporaryDirectory() as directory:
        for name, content in carried_on.items():
            write_bytes(Path(directory) / name, content)
        if isinstance(network, PeftModel):
            network.save_pretrained(directory)
            (Path(directory) / ADAPTER_WEIGHTS).unlink()
            make_adapter_portable(Path(directory), vars(LoraConfig()))
            if trains_embeddings(network):
                name_embeddings(Path(directory))
            name_base_repository(Path(directory))
            write_adapter_card(Path(directory), trains_embeddings(network))
        else:
            _write_configuration(Path(directory), network, dtype)
        write_generation_config(network, Path(directory), stop_ids)
        _write_tokenizer(tokenizer, Path(directory))
        return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, target: Path) -> None:
    """Writes the tokenizer; its chat template into tokenizer_config.json, which all programs read.

    transformers 5 would write chat_template.jinja, which programs of before 2025 pass over.
    """
    tokenizer.save_pretrained(target, save_jinja_files=False)
    for name in ("tokenizer.model", *REPEATED_FILES):  # transformers 5, and the generic class, leave them out
        path = Path(tokenizer.name_or_path, name)
        if path.is_file() and not (target / name).exists():
            shutil.copyfile(path, target / name)
    make_settings_portable(target)


def _write_configuration(target: Path, network: PreTrainedModel, dtype: torch.dtype) -> None:
    config = network.config.__class__.from_dict(network.config.to_dict())
    config.use_cache = True  # off while training
    config.architectures = [architecture_of(config).causal_class]
    setattr(config, DTYPE_ATTRIBUTE, dtype)
    config.save_pretrained(target)
    make_config_portable(target)


def complete_model_directory(directory: Path, weights: Mapping[str, WrittenFile], others: Mapping[str, bytes]) -> None:
    """Renames the ranks' weight files to their usual names; adds index, small files, checksums.

    Args:
        directory: holds the weight files.
        weights: by file name.
        others: from `small_files`.
    """
    if ADAPTER_CONFIG in others:
        (file,) = weights
        named = {ADAPTER_WEIGHTS: file}
    else:
        names = {f"model-{number:05d}-of-{len(weights):05d}": file for number, file in enumerate(sorted(weights), 1)}
        named = {f"{name}.safetensors": file for name, file in names.items()}
        weight_map = {tensor: name for name, file in named.items() for tensor in weights[file].tensors}
        total = sum(size for file in weights.values() for size in file.tensors.values())
        write_json(directory / SAFETENSORS_INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    for name, file in named.items():
        (directory / file).rename(directory / name)
    for name, content in others.items():
        write_bytes(directory / name, content)
    write_checksums(directory, {name: weights[file].checksum for name, file in named.items()})


def fp32_weights(directory: Path) -> dict[str, Callable[[], torch.Tensor]]:
    """Functions that read the fp32 weights of a model directory, by name."""

    def reader(path: Path, name: str) -> Callable[[], torch.Tensor]:
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


def save_merged_model(
    save_dir: Path, base_path: Path, tokenizer: PreTrainedTokenizerBase, carried_on: Mapping[str, bytes]
) -> Path:
    """Writes `SAVE_DIR/modelling_merged`: the base model with the run's adapter merged.

    Rank 0 computes and writes it; a collective.

    Args:
        save_dir: of the run.
        base_path: directory of the base model.
        tokenizer: of the run.
        carried_on: files that go with every model of the run, by name.
    """
    target = save_dir / MERGED_MODEL
    if is_rank_zero():
        temporary = unfinished_path(target)
        shutil.rmtree(temporary, ignore_errors=True)
        merge_adapter(base_path, save_dir / MODEL, temporary)
        _write_tokenizer(tokenizer, temporary)
        for name, content in carried_on.items():
            write_bytes(temporary / name, content)
        write_checksums(temporary, {})
        fsync_tree(temporary)
        make_way(target)
        replace_directory(temporary, target)
    dist.barrier()
    return target
