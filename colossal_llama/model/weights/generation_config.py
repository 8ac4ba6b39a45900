"""Text generation settings (generation_config.json), written as they were read."""

from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from colossal_llama.model.config_file import make_config_portable


def write_generation_config(model: PreTrainedModel, directory: Path) -> None:
    """Writes the model's generation_config.json, if it has such settings.

    `GenerationConfig.save_pretrained` refuses a temperature or top_p without do_sample, which the
    files of many published models have.
    """
    if model.generation_config is not None:
        (directory / GENERATION_CONFIG_NAME).write_text(model.generation_config.to_json_string(), encoding="utf-8")


def save_model(model: PreTrainedModel, directory: Path) -> None:
    """Calls `PreTrainedModel.save_pretrained`, whatever the text generation settings are."""
    settings = model.generation_config
    model.generation_config = GenerationConfig()
    model.save_pretrained(directory)
    make_config_portable(directory)
    model.generation_config = settings
    write_generation_config(model, directory)
