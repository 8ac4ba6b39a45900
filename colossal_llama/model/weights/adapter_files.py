"""Configuration of a LoRA adapter directory, read without peft, whose import takes a second."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from colossal_llama.model.expansion.new_rows import first_new_row
from colossal_llama.model.weights.weight_files import read_shard
from colossal_llama.utils.atomic_io import write_json, write_text
from colossal_llama.utils.custom_code import refuse_custom_code
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.hub.fetch import snapshot_name
from colossal_llama.utils.hub.names import ModelName, path_or_name
from colossal_llama.utils.json_files import read_json_object

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
EMBEDDINGS = {
    "embed_tokens": "base_model.model.model.embed_tokens.weight",
    "lm_head": "base_model.model.lm_head.weight",
}
"""Modules that are saved as a whole with an adapter whose new rows are trained, and their tensors.

Every version of peft reads them. A list of rows (`trainable_token_indices`) would be smaller, but
versions before 0.15 fail on it.
"""

_SETTINGS = frozenset(
    [
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layer_replication",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "megatron_config",
        "megatron_core",
        "modules_to_save",
        "peft_type",
        "r",
        "rank_pattern",
        "revision",
        "target_modules",
        "task_type",
        "use_dora",
        "use_rslora",
    ]
)
"""Settings that peft 0.13 knows; it refuses an adapter with any other."""


def is_adapter(path: Path) -> bool:
    """True when a directory holds an adapter, not a whole model."""
    return (path / ADAPTER_CONFIG).is_file()


def load_adapter_config(path: Path) -> dict[str, Any]:
    """Reads the adapter's configuration.

    Raises:
        UserError: it cannot be read, or lacks `r`, `lora_alpha`, `lora_dropout` or
            `target_modules`.
    """
    return _read_config(path, ("r", "lora_alpha", "lora_dropout", "target_modules"))


def adapter_base_name(path: Path) -> str:
    """Reads the base model that an adapter names: a directory, or ORG/NAME@REVISION of a hub.

    Raises:
        UserError: its configuration cannot be read, or does not name one.
    """
    name = "base_model_name_or_path"
    settings = _read_config(path, (name,))
    base, revision = settings[name], settings.get("revision")
    is_name = isinstance(path_or_name(base), ModelName)
    return f"{base}@{revision}" if is_name and isinstance(revision, str) and "@" not in base else base


def whole_modules(path: Path) -> tuple[str, ...]:
    """Names of the modules that an adapter replaces as a whole (peft's `modules_to_save`).

    Raises:
        UserError: its configuration cannot be read.
    """
    names = _read_config(path, ()).get("modules_to_save") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path / ADAPTER_CONFIG} cannot be used: modules_to_save is {names!r}")
    return tuple(sorted(names))


def make_adapter_portable(path: Path, defaults: Mapping[str, Any]) -> None:
    """Leaves out of an adapter's configuration what older versions of peft refuse and nobody needs.

    Args:
        path: directory of the adapter.
        defaults: of the settings of the installed version.
    """
    settings = read_json_object(path / ADAPTER_CONFIG)
    kept = {name: value for name, value in settings.items() if name in _SETTINGS or value != defaults.get(name)}
    kept.pop("peft_version", None)
    write_json(path / ADAPTER_CONFIG, kept)


def name_embeddings(path: Path) -> None:
    """Names the embeddings in an adapter's configuration as modules that it replaces as a whole."""
    settings = read_json_object(path / ADAPTER_CONFIG)
    write_json(path / ADAPTER_CONFIG, settings | {"modules_to_save": sorted(EMBEDDINGS)})


def check_embeddings(path: Path, base: Path, rows: int) -> None:
    """Refuses an adapter whose embeddings are missing, or have other rows than the base model's.

    Raises:
        UserError: names the tensor, or both numbers of rows.
    """
    shapes, whole = read_shard(path / ADAPTER_WEIGHTS).tensors, whole_modules(path)
    for module, name in EMBEDDINGS.items():
        if module in whole and name not in shapes:
            raise UserError(
                f"{path / ADAPTER_WEIGHTS} has no {name}, which modules_to_save in {ADAPTER_CONFIG} names: copy the "
                "adapter again"
            )
        if name in shapes and shapes[name].shape[:1] != (rows,):
            raise UserError(
                f"the adapter {path} has embeddings of {max(shapes[name].shape[:1]):,} rows, the model in {base} has "
                f"{rows:,}: it was trained on a model with another vocabulary; give that one (base_model_name_or_path "
                f"in its {ADAPTER_CONFIG})"
            )


def name_base_repository(path: Path) -> None:
    """Names the base model in an adapter's configuration by repository and commit, if it has them.

    That is where its directory is in the cache of the Hugging Face hub, which other hosts and other
    programs have elsewhere.
    """
    settings = read_json_object(path / ADAPTER_CONFIG)
    base = settings.get("base_model_name_or_path")
    if base and (name := snapshot_name(Path(base))):
        settings |= {"base_model_name_or_path": name.repository, "revision": name.revision}
        write_json(path / ADAPTER_CONFIG, settings)


def write_adapter_card(path: Path, trains_new_rows_only: bool = False) -> None:
    """Writes README.md of an adapter directory, in place of peft's, a form to be filled.

    Args:
        path: directory of the adapter.
        trains_new_rows_only: True where of the modules saved as a whole only new rows were trained.
    """
    settings = load_adapter_config(path)
    base, targets = settings.get("base_model_name_or_path"), settings["target_modules"]
    listed = targets if isinstance(targets, str) else ", ".join(sorted(targets))
    whole = sorted(settings.get("modules_to_save") or ())
    revision = f', revision="{settings["revision"]}"' if settings.get("revision") else ""
    trained = "".join(f", {name} as a whole" for name in whole)
    if trains_new_rows_only:
        trained = f", and the rows from {first_new_row(path):,} on of {' and '.join(whole)}, saved as whole matrices"
    lines = [
        "---\nlibrary_name: peft\n---\n",
        "# LoRA adapter\n",
        f"Of the base model `{base}`: rank {settings['r']}, alpha {settings['lora_alpha']:g}, dropout "
        f"{settings['lora_dropout']:g}. Trained are {listed}{trained}.\n",
        # peft's AutoPeftModel of before 0.14 cuts off rows of the embeddings that only pad them.
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n",
        f'base = AutoModelForCausalLM.from_pretrained("{base}"{revision})',
        "model = PeftModel.from_pretrained(base, PATH_OF_THIS_DIRECTORY)\n```\n",
    ]
    write_text(path / "README.md", "\n".join(lines))


def _read_config(path: Path, needed: tuple[str, ...]) -> dict[str, Any]:
    refuse_custom_code(path)
    settings = read_json_object(path / ADAPTER_CONFIG)
    absent = [name for name in needed if settings.get(name) is None]
    if absent:
        raise UserError(f"{path / ADAPTER_CONFIG} cannot be used: {', '.join(absent)} is missing")
    wrong = [name for name in needed if not _IS_RIGHT[name](settings[name])]
    if wrong:
        shown = ", ".join(f"{name} is {settings[name]!r}" for name in wrong)
        raise UserError(f"{path / ADAPTER_CONFIG} cannot be used: {shown}; copy the adapter again")
    return settings


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


_IS_RIGHT: dict[str, Callable[[Any], bool]] = {
    "r": lambda value: type(value) is int and value > 0,
    "lora_alpha": lambda value: _is_number(value) and value > 0,
    "lora_dropout": lambda value: _is_number(value) and 0 <= value < 1,
    "target_modules": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "base_model_name_or_path": lambda value: isinstance(value, str) and bool(value),
}
