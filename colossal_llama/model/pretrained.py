"""Finds a model by directory or hub name and loads it for inference, with its tokenizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from colossal_llama.model.architectures import find_architecture
from colossal_llama.model.config_file import read_generation_config, read_model_config
from colossal_llama.model.loading import load_adapter, load_complete_model, nonfinite_weights
from colossal_llama.model.weights.adapter_files import ADAPTER_WEIGHTS, adapter_base_name, check_embeddings, is_adapter
from colossal_llama.model.weights.llama_tensors import check_tensors
from colossal_llama.model.weights.weight_files import first_line, tensor_shapes
from colossal_llama.model.weights.written_model import check_written_model
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.hub.fetch import local_directory
from colossal_llama.utils.hub.files import Needed
from colossal_llama.utils.hub.names import missing_directory_problem, path_or_name


def find_model(name: str) -> Path:
    """Returns a model's directory: `name` itself, or the local copy of a hub's repository.

    A repository without a local copy is downloaded.

    Raises:
        UserError: `name` is neither a directory nor a repository that can be had.
    """
    source = path_or_name(name)
    if isinstance(source, Path) and (reason := missing_directory_problem(source)):
        raise UserError(f"{name} is not a directory: it {reason}")
    return local_directory(source, Needed.MODEL)


def load_for_inference(
    directory: Path, dtype: str, device: torch.device, say: Callable[[str], Any] = log_rank_zero
) -> tuple[Any, PreTrainedTokenizerFast]:
    """Loads a model directory, or a peft adapter on the base model that its configuration names.

    Args:
        directory: of a model or an adapter.
        dtype: "auto" (as stored), "float32", "float16" or "bfloat16".
        device: where the weights are put.
        say: receives what is said of the model's files.

    Returns:
        The model on `device`, in evaluation mode, and its tokenizer (an adapter's own, if it has
        one).

    Raises:
        UserError: model, base model or tokenizer cannot be loaded.
    """
    adapter = directory if is_adapter(directory) else None
    base = base_model_of(adapter) if adapter else directory
    config = read_model_config(base)
    if config["model_type"] not in CONFIG_MAPPING_NAMES:
        raise UserError(
            f"{base} is a model of type {config['model_type']!r}, which transformers does not know; code that comes "
            "with a model is never run: use another model"
        )
    read_generation_config(base)
    has_tokenizer = any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    tokenizer = load_tokenizer(directory if has_tokenizer else base)
    if adapter and (adapter / ADAPTER_WEIGHTS).is_file():
        check_embeddings(adapter, base, config["vocab_size"])
    shapes = tensor_shapes(base)
    for path in dict.fromkeys((base, directory)):
        check_written_model(path, say)
    if find_architecture(config["model_type"]) and not config.get("quantization_config"):
        check_tensors(base, shapes, config)
    try:
        torch_dtype = "auto" if dtype == "auto" else getattr(torch, dtype)
        model = load_complete_model(AutoModelForCausalLM, base, torch_dtype=torch_dtype, device_map={"": device})
        if problem := nonfinite_weights(model, base):
            raise UserError(problem)
        if adapter:
            model = load_adapter(model, adapter)
    except UserError:
        raise
    except Exception as error:  # transformers, safetensors, peft and torch each raise their own on damaged files
        raise UserError(f"the model in {directory} cannot be loaded: {first_line(error)}") from error
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(f"the tokenizer has {len(tokenizer):,} tokens, the model in {base} rows for {rows:,} only")
    return model.eval(), tokenizer


def base_model_of(adapter: Path) -> Path:
    """Returns the directory of an adapter's base model.

    Raises:
        UserError: it is neither a directory nor a model of a hub that can be had.
    """
    base = adapter_base_name(adapter)
    try:
        return find_model(base)
    except UserError as error:
        raise UserError(
            f"the base model of the adapter {adapter}, base_model_name_or_path in its adapter_config.json, cannot be "
            f"found: {error}; correct the file"
        ) from error


def stop_token_ids(model: Any, tokenizer: PreTrainedTokenizerFast, *more: int) -> set[int]:
    """Collects the tokens that end an answer.

    These are the tokenizer's EOS, those of the model's generation config (LLaMA-3 names several),
    and `more`.
    """
    configured = model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [] if configured is None else [configured]
    return {tokenizer.eos_token_id, *listed, *more}
