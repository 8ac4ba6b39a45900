"""Tiny random models of every architecture that can be trained, shaped as published families."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel

from colossal_llama.model.architectures import find_architecture
from colossal_llama.model.loading import model_class

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-3.2": {"model_type": "llama", "tie_word_embeddings": True, "rope_scaling": _LLAMA3_ROPE},
    "smollm": {"model_type": "llama", "tie_word_embeddings": True},
    "mistral-v0.1": {"model_type": "mistral", "sliding_window": 7},  # shorter than most documents
    "mistral-nemo": {"model_type": "mistral", "sliding_window": None, "head_dim": 24},
    "qwen2": {"model_type": "qwen2", "sliding_window": 96, "use_sliding_window": False},
    "qwen2.5-small": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 24, "sliding_window": None},
    "qwen3-small": {"model_type": "qwen3", "head_dim": 24, "tie_word_embeddings": True},
}
"""What sets the configurations of published families apart, by name."""
ONE_OF_EACH = ("llama", "mistral-v0.1", "qwen2", "qwen3")
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
}


def config_of(variant: str, **settings: Any) -> PretrainedConfig:
    """The configuration of a variant with other settings."""
    given = {**SHAPE, **VARIANTS[variant], **settings}
    return model_class(find_architecture(given.pop("model_type"))).config_class(**given)


def random_model(config: PretrainedConfig) -> PreTrainedModel:
    """A model whose biases and norms are random, too, so that leaving one out shows."""
    torch.manual_seed(0)
    model = model_class(find_architecture(config.model_type))(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def make_model(directory: Path, variant: str, tokenizer_directory: Path, **settings: Any) -> Path:
    """Writes a random model with a tokenizer, its config.json as the variant's models have it."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = config_of(variant, **{"vocab_size": len(tokenizer), **tokens, **settings})
    random_model(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    path = directory / "config.json"
    written = {"sliding_window", "use_sliding_window"} & VARIANTS[variant].keys()
    kept = {key: VARIANTS[variant][key] for key in written}  # transformers 5 writes null for one not in use
    path.write_text(json.dumps({**json.loads(path.read_text()), **kept}))
    return directory
