"""tokenizer_config.json as transformers 4 and 5 write it, in a form that both read.

transformers 5 has one implementation of each tokenizer, whose definition is tokenizer.json. What it
writes names classes that 4.51 lacks, or that need a `tokenizer.model` there, and lists special
tokens under another key.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from colossal_llama.tokenizer.pretokenizer import extended_letters
from colossal_llama.utils.json_files import read_json_object

TOKENIZER_CONFIG, CHAT_TEMPLATE_FILE = "tokenizer_config.json", "chat_template.jinja"
SETTINGS_FILES = (
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    CHAT_TEMPLATE_FILE,
    "chat_template.json",
)
_MORE_TEMPLATES = "additional_chat_templates"
"""Directory of named chat templates."""
GENERIC_CLASS = "PreTrainedTokenizerFast"
"""Class that takes tokenizer.json as it is, in both versions."""
_KEYS_OF_5 = ("backend", "is_local", "local_files_only")
_SENTENCEPIECE_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")


def is_for_both(directory: Path) -> bool:
    """True where both versions read a directory's tokenizer_config.json as it is."""
    settings = _read(directory)
    return portable_settings(settings, _has_model(directory)) == settings


def portable_settings(settings: dict[str, Any], has_model: bool) -> dict[str, Any]:
    """Copies the settings, with keys and classes that 4.51 and 5 know.

    Args:
        settings: content of a tokenizer_config.json, of either version.
        has_model: true where a `tokenizer.model` is next to it.
    """
    written_by_5 = any(key in settings for key in _KEYS_OF_5)
    copy = {key: value for key, value in settings.items() if key not in _KEYS_OF_5}
    tokens = settings.get("extra_special_tokens")
    if isinstance(tokens, list):
        del copy["extra_special_tokens"]
        known = copy.get("additional_special_tokens") or []
        copy["additional_special_tokens"] = [*known, *(token for token in tokens if token not in known)]
        written_by_5 = True
    kind = settings.get("tokenizer_class")
    # transformers 4 would read tokenizer.model, for its own way to put a space before a text.
    needs_model = kind in _SENTENCEPIECE_CLASSES and settings.get("add_prefix_space") is not None
    if written_by_5 or kind == "TokenizersBackend" or (needs_model and not has_model):
        copy["tokenizer_class"] = kind if kind in _SENTENCEPIECE_CLASSES and has_model else GENERIC_CLASS
    return copy


def loading_overrides(directory: Path) -> dict[str, Any]:
    """Arguments with which the generic class of either version loads what 5 has written."""
    settings = _read(directory)
    portable = portable_settings(settings, _has_model(directory))
    if not isinstance(settings.get("extra_special_tokens"), list):
        return {}
    return {"extra_special_tokens": {}, "additional_special_tokens": portable["additional_special_tokens"]}


def settings_contents(directory: Path) -> dict[str, bytes]:
    """Content of a tokenizer's files but the vocabulary, by name, as they are to be copied.

    tokenizer_config.json is made portable where it is not; the others are as they are.
    """
    more = sorted((directory / _MORE_TEMPLATES).glob("*.jinja"))
    names = [*SETTINGS_FILES, *(f"{_MORE_TEMPLATES}/{path.name}" for path in more)]
    contents = {name: (directory / name).read_bytes() for name in names if (directory / name).is_file()}
    if not is_for_both(directory):
        contents[TOKENIZER_CONFIG] = _json(portable_settings(_read(directory), _has_model(directory)))
    return contents


def copy_settings(source: Path, target: Path) -> None:
    """Copies a tokenizer's files but the vocabulary; see `settings_contents`."""
    for name, content in settings_contents(source).items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(content)


def make_settings_portable(directory: Path) -> None:
    """Rewrites the tokenizer_config.json of a directory, unless both versions read it as it is."""
    if not is_for_both(directory):
        portable = portable_settings(_read(directory), _has_model(directory))
        (directory / TOKENIZER_CONFIG).write_bytes(_json(portable))


def take_definition_as_it_is(directory: Path, special_tokens: Callable[[], Mapping[str, Any]] = dict) -> None:
    """Names the generic class where transformers 5 would not take a tokenizer.json as it is.

    Its GPT2Tokenizer makes the pre-tokenizer itself: the steps that SmolLM has before it are lost.
    So do most other classes, and the slow ones of version 4: an extended pre-tokenizer is lost.

    Args:
        directory: of a tokenizer.
        special_tokens: gives the special tokens by name, also those that are its class's default.
    """
    settings = _read(directory)
    step = read_json_object(directory / "tokenizer.json").get("pre_tokenizer") or {}
    kind = settings.get("tokenizer_class")
    is_gpt2 = str(kind).removesuffix("Fast") == "GPT2Tokenizer"
    # LLaMA's classes take tokenizer.json as it is. Theirs are the settings of BOS and EOS.
    is_extended = kind not in _SENTENCEPIECE_CLASSES and extended_letters(step)
    if (is_gpt2 and step.get("type") != "ByteLevel") or is_extended:
        # The generic class would also give token_type_ids, which a LLaMA's generate() refuses.
        defaults = {"model_input_names": ["input_ids", "attention_mask"], **special_tokens()}
        generic = {**defaults, **settings, "tokenizer_class": GENERIC_CLASS}
        (directory / TOKENIZER_CONFIG).write_bytes(_json(generic))


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")


def _read(directory: Path) -> dict[str, Any]:
    path = directory / TOKENIZER_CONFIG
    return read_json_object(path) if path.is_file() else {}


def _has_model(directory: Path) -> bool:
    return (directory / "tokenizer.model").is_file() or not (directory / "tokenizer.json").is_file()
