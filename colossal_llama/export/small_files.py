"""Small files of an export: configurations, tokenizer, licence and notices."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from colossal_llama.export.source import ExportSource
from colossal_llama.model.config_file import CONFIG_FILE, GENERATION_CONFIG_FILE, read_generation_config
from colossal_llama.model.expansion.new_rows import first_new_row, new_rows_trained, record_of_new_rows
from colossal_llama.model.weights.adapter_files import ADAPTER_CONFIG
from colossal_llama.tokenizer.loading import REPEATED_FILES, VOCABULARY_FILES
from colossal_llama.tokenizer.settings_file import settings_contents
from colossal_llama.utils.json_files import read_json_object

_VOCABULARY_FILES = (*VOCABULARY_FILES, *REPEATED_FILES)
_NOTICE = re.compile(r"(licen[cs]e|notice|copying|use[_-]policy|acceptable[_-]use)", re.IGNORECASE)
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def small_files(source: ExportSource, tied: bool | None, dtype: str, base_name: str | None) -> dict[str, bytes]:
    """Content of all files but the weights, by name.

    Args:
        source: the model or the adapter.
        tied: of the weights written; None for an adapter.
        dtype: of the weights written, PyTorch's name.
        base_name: name of the base for an adapter's configuration; None: as it is.
    """
    vocabulary = (source.tokenizer / name for name in _VOCABULARY_FILES)
    files = {path.name: path.read_bytes() for path in vocabulary if path.is_file()} | settings_contents(
        source.tokenizer
    )
    if tied is None:
        assert source.adapter is not None, "models have weights that are tied or not"
        settings = read_json_object(source.adapter / ADAPTER_CONFIG)
        other_base = {"base_model_name_or_path": base_name, "revision": None} if base_name else {}
        files[ADAPTER_CONFIG] = _json({**settings, **other_base})
    else:
        files[CONFIG_FILE] = _json(model_config(source.config, tied, dtype))
    files[GENERATION_CONFIG_FILE] = _json(_generation_config(source))
    return files | _record_of_new_rows(source)


def _record_of_new_rows(source: ExportSource) -> dict[str, bytes]:
    """The record of the last expansion's rows, of the model's directory or its base's."""
    directories = dict.fromkeys((source.directory, source.tokenizer, source.base))
    first = next((row for path in directories if (row := first_new_row(path)) is not None), None)
    trained = next((known for path in directories if (known := new_rows_trained(path)) is not None), None)
    return record_of_new_rows(first, trained)


def model_config(config: Mapping[str, Any], tied: bool, dtype: str) -> dict[str, Any]:
    """The config.json of an export, for transformers 4 and 5.

    Both read `torch_dtype`; `dtype` is read by 5 alone. The path of the base on this host goes.
    """
    written = {key: value for key, value in config.items() if key not in ("dtype", "_name_or_path")}
    kind = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config["model_type"]]
    return {**written, "architectures": [kind], "tie_word_embeddings": tied, "torch_dtype": dtype}


def _generation_config(source: ExportSource) -> dict[str, Any]:
    """The source's settings, or its base's; where there are none, its special tokens alone."""
    for directory in dict.fromkeys((source.directory, source.base)):
        if settings := read_generation_config(directory):
            return settings
    return {name: source.config[name] for name in _SPECIAL_IDS if source.config.get(name) is not None}


def notices(directories: Iterable[Path]) -> dict[str, bytes]:
    """Content of licence and notice files of directories; the first of a name counts."""
    found: dict[str, bytes] = {}
    for directory in directories:
        for path in sorted(directory.iterdir()):
            if _NOTICE.match(path.name) and path.is_file():
                found.setdefault(path.name, path.read_bytes())
    return found


def not_copied(directories: Iterable[Path], written: Iterable[str]) -> list[str]:
    """Names of what lies in the exported directories and has no counterpart in the export.

    Weight files, their indexes and checksums are written anew.
    """
    weights = re.compile(r".*\.(safetensors|bin)(\.index\.json)?|checksums\.json")
    names = {
        path.name
        for directory in directories
        for path in directory.iterdir()
        if not path.name.startswith(".") and not weights.fullmatch(path.name)
    }
    return sorted(names - {name.split("/")[0] for name in written} - {ADAPTER_CONFIG})


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode("utf-8")
