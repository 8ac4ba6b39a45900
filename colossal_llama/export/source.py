"""Source of an export: finds the model, its base and its tokenizer, and refuses what is damaged."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama.model.config_file import CONFIG_FILE, read_generation_config, read_model_config
from colossal_llama.model.loading import load_config
from colossal_llama.model.pretrained import base_model_of, find_model
from colossal_llama.model.weights.adapter_files import (
    ADAPTER_WEIGHTS,
    check_embeddings,
    is_adapter,
    load_adapter_config,
)
from colossal_llama.model.weights.llama_tensors import check_tensors
from colossal_llama.model.weights.weight_files import read_metadata, tensor_shapes
from colossal_llama.model.weights.written_model import check_written_model
from colossal_llama.tokenizer.loading import VOCABULARY_FILES, load_tokenizer
from colossal_llama.training.checkpoint.state import MERGED_MODEL, MODEL, checkpoint_directories, step_of_checkpoint
from colossal_llama.utils.errors import UserError

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_NO_NAMES = ("checkpoints", "checkpoint", "save", "save_dir", "output")
"""Directories of a run that say nothing of it; the one around them does."""
_ADAPTER_TYPE = "LORA"
_EMBEDDINGS = ("embed_tokens", "lm_head")


@dataclass(frozen=True)
class ExportSource:
    """A checked model, or an adapter with its base.

    Attributes:
        directory: of the model or the adapter.
        base: directory of the whole model: `directory` itself, or the adapter's base.
        adapter: `directory` where it is an adapter, else None.
        tokenizer: directory whose tokenizer belongs to the model.
        config: checked config.json of `base`.
        has_chat_template: True if the tokenizer has one.
    """

    directory: Path
    base: Path
    adapter: Path | None
    tokenizer: Path
    config: dict[str, Any]
    has_chat_template: bool


def model_directory(name: str) -> Path:
    """Finds the directory of a model or an adapter by its name, that of its run or its checkpoint.

    Raises:
        UserError: there is none.
    """
    path = find_model(name)
    if (path / CONFIG_FILE).is_file() or is_adapter(path):
        return path
    inside = path / MODEL
    if (inside / CONFIG_FILE).is_file() or is_adapter(inside):
        return inside
    if checkpoints := checkpoint_directories(path):
        raise UserError(
            f"{path} is a run that has not finished: it has no {MODEL}/. Its newest checkpoint is {checkpoints[-1]}: "
            "give that as --model_path, or finish the run"
        )
    raise UserError(f"{path} holds no model: neither {CONFIG_FILE} nor adapter_config.json nor {MODEL}/ is there")


def open_source(name: str, merge: bool) -> ExportSource:
    """Finds and checks what is to be exported.

    Args:
        name: directory or hub name, as given.
        merge: True to merge an adapter into its base.

    Raises:
        UserError: something is missing or damaged, is quantized, brings its own code, or is no
            model that this suite supports.
    """
    directory = model_directory(name)
    adapter = directory if is_adapter(directory) else None
    if merge and adapter is None:
        raise UserError(f"--merge: {directory} is a whole model, not an adapter: leave --merge out")
    base = base_model_of(adapter) if adapter else directory
    config = _checked_config(base)
    if adapter:
        _check_adapter(adapter, config, merge)
        check_embeddings(adapter, base, config["vocab_size"])
    read_generation_config(base)
    tokenizer = next((path for path in (directory, base) if _has_tokenizer(path)), None)
    if tokenizer is None:
        raise UserError(f"{directory} has no tokenizer: copy the files of the one it was trained with into it")
    loaded = load_tokenizer(tokenizer)
    rows, tokens = config["vocab_size"], len(loaded)
    if tokens > rows:
        raise UserError(
            f"the tokenizer in {tokenizer} has {tokens:,} tokens, the model in {base} rows for {rows:,} only: take the "
            "tokenizer that belongs to this model"
        )
    for path in dict.fromkeys((base, directory)):
        check_written_model(path)
    return ExportSource(directory, base, adapter, tokenizer, config, bool(loaded.chat_template))


def _checked_config(base: Path) -> dict[str, Any]:
    config = read_model_config(base)
    if config.get("quantization_config"):
        raise UserError(
            f"{base} is a quantized model: its values cannot be written in another dtype; export the model that it was "
            "made from"
        )
    load_config(base)
    check_tensors(base, tensor_shapes(base), config)
    return config


def _check_adapter(adapter: Path, config: dict[str, Any], merge: bool) -> None:
    """Refuses adapters of other kinds than LoRA, and those that cannot be merged exactly."""
    settings = load_adapter_config(adapter)
    if settings.get("peft_type") != _ADAPTER_TYPE:
        raise UserError(f"{adapter} is an adapter of the kind {settings.get('peft_type')!r}: only LoRA is supported")
    if not (adapter / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"{adapter} holds no {ADAPTER_WEIGHTS}; pickled adapters are not loaded")
    read_metadata(adapter / ADAPTER_WEIGHTS)
    changed = [name for name in settings["target_modules"] if name.split(".")[-1] in _EMBEDDINGS]
    if merge and changed and config.get("tie_word_embeddings"):
        raise UserError(
            f"{adapter} has LoRA factors on {', '.join(changed)}, and its base ties the two embeddings: merged, the "
            "change of one would be that of the other, too; export it without --merge"
        )


def _has_tokenizer(directory: Path) -> bool:
    return any((directory / name).is_file() for name in VOCABULARY_FILES)


def name_of(model: str | Path) -> str:
    """Name of a model without the path to it on this host.

    >>> name_of("/data/llama"), name_of("runs/zh/modelling"), name_of("ORG/NAME@main")
    ('llama', 'zh', 'ORG/NAME')
    >>> name_of("/cache/models--ORG--NAME/snapshots/1f0c8a")
    'ORG/NAME'
    """
    path = Path(model)
    cached = next((part for part in path.parts if part.startswith("models--")), None)
    if cached is not None:
        return cached.removeprefix("models--").replace("--", "/", 1)
    if not path.exists() and _HUB_NAME.fullmatch(str(model)):
        return str(model).partition("@")[0]
    if path.name in (MODEL, MERGED_MODEL):
        path = path.absolute().parent
        path = path.parent if step_of_checkpoint(path.name) is not None else path
        return path.parent.name if path.name in _NO_NAMES and path.parent.name else path.name
    return path.resolve().name or str(model)
