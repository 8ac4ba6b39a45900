"""Loading of models to train and their configurations."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from colossal_llama.model.architectures import Architecture, architecture_of, trainable_architecture
from colossal_llama.model.config_file import read_model_config
from colossal_llama.model.weights.adapter_files import ADAPTER_WEIGHTS
from colossal_llama.model.weights.weight_files import first_line, read_metadata
from colossal_llama.utils.console import is_rank_zero, log_rank_zero
from colossal_llama.utils.custom_code import refuse_custom_code
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.transformers_version import DTYPE_ATTRIBUTE

_SETTABLE = ("model_type", "name_or_path", "num_labels", "keys_to_ignore_at_inference")
"""Attributes of a configuration's class that a config.json may set."""
_OLD_KEYS = ("torch_dtype", "rope_scaling")
"""Keys of transformers 4, which are properties in 5."""
_FULL_ATTENTION = "full_attention"

_MOST_PARAMETERS_CHECKED_ON_HOST = 2_000_000_000


def load_config(path: str | Path) -> PretrainedConfig:
    """Reads a model directory's config.json.

    Raises:
        UserError: it does not exist, cannot be read, or is not that of a model to train.
    """
    settings = read_model_config(Path(path))
    architecture = trainable_architecture(settings["model_type"], path)
    config_class = model_class(architecture).config_class
    is_dataclass = dataclasses.is_dataclass(config_class)  # transformers 5, where settings are attributes of the class
    fields = [field.name for field in dataclasses.fields(config_class)] if is_dataclass else []
    reserved = [key for key in settings if hasattr(config_class, key) and key not in (*_SETTABLE, *_OLD_KEYS, *fields)]
    if reserved:
        raise UserError(
            f"{path}/config.json sets {', '.join(reserved)}, which would replace a function of transformers' "
            "configuration: remove it from the file"
        )
    if settings.get("quantization_config"):
        raise UserError(f"{path} is a quantized model, which cannot be trained: give the model that it was made from")
    if problems := [f"{path}/config.json {problem}" for problem in _untrainable(settings)]:
        raise UserError(problems)
    if settings.get("use_sliding_window") is False:
        settings["sliding_window"] = None  # which transformers 4.51 warns of, and obeys in masks of its own
    try:
        config = config_class.from_dict(settings)
        config.to_json_string()  # as every checkpoint does
    except Exception as error:  # transformers raises what each wrong value happens to cause
        raise UserError(f"{path}/config.json cannot be used: {type(error).__name__}: {error}") from error
    if not isinstance(getattr(config, DTYPE_ATTRIBUTE), torch.dtype | None):
        raise UserError(f"{path}/config.json names the torch_dtype {settings['torch_dtype']!r}, which is none")
    return config


def model_class(architecture: Architecture) -> Any:
    """The class of transformers with an output layer."""
    return getattr(transformers, architecture.causal_class)


def _untrainable(settings: dict[str, Any]) -> Iterator[str]:
    """Settings that transformers computes with and the kernels here do not, one phrase each."""
    activation = settings.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        yield f"has the hidden_act {activation!r}; models with SwiGLU (silu) can be trained"
    layer_types = settings.get("layer_types") or []
    is_full = isinstance(layer_types, list) and all(kind == _FULL_ATTENTION for kind in layer_types)
    if settings.get("use_sliding_window") or not is_full:
        yield (
            "has a sliding window on some layers (use_sliding_window, layer_types), which cannot be trained; published "
            "models of these types have it switched off"
        )


