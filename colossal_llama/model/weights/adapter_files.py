"""Configuration of a LoRA adapter directory, read without peft, whose import takes a second."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from colossal_llama.utils.atomic_io import write_json, write_text
from colossal_llama.utils.custom_code import refuse_custom_code
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.hub.fetch import snapshot_name
from colossal_llama.utils.hub.names import ModelName, path_or_name
from colossal_llama.utils.json_files import read_json_object

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


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


def write_adapter_card(path: Path) -> None:
    """Writes README.md of an adapter directory, in place of peft's, a form to be filled."""
    settings = load_adapter_config(path)
    base, targets = settings.get("base_model_name_or_path"), settings["target_modules"]
    listed = targets if isinstance(targets, str) else ", ".join(sorted(targets))
    whole = "".join(f", {name} as a whole" for name in sorted(settings.get("modules_to_save") or ()))
    lines = [
        "---\nlibrary_name: peft\n---\n",
        "# LoRA adapter\n",
        f"Of the base model `{base}`: rank {settings['r']}, alpha {settings['lora_alpha']:g}, dropout "
        f"{settings['lora_dropout']:g}. Trained are {listed}{whole}.\n",
        "```python\nfrom peft import AutoPeftModelForCausalLM\n",
        "model = AutoPeftModelForCausalLM.from_pretrained(PATH_OF_THIS_DIRECTORY)\n```\n",
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
