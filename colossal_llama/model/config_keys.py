"""Keys of config.json that transformers 5 moved, in those that 4.51 and 5 read. Imports no torch.

| transformers 5 | both |
|---|---|
| `dtype` | `torch_dtype` |
| `rope_parameters` with `rope_theta` and more | `rope_theta`; `rope_scaling` with the rest |

Where 4.51 and 5 compute other frequencies from the same values (yarn, longrope), the values are
changed so that both compute what 5 computes from the file as it was.
"""

import math
from collections.abc import Mapping
from typing import Any

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")
_DEFAULT_ROPE_THETA = 10_000.0
_ORIGINAL_LENGTH = "original_max_position_embeddings"
_BETAS = {"beta_fast": 32, "beta_slow": 1}
"""Settings of yarn, and transformers' defaults."""


class NotTranslatableError(ValueError):
    """Rotary embeddings that transformers 4.51 cannot compute, or contradictory keys."""


def portable_config(config: Mapping[str, Any], defaults: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Copies the content of a config.json, with the keys that 4.51 and 5 read.

    Args:
        config: the content.
        defaults: values of keys that it lacks.

    Raises:
        NotTranslatableError: says why, as a phrase whose subject is the file.
    """
    copy = dict(config)
    if (dtype := copy.pop("dtype", None)) is not None:
        copy["torch_dtype"] = dtype
    parameters = copy.pop("rope_parameters", None)
    return copy if parameters is None else {**copy, **_rope_keys({**defaults, **copy}, parameters)}


def _rope_keys(config: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """Translates rotary embeddings; older keys that are there, too, must say the same."""
    if nested := [key for key, value in parameters.items() if isinstance(value, dict)]:
        raise NotTranslatableError(
            f"rope_parameters has values of their own for {' and '.join(nested)} layers, which transformers 4.51 "
            "cannot compute"
        )
    given = {key: value for key, value in parameters.items() if value is not None}
    given["rope_type"] = given.pop("type", given.get("rope_type", "default"))
    old_theta, old_scaling = config.get("rope_theta"), config.get("rope_scaling")
    if old_theta is not None and given.setdefault("rope_theta", old_theta) != old_theta:
        raise NotTranslatableError(
            f"rope_theta is {old_theta}, and {given['rope_theta']} in rope_parameters: one of them is wrong"
        )
    keys = _translated(config, given)
    if not old_scaling:
        return keys
    if _scaling_of(old_scaling) not in (_scaling_of(given), _scaling_of(keys["rope_scaling"] or {})):
        raise NotTranslatableError("rope_scaling and rope_parameters have different values: one of them is wrong")
    return {"rope_theta": given["rope_theta"]} if "rope_theta" in given else {}


def _scaling_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings for comparison: without the base, and with one name for the type."""
    others = {key: value for key, value in settings.items() if value is not None and key != "rope_theta"}
    kind = others.pop("type", others.get("rope_type", "default"))
    return {**(others if kind != "default" else {}), "rope_type": kind}


def _translated(config: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """Keys of 4.51 for `rope_parameters`."""
    scaling = dict(parameters)
    moved = ("rope_theta", "partial_rotary_factor")
    keys: dict[str, Any] = {name: scaling.pop(name) for name in moved if name in scaling}
    kind = scaling["rope_type"]
    if kind == "proportional" and keys.pop("partial_rotary_factor", 1) == 1:  # all dimensions: the linear one
        kind = scaling["rope_type"] = "linear" if "factor" in scaling else "default"
    if kind == "proportional":
        raise NotTranslatableError("rope_parameters is of type proportional, which transformers 4.51 does not know")
    if kind == "default":
        return {**keys, "rope_scaling": None}
    length_tokens: Any = config.get("max_position_embeddings")
    if kind in ("llama3", "yarn", "longrope"):
        original_tokens = config.get(_ORIGINAL_LENGTH) or scaling.get(_ORIGINAL_LENGTH) or length_tokens
        if not original_tokens or not length_tokens:
            raise NotTranslatableError(f"rope_parameters is of type {kind}, and there is no max_position_embeddings")
        # transformers 5 takes this key first wherever it stands; 4.51 reads it for longrope alone.
        keys[_ORIGINAL_LENGTH] = scaling[_ORIGINAL_LENGTH] = original_tokens
    if kind == "yarn":
        theta = keys.get("rope_theta", _DEFAULT_ROPE_THETA)
        scaling = _yarn(scaling, length_tokens, theta, _head_dimensions(config))
        keys[_ORIGINAL_LENGTH] = scaling.get(_ORIGINAL_LENGTH, length_tokens)
    if kind == "longrope":
        scaling = _longrope(scaling, length_tokens)
    return {**keys, "rope_scaling": scaling}


def _yarn(scaling: dict[str, Any], length_tokens: int, theta: float, dimensions: int) -> dict[str, Any]:
    """Values with which 4.51 computes what 5 computes.

    4.51 has no `truncate`, and takes the ratio of both lengths for the factor wherever an original
    length is given. Without one it takes the full length in its place. The formula has lengths
    only as `length / beta`, so that the betas can make up for it.
    """
    original_tokens = scaling[_ORIGINAL_LENGTH]
    written = {key: value for key, value in scaling.items() if key != "truncate"}
    written.setdefault("factor", length_tokens / original_tokens)
    if written["factor"] != length_tokens / original_tokens:
        del written[_ORIGINAL_LENGTH]
        for name, default in _BETAS.items():
            written[name] = (scaling.get(name) or default) * length_tokens / original_tokens
    truncates = scaling.get("truncate", True)
    limits = _correction_limits(scaling, original_tokens, theta, dimensions, truncates)
    if limits != _correction_limits(written, written.get(_ORIGINAL_LENGTH, length_tokens), theta, dimensions, True):
        raise NotTranslatableError(
            f"rope_parameters of type yarn has {'values' if truncates else 'truncate false'}, with which transformers "
            "4.51 cannot compute the same frequencies"
        )
    return written


def _correction_limits(
    scaling: dict[str, Any], length_tokens: float, theta: float, dimensions: int, truncates: bool
) -> tuple[float, float]:
    """First and last dimension between which yarn interpolates (arXiv 2309.00071)."""
    if theta <= 1:
        raise NotTranslatableError(f"rope_parameters is of type yarn, and its rope_theta is {theta}, not above 1")
    betas = [scaling.get(name) or default for name, default in _BETAS.items()]
    low, high = (dimensions * math.log(length_tokens / (beta * 2 * math.pi)) / (2 * math.log(theta)) for beta in betas)
    if truncates:
        low, high = math.floor(low), math.ceil(high)
    return max(low, 0), min(high, dimensions - 1)


def _longrope(scaling: dict[str, Any], length_tokens: int) -> dict[str, Any]:
    """Values of the scaling; 4.51 takes the ratio of both lengths for the factor."""
    original_tokens = scaling.pop(_ORIGINAL_LENGTH)
    ratio = length_tokens / original_tokens
    factor = scaling.setdefault("factor", ratio)
    if factor != ratio and "attention_factor" not in scaling:
        grown = math.sqrt(1 + math.log(factor) / math.log(original_tokens)) if factor > 1 else 1.0
        scaling["attention_factor"] = grown
    return scaling


def _head_dimensions(config: dict[str, Any]) -> int:
    try:
        return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    except KeyError as error:
        raise NotTranslatableError(f"rope_parameters is of type yarn, and there is no {error.args[0]}") from error
