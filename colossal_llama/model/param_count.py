"""Parameter counts and FLOPs of a model and its LoRA adapters, from the configuration alone.

Imports no torch.
"""

import math
from typing import Any

from colossal_llama.model.architectures import head_width, key_value_heads, layer_tensors, window_tokens


def layer_parameters(config: Any) -> int:
    """Counts the parameters of one decoder layer."""
    return sum(math.prod(shape) for _, shape in layer_tensors(config))


def parameters(config: Any) -> int:
    """Counts the parameters of the whole model."""
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    return embeddings + config.num_hidden_layers * layer_parameters(config) + config.hidden_size


def flops_per_token(config: Any, length_tokens: int, frozen_parameters: int = 0) -> float:
    """Computes model FLOPs per token of a full row in one training step.

    6 · (parameters − input embedding) + 6 · layers · width of the queries · length: six for each
    weight of a matrix product (two forward, four backward), and the causal half of the attention
    scores and sums. Of a row longer than the attention's window only what the window leaves of
    them. Recomputation is not counted. Each frozen weight takes two less: its gradient is not
    computed.
    """
    looked_up = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    window, queries = min(window_tokens(config) or length_tokens, length_tokens), attention_widths(config)[0]
    attended_tokens = 2 * window - window * window / length_tokens  # twice their mean number
    all_trained = 6.0 * (parameters(config) - looked_up + config.num_hidden_layers * queries * attended_tokens)
    return all_trained - 2.0 * frozen_parameters


def adapter_parameters(config: Any, rank: int, layers: tuple[str, ...]) -> int:
    """Counts the parameters of LoRA adapters on the given layers (`q_proj` …) of every decoder."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = attention_widths(config)
    sizes = {"q_proj": width + queries, "k_proj": width + keys, "v_proj": width + keys, "o_proj": queries + width}
    sizes |= {"gate_proj": width + inner, "up_proj": width + inner, "down_proj": inner + width}
    return config.num_hidden_layers * rank * sum(sizes[name] for name in layers)


def attention_widths(config: Any) -> tuple[int, int]:
    """Total widths of the queries and of the keys."""
    head = head_width(config)
    return config.num_attention_heads * head, key_value_heads(config) * head
