"""Parameter counts and FLOPs of a LLaMA and its LoRA adapters, from the configuration alone.

Imports no torch.
"""

from typing import Any


def layer_parameters(config: Any) -> int:
    """Counts the parameters of one decoder layer."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = attention_widths(config)
    attention = width * (queries + 2 * keys) + queries * width
    biases = (queries + 2 * keys + width) * bool(getattr(config, "attention_bias", False))
    biases += (2 * inner + width) * bool(getattr(config, "mlp_bias", False))
    return attention + 3 * width * inner + biases + 2 * width


def parameters(config: Any) -> int:
    """Counts the parameters of the whole model."""
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    return embeddings + config.num_hidden_layers * layer_parameters(config) + config.hidden_size


def flops_per_token(config: Any, length_tokens: int) -> float:
    """Computes model FLOPs per token of a full row in one training step.

    6 · (parameters − input embedding) + 6 · layers · width · length: six for each weight of
    a matrix product (two forward, four backward), and the causal half of the attention scores and
    sums. Recomputation is not counted.
    """
    looked_up = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    return 6.0 * (parameters(config) - looked_up + config.num_hidden_layers * config.hidden_size * length_tokens)


def adapter_parameters(config: Any, rank: int, layers: tuple[str, ...]) -> int:
    """Counts the parameters of LoRA adapters on the given layers (`q_proj` …) of every decoder."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = attention_widths(config)
    sizes = {"q_proj": width + queries, "k_proj": width + keys, "v_proj": width + keys, "o_proj": queries + width}
    sizes |= {"gate_proj": width + inner, "up_proj": width + inner, "down_proj": inner + width}
    return config.num_hidden_layers * rank * sum(sizes[name] for name in layers)


def attention_widths(config: Any) -> tuple[int, int]:
    """Total widths of the queries and of the keys."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_attention_heads * head, config.num_key_value_heads * head
