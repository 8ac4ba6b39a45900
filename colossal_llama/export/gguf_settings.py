"""Settings of a model's computation as llama.cpp names them, or the reason why it has none."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from colossal_llama.model.architectures import head_width, key_value_heads, window_tokens
from colossal_llama.utils.errors import UserError

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PretrainedConfig

_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")


@dataclass(frozen=True)
class GgufSettings:
    """Settings of a configuration that go into a GGUF file.

    Attributes:
        architecture: llama.cpp's name.
        config: the configuration, defaults included.
        rope: rotary embeddings: `rope_theta`, `rope_type` and the parameters of the type.
        context_length: most tokens for which llama.cpp computes what transformers does.
        notes: what llama.cpp does otherwise than transformers, a sentence each.
    """

    architecture: str
    config: "PretrainedConfig"
    rope: dict[str, Any]
    context_length: int
    notes: list[str]


def read_settings(config: "PretrainedConfig") -> GgufSettings:
    """Reads a configuration.

    Raises:
        UserError: llama.cpp does not compute such a model.
    """
    rope = _rope(config)
    if problems := list(_problems(config, rope)):
        raise UserError([f"--gguf: {problem}" for problem in problems])
    context, notes = config.max_position_embeddings, []
    if (window := window_tokens(config)) and window < context:
        notes.append(f"llama.cpp has no sliding window for this architecture: the context is set to it, {window:,}")
        context = window
    if rope["rope_type"] == "dynamic":
        notes.append(f"llama.cpp does not scale rotary embeddings dynamically: keep to {context:,} tokens")
    return GgufSettings(_ARCHITECTURES[config.model_type], config, rope, context, notes)


def _rope(config: "PretrainedConfig") -> dict[str, Any]:
    """Rotary embeddings, from the keys of either version of transformers."""
    scaling = {**(getattr(config, "rope_scaling", None) or {}), **(getattr(config, "rope_parameters", None) or {})}
    rope = {"rope_theta": getattr(config, "rope_theta", None), "rope_type": scaling.get("type", "default"), **scaling}
    if rope.get("original_max_position_embeddings") is None:
        rope["original_max_position_embeddings"] = config.max_position_embeddings
    return rope


def _problems(config: "PretrainedConfig", rope: dict[str, Any]) -> Iterator[str]:
    if config.model_type not in _ARCHITECTURES:
        yield f"models of type {config.model_type} are not converted; {', '.join(_ARCHITECTURES)} are"
        return
    if config.model_type == "qwen3" and config.attention_bias:
        yield "llama.cpp's qwen3 has no attention_bias"
    if getattr(config, "partial_rotary_factor", None) not in (None, 1.0):
        yield f"partial_rotary_factor is {config.partial_rotary_factor}, and llama.cpp rotates whole heads"
    if rope["rope_type"] not in _ROPE_TYPES:
        yield f"rotary embeddings of type {rope['rope_type']} are not converted; {', '.join(_ROPE_TYPES)} are"
    elif rope["rope_type"] == "yarn":
        own = ("attention_factor", "mscale", "mscale_all_dim")
        if given := [name for name in own if rope.get(name) is not None]:
            yield f"rotary embeddings of type yarn with {', '.join(given)} are not converted"


def add_settings(writer: "GGUFWriter", settings: GgufSettings) -> None:
    """Adds the settings to a file's metadata."""
    from gguf import RopeScalingType

    config, rope = settings.config, settings.rope
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(settings.context_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(key_value_heads(config))
    writer.add_key_length(head_width(config))
    writer.add_value_length(head_width(config))
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_width(config))
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        for name in ("beta_fast", "beta_slow"):
            if rope.get(name) is not None:
                getattr(writer, f"add_rope_scaling_yarn_{name}")(rope[name])
