"""Opens a LLaMA for training."""

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import AutoConfig, LlamaForCausalLM, PretrainedConfig

from colossal_llama.utils.errors import UserError


def load_config(path: str | Path) -> PretrainedConfig:
    """Reads a model directory's config.json.

    Raises:
        UserError: there is none, or it is not a LLaMA's.
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
    """Loads the weights of a model directory (safetensors; nothing is unpickled).

    Args:
        path: directory in Hugging Face format.
        dtype: of the parameters.
        attention: name of a registered attention function (colossal_llama.model.attention).
        device: where the parameters are put, tensor by tensor, so that the host never holds them all.

    Raises:
        UserError: files are missing or damaged, or do not fit the configuration.
    """
    config = load_config(path)
    config.use_cache = False
    try:
        model, report = LlamaForCausalLM.from_pretrained(
            path,
            config=config,
            torch_dtype=dtype,
            use_safetensors=True,
            device_map={"": device} if device.type == "cuda" else None,
            low_cpu_mem_usage=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"the weights in {path} cannot be loaded: {error}") from error
    refuse_incomplete(path, report["missing_keys"])
    # Set after loading, since from_pretrained knows only its own names.
    model.config._attn_implementation = attention
    # Dropping the map keeps accelerate's hooks and transformers' "already placed" checks out of the plugins' way.
    if hasattr(model, "hf_device_map"):
        del model.hf_device_map
    return model


def refuse_incomplete(path: str | Path, missing_keys: Iterable[str]) -> None:
    """
    Args:
        missing_keys: of the loading report; transformers has given these tensors random numbers.

    Raises:
        UserError: there are some.
    """
    absent = sorted(missing_keys)
    if absent:
        shown = ", ".join(absent[:5]) + (" …" if len(absent) > 5 else "")
        raise UserError(
            f"the weights in {path} are incomplete: {len(absent)} tensors are missing ({shown}); copy the model anew"
        )


def parameter_counts(model: torch.nn.Module) -> dict[str, int]:
    """Numbers of parameters: `total`, `trainable`, `input_embedding`."""
    return {
        "total": sum(parameter.numel() for parameter in model.parameters()),
        "trainable": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "input_embedding": model.get_input_embeddings().weight.numel(),
    }


def flops_per_token(model: LlamaForCausalLM, length_tokens: int) -> float:
    """Model floating-point operations of one training step for one token of a full row.

    6 · (parameters − input embedding) + 6 · layers · width · length: six for every weight that multiplies (two forward, four
    backward), and the causal half of the attention scores and sums. Recomputation is not counted.
    """
    counts, config = parameter_counts(model), model.config
    multiplied = counts["total"] if config.tie_word_embeddings else counts["total"] - counts["input_embedding"]
    return 6.0 * multiplied + 6.0 * config.num_hidden_layers * config.hidden_size * length_tokens
