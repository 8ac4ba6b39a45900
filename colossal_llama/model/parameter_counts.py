"""How many parameters a LLaMA has, and LoRA adapters on it, counted from the configuration alone. Imports no torch."""

from typing import Any


def layer_parameters(config: Any) -> int:
    """Parameters of one decoder layer of a LLaMA configuration."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = attention_widths(config)
    attention = width * (queries + 2 * keys) + queries * width
    biases = (queries + 2 * keys + width) * bool(getattr(config, "attention_bias", False))
    biases += (2 * inner + width) * bool(getattr(config, "mlp_bias", False))
    return attention + 3 * width * inner + biases + 2 * width


def parameters(config: Any) -> int:
    """Parameters of the whole model."""
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    return embeddings + config.num_hidden_layers * layer_parameters(config) + config.hidden_size


def adapter_parameters(config: Any, rank: int, layers: tuple[str, ...]) -> int:
    """Parameters of LoRA adapters of a rank on the named linear layers (`q_proj` …) of every decoder layer."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = attention_widths(config)
    sizes = {"q_proj": width + queries, "k_proj": width + keys, "v_proj": width + keys, "o_proj": queries + width}
    sizes |= {"gate_proj": width + inner, "up_proj": width + inner, "down_proj": inner + width}
    return config.num_hidden_layers * rank * sum(sizes[name] for name in layers)


def attention_widths(config: Any) -> tuple[int, int]:
    """Width of all queries and of all keys."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_attention_heads * head, config.num_key_value_heads * head
