"""Parameter-efficient fine-tuning by LoRA adapters.

LoRA trains low-rank adapters next to frozen weights (Hu et al., https://arxiv.org/abs/2106.09685),
through the peft library.
"""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import GenerationConfig, PreTrainedModel

from colossal_llama.model.architectures import architecture_of
from colossal_llama.model.config_file import GENERATION_CONFIG_FILE
from colossal_llama.model.loading import load_adapter, load_complete_model, load_config, model_class
from colossal_llama.model.weights.adapter_files import ADAPTER_WEIGHTS, EMBEDDINGS
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


def config_to_continue(adapter: Path) -> LoraConfig:
    """Reads peft's configuration of an adapter with new rows, to train it further.

    peft would train a copy of each embedding matrix, untied, in a wrapper that fused kernels do not
    know. So the matrices are not named, and `restore_adapter` puts them into the model itself.
    """
    config = LoraConfig.from_pretrained(str(adapter))
    config.inference_mode, config.modules_to_save = False, None
    return config


def restore_adapter(adapted: PeftModel, adapter: Path) -> None:
    """Copies an adapter's factors and embedding matrices into a model with new adapters."""
    set_peft_model_state_dict(adapted, load_file(adapter / ADAPTER_WEIGHTS))


def adapter_tensors(adapted: PeftModel) -> dict[str, torch.Tensor]:
    """Tensors of an adapter's file by name: the factors, and embeddings that are trained with them.

    Of tied embeddings both names are written. Without the second one transformers 5 loads the
    first alone, and computes the logits by the base's.
    """
    tensors = get_peft_model_state_dict(adapted)
    if trains_embeddings(adapted):
        matrices = (adapted.get_input_embeddings(), adapted.get_output_embeddings())
        tensors |= {name: module.weight for name, module in zip(EMBEDDINGS.values(), matrices, strict=True)}
    return tensors


def train_embeddings(adapted: PeftModel) -> None:
    """Lets the embeddings be trained with the adapter, in place, in the model itself."""
    for embedding in (adapted.get_input_embeddings(), adapted.get_output_embeddings()):
        embedding.requires_grad_(True)


def trains_embeddings(adapted: PeftModel) -> bool:
    """True when rows of the embeddings are trained with the adapter, in the model itself."""
    embedding = adapted.get_input_embeddings()
    return isinstance(embedding, torch.nn.Embedding) and embedding.weight.requires_grad


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
    is_tied = base.config.tie_word_embeddings
    with torch.no_grad():
        merged = load_adapter(base, adapter_path).merge_and_unload()
    if is_tied:
        _tie_again(merged)
    if (adapter_path / GENERATION_CONFIG_FILE).is_file():
        merged.generation_config = GenerationConfig.from_pretrained(adapter_path)
    return merged


def _tie_again(model: PreTrainedModel) -> None:
    """Ties the embeddings of a model if they are equal; peft has made a matrix of each."""
    one, other = model.get_input_embeddings(), model.get_output_embeddings()
    if torch.equal(one.weight, other.weight):
        other.weight = one.weight
        model.config.tie_word_embeddings = True  # newer versions of peft switch it off
