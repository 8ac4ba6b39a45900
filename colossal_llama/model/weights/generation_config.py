"""Text generation settings (generation_config.json), written as they were read, with more stops."""

import copy
from collections.abc import Sequence
from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from colossal_llama.model.config_file import make_config_portable


def write_generation_config(model: PreTrainedModel, directory: Path, stop_ids: Sequence[int] = ()) -> None:
    """Writes the model's generation_config.json, if it has such settings or there are stops.

    `GenerationConfig.save_pretrained` refuses a temperature or top_p without do_sample, which the
    files of many published models have.

    Args:
        model: a model, or adapters on one.
        directory: receives the file.
        stop_ids: tokens that end an answer, besides those of the settings.
    """
    settings = model.generation_config
    if stop_ids:
        settings = with_stop_ids(settings or GenerationConfig(), stop_ids)
    if settings is not None:
        (directory / GENERATION_CONFIG_NAME).write_text(settings.to_json_string(), encoding="utf-8")


def with_stop_ids(settings: GenerationConfig, stop_ids: Sequence[int]) -> GenerationConfig:
    """Copies settings, with more tokens that end an answer."""
    configured = settings.eos_token_id
    listed = configured if isinstance(configured, list) else [] if configured is None else [configured]
    ids = list(dict.fromkeys([*listed, *stop_ids]))
    if ids == listed:
        return settings
    changed = copy.deepcopy(settings)
    changed.eos_token_id = ids if len(ids) > 1 else ids[0]
    changed._from_model_config = False  # transformers 4.51 derives marked ones from config.json again
    return changed


def save_model(model: PreTrainedModel, directory: Path) -> None:
    """Calls `PreTrainedModel.save_pretrained`, whatever the text generation settings are."""
    settings = model.generation_config
    model.generation_config = GenerationConfig()
    model.save_pretrained(directory)
    make_config_portable(directory)
    model.generation_config = settings
    write_generation_config(model, directory)
