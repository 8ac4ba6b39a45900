"""The architectures that can be trained: one table of LLaMA and of what others have in its place.

All of them are decoders of the same parts under the same names: RMSNorm before attention and before
a SwiGLU, rotary embeddings, grouped key-value heads. They differ in biases, in norms of queries and
keys, in the window of the attention, and in what a missing key of config.json means. Whatever needs
to know that (checks, kernels, parameter counts, memory estimate) asks this table. Imports no torch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

from colossal_llama.utils.errors import UserError


@dataclass(frozen=True)
class Architecture:
    """Properties that set an architecture apart from the others of the table."""

    model_type: str
    """Its name in config.json."""
    causal_class: str
    """Its class in transformers, with an output layer."""
    families: str
    """Published models of this architecture."""
    attention_bias: Literal["configured", "query_key_value", "none"]
    """`configured`: on all four projections if config.json has `attention_bias`; else always on
    queries, keys and values, or never."""
    mlp_bias: bool = False
    """True where config.json may have `mlp_bias`."""
    has_qk_norm: bool = False
    """True for an RMSNorm over each head of queries and of keys."""
    has_window: bool = False
    """True where every layer attends to `sliding_window` tokens only, unless that is null."""
    is_parallelised: bool = False
    """True where the tensor, pipeline and sequence parallelism of plugin 3d are supported."""
    defaults: Mapping[str, int] = field(default_factory=dict)
    """Values of keys that config.json lacks, where that is not what LLaMA takes."""

    def has_bias(self, layer: str, config: Any) -> bool:
        """True when a linear layer (`q_proj` …) has a bias."""
        if layer in ("gate_proj", "up_proj", "down_proj"):
            return self.mlp_bias and bool(getattr(config, "mlp_bias", False))
        if self.attention_bias == "configured":
            return bool(getattr(config, "attention_bias", False))
        return self.attention_bias == "query_key_value" and layer != "o_proj"

    def complete(self, config: Mapping[str, Any]) -> SimpleNamespace:
        """The settings of a config.json as attributes, with those that it lacks."""
        return SimpleNamespace(**{**self.defaults, **config})


ARCHITECTURES = (
    Architecture(
        model_type="llama",
        causal_class="LlamaForCausalLM",
        families="LLaMA 1 to 3.3, Yi, SmolLM, SmolLM2, TinyLlama",
        attention_bias="configured",
        mlp_bias=True,
        is_parallelised=True,
    ),
    Architecture(
        model_type="mistral",
        causal_class="MistralForCausalLM",
        families="Mistral 7B v0.1 to v0.3, Mistral Nemo",
        attention_bias="none",
        has_window=True,
        defaults={"num_key_value_heads": 8, "sliding_window": 4096},
    ),
    Architecture(
        model_type="qwen2",
        causal_class="Qwen2ForCausalLM",
        families="Qwen1.5, Qwen2, Qwen2.5",
        attention_bias="query_key_value",
        defaults={"num_key_value_heads": 32},
    ),
    Architecture(
        model_type="qwen3",
        causal_class="Qwen3ForCausalLM",
        families="Qwen3 (dense)",
        attention_bias="configured",
        has_qk_norm=True,
        defaults={"num_key_value_heads": 32, "head_dim": 128},
    ),
)
_BY_MODEL_TYPE = {architecture.model_type: architecture for architecture in ARCHITECTURES}


def find_architecture(model_type: str) -> Architecture | None:
    """The architecture of this `model_type`; None for one that is not in the table."""
    return _BY_MODEL_TYPE.get(model_type)


def architecture_of(config: Any) -> Architecture:
    """The architecture of a configuration (transformers', or an object with the same names)."""
    return _BY_MODEL_TYPE[getattr(config, "model_type", "llama")]


def trainable_architecture(model_type: str, place: object) -> Architecture:
    """The architecture of this `model_type`.

    Args:
        model_type: from config.json.
        place: the model's directory, for the message.

    Raises:
        UserError: it is not in the table.
    """
    architecture = find_architecture(model_type)
    if architecture is None:
        supported = "; ".join(f"{each.model_type} ({each.families})" for each in ARCHITECTURES)
        raise UserError(f"{place} is a model of type {model_type!r}, and this suite trains {supported}")
    return architecture


def window_tokens(config: Any) -> int | None:
    """Number of tokens that a token attends to, itself included; None without a window."""
    return getattr(config, "sliding_window", None) if architecture_of(config).has_window else None


def head_width(config: Any) -> int:
    """Dimensions of a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def key_value_heads(config: Any) -> int:
    """Number of key-value heads."""
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def layer_tensors(config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names within a decoder layer and shapes of its tensors."""
    architecture, width, inner = architecture_of(config), config.hidden_size, config.intermediate_size
    head = head_width(config)
    queries, keys = config.num_attention_heads * head, key_value_heads(config) * head
    linear = {
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    for name, shape in linear.items():
        yield f"{name}.weight", shape
        if architecture.has_bias(name.split(".")[1], config):
            yield f"{name}.bias", shape[:1]
    if architecture.has_qk_norm:
        yield "self_attn.q_norm.weight", (head,)
        yield "self_attn.k_norm.weight", (head,)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield f"{norm}.weight", (width,)
