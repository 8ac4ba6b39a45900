"""Loading of LLaMA models and their configurations."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel

from colossal_llama.utils.errors import UserError


def load_config(path: str | Path) -> PretrainedConfig:
    """Reads a model directory's config.json.

    Raises:
        UserError: it does not exist, cannot be read, or is not a LLaMA's.
    """
    if not Path(path).is_dir():
        raise UserError(f"model directory {path} does not exist")
    if not (Path(path) / "config.json").is_file():
        raise UserError(f"{path} holds no model: config.json is not there")
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}/config.json cannot be read: {error}") from error
    if config.model_type != "llama":
        raise UserError(f"{path} is a model of type {config.model_type!r}; this suite trains LLaMA models")
    return config


def load_model(
    path: str | Path,
    dtype: torch.dtype,
    attention: str,
    device: torch.device,
) -> LlamaForCausalLM:
    """Loads a model directory's weights.

    They are safetensors or .bin files; of the latter PyTorch unpickles tensors only.

    Args:
        path: directory in Hugging Face format.
        dtype: of the parameters.
        attention: name of a registered attention function (model.attention.varlen).
        device: where the parameters are loaded, tensor by tensor, so that the host never holds them
            all.

    Raises:
        UserError: files are missing or damaged, or do not match the configuration.
    """
    config = load_config(path)
    config.use_cache = False
    try:
        model = load_complete_model(
            LlamaForCausalLM,
            path,
            config=config,
            torch_dtype=dtype,
            device_map={"": device} if device.type == "cuda" else None,
            low_cpu_mem_usage=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"the weights in {path} cannot be loaded: {error}") from error
    # Set after loading, since from_pretrained knows only its own names.
    model.config._attn_implementation = attention
    # Dropping the map keeps accelerate's hooks and transformers' "already placed" checks out of the
    # plugins' way.
    if hasattr(model, "hf_device_map"):
        del model.hf_device_map
    return model


def load_complete_model(model_class: Any, path: str | Path, **settings: Any) -> PreTrainedModel:
    """Calls a model class's `from_pretrained`, and refuses weights that are incomplete.

    `from_pretrained` itself initialises missing tensors at random.

    Raises:
        UserError: tensors are missing.
    """
    model, report = model_class.from_pretrained(path, output_loading_info=True, **settings)
    absent = sorted(report["missing_keys"])
    if absent:
        shown = ", ".join(absent[:5]) + (" …" if len(absent) > 5 else "")
        raise UserError(
            f"the weights in {path} are incomplete: {len(absent)} tensors are missing ({shown}); copy the model anew"
        )
    return model
