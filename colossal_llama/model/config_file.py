"""config.json and generation_config.json, read and checked. Imports no torch.

transformers takes any key of these files as an attribute of its configurations, whatever the value.
What it would do with a damaged one is seen late, as a traceback, or never.
"""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from colossal_llama.model.architectures import find_architecture
from colossal_llama.model.config_keys import ROPE_TYPES, NotTranslatableError, portable_config
from colossal_llama.utils.custom_code import refuse_custom_code
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.json_files import read_json_object
from colossal_llama.utils.transformers_version import is_transformers_5

CONFIG_FILE, GENERATION_CONFIG_FILE = "config.json", "generation_config.json"
_HARMLESS_PRIVATE_KEYS = (
    "_name_or_path",
    "_model_name_or_path",
    "_commit_hash",
    "_attn_implementation_autoset",
    "_from_model_config",
    "_original_object_hash",
    "_flash_attn_2_enabled",
    "_num_labels",
    "_comment",
)
"""Private keys that transformers has written into the files of published models; and comments.

transformers reads neither the attention switch of its 4.34 and 4.35 nor this number of labels, nor
the name of a model that it converted from GGUF."""
_OTHER_FILES_KEY = "configuration_files"
"""Names of further files, which transformers reads in place of config.json."""
_LARGEST_SIZE, _MOST_LAYERS = 2**31 - 1, 10_000
_NEEDED_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_OTHER_SIZES = ("num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window")
_NUMBERS_ABOVE_0 = ("rms_norm_eps", "rope_theta")
_SWITCHES = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_cache", "use_sliding_window")
_FIXED = {"return_dict": True, "torchscript": False, "is_encoder_decoder": False, "partial_rotary_factor": 1.0}
"""Values that change what a model returns, or how it computes, to what none of the table has."""
_ROPE_PARAMETERS, _PARTIAL = "rope_parameters", "partial_rotary_factor"
_ROPE_NEEDS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
_ROPE_NUMBERS_ABOVE_0 = ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
_ROPE_NUMBERS = ("rope_theta", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
"""Numbers that may be absent (null), and 0 for transformers' own choice."""


def read_model_config(directory: Path) -> dict[str, Any]:
    """Reads and checks the config.json of a model directory.

    Sizes and numbers are checked for the architectures of `model.architectures`; others are for
    inference alone. Keys of transformers 5 are translated into those that both versions read.

    Raises:
        UserError: it is missing or damaged, has impossible values, or private keys, by which a
            file can make transformers load foreign code.
    """
    if not directory.is_dir():
        raise UserError(f"model directory {directory} does not exist")
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{directory} holds no model: {CONFIG_FILE} is not there")
    refuse_custom_code(directory)
    config = read_json_object(path, "copy the model again")
    _refuse_private_keys(path, config)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise UserError(f"{path}: model_type is {_shown(kind)}, not the name of an architecture; copy the model again")
    architecture = find_architecture(kind)
    if architecture is None and is_transformers_5():
        return config  # as this version reads it itself
    defaults = architecture.defaults if architecture else {}
    checked = {**defaults, **config}
    _refuse(path, _problems(checked) if architecture else _rope_problems(checked, (_ROPE_PARAMETERS,)))
    try:
        return portable_config(config, defaults)
    except NotTranslatableError as error:
        raise UserError(f"{path}: {error}; correct the file, or use another model") from error


def make_config_portable(directory: Path) -> None:
    """Rewrites a config.json that transformers has written, with the keys that 4.51 and 5 read."""
    path = directory / CONFIG_FILE
    config = read_json_object(path)
    if (portable := portable_config(config)) != config:
        path.write_text(json.dumps(portable, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_generation_config(directory: Path) -> dict[str, Any]:
    """Reads and checks the generation_config.json of a model directory; empty where there is none.

    transformers itself makes another one up in place of a file that is not JSON.

    Raises:
        UserError: the file is damaged.
    """
    path = directory / GENERATION_CONFIG_FILE
    if not path.is_file():
        return {}
    settings = read_json_object(path, "copy the model again")
    _refuse_private_keys(path, settings)
    _refuse(path, _token_problems(settings))
    return settings


def _refuse(path: Path, problems: Iterable[str]) -> None:
    found = [f"{path}: {problem}; correct the file, or copy the model again" for problem in problems]
    if found:
        raise UserError(found)


def _refuse_private_keys(path: Path, config: dict[str, Any]) -> None:
    private = [key for key in config if key.startswith("_") and key not in _HARMLESS_PRIVATE_KEYS]
    private += [_OTHER_FILES_KEY] if _OTHER_FILES_KEY in config else []
    if private:
        raise UserError(
            f"{path} sets {', '.join(private)}, which belongs to the inside of transformers and could make it load "
            "other code or other files: remove it from the file if you trust the model"
        )


def _problems(config: dict[str, Any]) -> Iterator[str]:
    """Problems of the configuration of a model of the table, one phrase each."""
    sizes = {key: config.get(key) for key in (*_NEEDED_SIZES, *_OTHER_SIZES)}
    wrong = [key for key, value in sizes.items() if not _is_size(value) and (value is not None or key in _NEEDED_SIZES)]
    yield from (f"{key} is {_shown(sizes[key])}, not a positive whole number" for key in wrong)
    if not wrong:
        yield from _shape_problems(sizes)
    for key in _NUMBERS_ABOVE_0:
        if (key in config or key == "rms_norm_eps") and not _is_number(config.get(key), above=0):
            yield f"{key} is {_shown(config.get(key))}, not a number above 0"
    for key, most in (("attention_dropout", 0.999), ("initializer_range", 1e6)):
        if key in config and not (_is_number(config[key]) and 0 <= config[key] <= most):
            yield f"{key} is {_shown(config[key])}, not a number from 0 to {most:g}"
    for key in _SWITCHES:
        if config.get(key) is not None and not isinstance(config[key], bool):
            yield f"{key} is {_shown(config[key])}, not true or false"
    rope = config.get(_ROPE_PARAMETERS)
    moved = {_PARTIAL: rope[_PARTIAL]} if isinstance(rope, dict) and _PARTIAL in rope else {}
    for key, value in ({**config, **moved}).items():
        if key in _FIXED and value != _FIXED[key]:
            yield f"{key} is {_shown(value)}, and a LLaMA has {_FIXED[key]}"
    if "num_labels" in config and not _is_size(config["num_labels"]):
        yield f"num_labels is {_shown(config['num_labels'])}, not a positive whole number"
    if config.get("pruned_heads"):
        yield "pruned_heads is given: models without some of their heads are not supported"
    yield from _token_problems(config)
    yield from _rope_problems(config)


def _shape_problems(sizes: dict[str, Any]) -> Iterator[str]:
    heads, width = sizes["num_attention_heads"], sizes["hidden_size"]
    key_value_heads = sizes["num_key_value_heads"] or heads
    if sizes["num_hidden_layers"] > _MOST_LAYERS:
        yield f"num_hidden_layers is {sizes['num_hidden_layers']:,}, more than {_MOST_LAYERS:,}"
    if sizes["head_dim"] is None and width % heads:
        yield f"hidden_size {width} is not divisible by num_attention_heads {heads}"
    elif (sizes["head_dim"] or width // heads) % 2:
        yield f"the heads have {sizes['head_dim'] or width // heads} dimensions: rotary embeddings need an even number"
    if heads % key_value_heads:
        yield f"num_attention_heads {heads} is not divisible by num_key_value_heads {key_value_heads}"


def _token_problems(config: dict[str, Any]) -> Iterator[str]:
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = config.get(key)
        listed = ids if isinstance(ids, list) and key == "eos_token_id" else [] if ids is None else [ids]
        if not all(type(token) is int for token in listed):
            yield f"{key} is {_shown(ids)}, not a token id"
    padding, vocabulary = config.get("pad_token_id"), config.get("vocab_size")
    if type(padding) is int and type(vocabulary) is int and not -vocabulary <= padding < vocabulary:
        yield f"pad_token_id is {padding}, and the vocabulary has {vocabulary:,} tokens"


def _rope_problems(config: dict[str, Any], keys: Iterable[str] = ("rope_scaling", _ROPE_PARAMETERS)) -> Iterator[str]:
    """Problems of the rotary embeddings, about which transformers only warns."""
    for key in keys:
        scaling = config.get(key)
        if isinstance(scaling, dict):
            yield from _scaling_problems(key, scaling, _pairs(config))
        elif scaling is not None:
            yield f"{key} is {_shown(scaling)}, not an object"


def _scaling_problems(key: str, scaling: dict[str, Any], pairs: int) -> Iterator[str]:
    """Problems of the values of `rope_scaling`, or `rope_parameters` in transformers 5."""
    # transformers takes the older name where there are both.
    kind = scaling.get("type", scaling.get("rope_type", "default" if key == _ROPE_PARAMETERS else None))
    if kind not in ROPE_TYPES:
        yield f"{key} has the type {_shown(kind)}, which is none of {', '.join(ROPE_TYPES)}"
    elif lacking := [name for name in _ROPE_NEEDS.get(kind, ()) if name not in scaling]:
        yield f"{key} is of type {kind} and lacks {' and '.join(lacking)}"
    for name, value in scaling.items():
        least = 1 if name == "factor" else 0
        if isinstance(value, dict):  # values for a kind of layers
            continue
        if isinstance(value, list):  # longrope: a factor for each pair of a head's dimensions
            is_right = all(_is_number(number, above=0) for number in value) and len(value) in (0, pairs)
        elif name in _ROPE_NUMBERS_ABOVE_0 and not (value is None and key == _ROPE_PARAMETERS):
            is_right = _is_number(value, above=0) and value >= least
        else:
            is_word = isinstance(value, str | bool) and name not in _ROPE_NUMBERS
            is_right = value is None or is_word or (_is_number(value) and value >= 0)
        if not is_right:
            yield f"{key} has {name} {_shown(value)}, which no rotary embedding can have"
    if scaling.get("low_freq_factor") and scaling["low_freq_factor"] == scaling.get("high_freq_factor"):
        yield f"{key} has a low_freq_factor that equals its high_freq_factor"


def _pairs(config: dict[str, Any]) -> int:
    """Number of pairs of dimensions of a head; 0 where the sizes are wrong."""
    sizes: list[Any] = [config.get(key) for key in ("hidden_size", "num_attention_heads", "head_dim")]
    width, heads, head = sizes
    if head is None and _is_size(width) and _is_size(heads):
        head = width // heads
    return head // 2 if _is_size(head) else 0


def _is_size(value: object) -> bool:
    return type(value) is int and 0 < value <= _LARGEST_SIZE


def _is_number(value: object, above: float = -math.inf) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > above


def _shown(value: object) -> str:
    """A JSON value, shortened."""
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
