"""Tensors that a model of a configuration has, compared with those of its weight files.

transformers makes up a tensor that is missing and leaves out one that it does not expect, as when a
digit of num_hidden_layers is lost. Imports no torch.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from colossal_llama.model.architectures import layer_tensors, trainable_architecture
from colossal_llama.model.config_file import CONFIG_FILE
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.errors import UserError

_BUFFER = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$")
"""Buffers that early versions of transformers and their forks saved, and computed anew."""
_SHOWN = 3


def expected_tensors(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all tensors of a model.

    Args:
        config: of an architecture of `model.architectures`, checked by
            `model.config_file.read_model_config`.
    """
    settings = trainable_architecture(config["model_type"], CONFIG_FILE).complete(config)
    yield "model.embed_tokens.weight", (settings.vocab_size, settings.hidden_size)
    for layer in range(settings.num_hidden_layers):
        for name, shape in layer_tensors(settings):
            yield f"model.layers.{layer}.{name}", shape
    yield "model.norm.weight", (settings.hidden_size,)
    yield "lm_head.weight", (settings.vocab_size, settings.hidden_size)


def check_tensors(directory: Path, found: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> None:
    """Refuses weight files that are not those of the configuration.

    Args:
        directory: of the model, for messages.
        found: shapes by name.
        config: of an architecture of `model.architectures`.

    Raises:
        UserError: tensors are missing, have other shapes, or belong to more layers or biases than
            the configuration has.
    """
    if not any(name.startswith("model.") for name in found):  # saved without its output layer
        found = {name if name == "lm_head.weight" else f"model.{name}": shape for name, shape in found.items()}
    expected = dict(expected_tensors(config))
    is_tied = bool(config.get("tie_word_embeddings"))
    missing = [name for name in expected if name not in found and not (is_tied and name == "lm_head.weight")]
    other = [name for name in expected if name in found and found[name] != expected[name]]
    more = [name for name in found if name not in expected and not _BUFFER.search(name)]
    inside = [name for name in more if name.startswith("model.")]
    problems = []
    if missing:
        problems.append(f"the weights in {directory} are incomplete: {len(missing)} tensors are missing")
        problems[-1] += f" ({_list(missing)}); copy the model anew"
    if other:
        name = other[0]
        problems.append(
            f"the weights in {directory} do not fit its config.json: {len(other)} tensors have other shapes ({name} is "
            f"{list(found[name])}, by config.json {list(expected[name])}); copy the model anew"
        )
    if inside:
        problems.append(
            f"the weights in {directory} have {len(inside)} tensors that its config.json has no place for "
            f"({_list(inside)}): it is that of another model, or was changed; copy the model anew"
        )
    if problems:
        raise UserError(problems)
    if more:
        log_rank_zero(f"{len(more)} tensors in {directory} are no part of the model and are left out: {_list(more)}")


def _list(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")
