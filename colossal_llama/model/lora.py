"""LoRA: low-rank adapters beside frozen weights (Hu et al., https://arxiv.org/abs/2106.09685), by the peft library."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from transformers import LlamaForCausalLM

from colossal_llama.model.loading import load_whole
from colossal_llama.model.weights.generation_config import save_model


def lora_config(rank: int, alpha: float, dropout: float, target_modules: tuple[str, ...]) -> LoraConfig:
    """Peft's configuration of an adapter.

    Args:
        rank: of the two factors.
        alpha: the adapter's output is scaled by alpha / rank.
        dropout: on the adapter's input, while training.
        target_modules: names of the linear layers that get one (`q_proj`, `up_proj` …).
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
    """Writes the base model with an adapter added to its weights, in the base's dtype, computed on the CPU.

    Raises:
        UserError: weights of the base are missing.
    """
    base = load_whole(LlamaForCausalLM, base_path, torch_dtype="auto", low_cpu_mem_usage=True)
    with torch.no_grad():
        merged = PeftModel.from_pretrained(base, adapter_path).merge_and_unload()
    save_model(merged, target)
