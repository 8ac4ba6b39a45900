"""Parameter-efficient fine-tuning by LoRA adapters.

LoRA trains low-rank adapters next to frozen weights (Hu et al., https://arxiv.org/abs/2106.09685),
through the peft library.
"""

from pathlib import Path

import torch
from peft import LoraConfig
from transformers import GenerationConfig, PreTrainedModel

from colossal_llama.model.architectures import architecture_of
from colossal_llama.model.config_file import GENERATION_CONFIG_FILE
from colossal_llama.model.loading import load_adapter, load_complete_model, load_config, model_class
from colossal_llama.model.weights.generation_config import save_model


def lora_config(rank: int, alpha: float, dropout: float, target_modules: tuple[str, ...]) -> LoraConfig:
    """Builds peft's configuration of an adapter.

    Args:
        rank: of the two factors.
        alpha: the adapter's output is scaled by alpha / rank.
        dropout: on the adapter's input, in training.
        target_modules: names of the linear layers that get an adapter (`q_proj`, `up_proj` …).
    """
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(target_modules),
        task_type="CAUSAL_LM",
        bias="none",
    )


def merge_adapter(base_path: Path, adapter_path: Path, target: Path) -> None:
    """Merges an adapter into its base model on the CPU and writes the result in the base's dtype.

    The generation settings are the adapter's, if it has any, as its training may have added the
    token that ends a turn.

    Raises:
        UserError: weights of the base are missing.
    """
    save_model(merged_model(base_path, adapter_path), target)


def merged_model(base_path: Path, adapter_path: Path) -> PreTrainedModel:
    """Merges an adapter into its base model on the CPU, in the base's dtype.

    Raises:
        UserError: weights of the base are missing, or the adapter is damaged.
    """
    base_class = model_class(architecture_of(load_config(base_path)))
    base = load_complete_model(base_class, base_path, torch_dtype="auto", low_cpu_mem_usage=True)
    with torch.no_grad():
        merged = load_adapter(base, adapter_path).merge_and_unload()
    if (adapter_path / GENERATION_CONFIG_FILE).is_file():
        merged.generation_config = GenerationConfig.from_pretrained(adapter_path)
    return merged