def load_model(
    path: str | Path,
    dtype: torch.dtype,
    attention: str,
    device: torch.device,
) -> PreTrainedModel:
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
            model_class(architecture_of(config)),
            path,
            config=config,
            torch_dtype=dtype,
            device_map={"": device} if device.type == "cuda" else None,
            low_cpu_mem_usage=True,
        )
    except UserError:
        raise
    except Exception as error:  # transformers, safetensors and torch each raise their own on damaged files
        raise UserError(f"the weights in {path} cannot be loaded: {first_line(error)}") from error
    if problem := nonfinite_weights(model, path):
        log_rank_zero(f"warning: {problem}")  # non-finite steps have limits of their own
    # Set after loading, since from_pretrained knows only its own names.
    model.config._attn_implementation = attention
    # Dropping the map keeps accelerate's hooks and transformers' "already placed" checks out of the
    # plugins' way.
    if hasattr(model, "hf_device_map"):
        del model.hf_device_map
    return model


def nonfinite_weights(model: PreTrainedModel, path: str | Path) -> str | None:
    """Names tensors with NaN or Inf, in one pass that is left out for large models in host memory.

    Returns:
        A sentence; None where all are finite.
    """
    if model.device.type == "cpu" and model.num_parameters() > _MOST_PARAMETERS_CHECKED_ON_HOST:
        return None
    wrong = [
        name
        for name, values in model.named_parameters()
        if values.is_floating_point() and not values.sum(dtype=torch.float32).isfinite()
    ]
    if not wrong:
        return None
    return (
        f"the weights in {path} have NaN or Inf in {len(wrong)} tensors ({', '.join(wrong[:3])}): they are damaged, or "
        "come from a run that diverged"
    )


def load_complete_model(model_class: Any, path: str | Path, **settings: Any) -> PreTrainedModel:
    """Calls a model class's `from_pretrained`, and refuses weights that are incomplete.

    `from_pretrained` itself initialises missing tensors at random. Unless it is given, the
    configuration is read here: transformers 4.51 does not see what 5 writes.

    Raises:
        UserError: tensors are missing, or the directory names custom code.
    """
    refuse_custom_code(Path(path))
    if not is_rank_zero():
        transformers_logging.disable_progress_bar()
    if "config" not in settings:
        config = read_model_config(Path(path))
        settings["config"] = CONFIG_MAPPING[config["model_type"]].from_dict(config, name_or_path=str(path))
    model, report = model_class.from_pretrained(path, output_loading_info=True, trust_remote_code=False, **settings)
    if getattr(model.config, "use_sliding_window", None) is False:
        model.config.sliding_window = None  # transformers 4.51 obeys it all the same
    absent = sorted(report["missing_keys"])
    if absent:
        shown = ", ".join(absent[:5]) + (" …" if len(absent) > 5 else "")
        raise UserError(
            f"the weights in {path} are incomplete: {len(absent)} tensors are missing ({shown}); copy the model anew"
        )
    return model


def load_adapter(model: PreTrainedModel, path: Path) -> Any:
    """Puts a peft adapter on its base model.

    Raises:
        UserError: its weights are not safetensors, or are damaged, or its configuration names code.
    """
    from peft import PeftModel

    refuse_custom_code(path)
    if not (path / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"{path} holds no {ADAPTER_WEIGHTS}; pickled adapters are not loaded")
    read_metadata(path / ADAPTER_WEIGHTS)
    adapted = PeftModel.from_pretrained(model, str(path))
    check_adapter(adapted, path)
    return adapted


def check_adapter(adapted: Any, path: Path) -> None:
    """Refuses an adapter that does not have all tensors of its configuration, or has more.

    peft leaves a missing tensor as it is initialised, or as the base has it, and passes over one
    too many.

    Raises:
        UserError: names some of them.
    """
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    found = set(_names_in(path))
    # Embeddings that were saved with the adapter are not always among peft's.
    surplus = {name for name in found.difference(tensors) if "lora_" in name}
    for what, names in (("misses", tensors.keys() - found), ("has too many", surplus)):
        if names:
            raise UserError(
                f"the adapter {path} {what} {len(names)} tensors ({min(names)} …): it does not belong to its "
                "adapter_config.json; copy it again"
            )


def _names_in(adapter: Path) -> list[str]:
    with safe_open(adapter / ADAPTER_WEIGHTS, framework="np") as tensors:
        return list(tensors.keys())
