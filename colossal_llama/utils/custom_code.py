"""Refuses directories whose configuration makes transformers or peft run code. Imports no torch.

Code that comes with a model or a tokenizer is never run, and nobody is asked whether it may be.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from colossal_llama.utils.errors import UserError
from colossal_llama.utils.json_files import read_json_object

_CONFIGURATIONS = ("config.json", "tokenizer_config.json", "generation_config.json", "adapter_config.json")
_CODE_KEYS = ("auto_map", "custom_pipelines", "custom_generate", "_attn_implementation_internal")
"""Keys of any configuration that name Python files or attention functions."""
_KERNEL_KEY = "attn_implementation"
"""Names a function of transformers, and then has no effect; or a hub repository with a kernel."""
_IMPORTING_KEYS = ("megatron_config", "tokenizer_kwargs")
"""Keys of an adapter by which peft imports modules by name, or loads a tokenizer with its code."""
_TRUSTED_LIBRARIES = ("transformers", "peft")


def refuse_custom_code(directory: Path) -> None:
    """Reads the configurations of a model, tokenizer or adapter directory, and refuses code.

    Every `from_pretrained` of the package comes after this. Other private keys of config.json are
    refused where the model is loaded (model.config_file).

    Raises:
        UserError: a configuration names code (`auto_map` …), or is not a JSON object.
    """
    problems = []
    for path in (directory / name for name in _CONFIGURATIONS):
        if not path.exists():
            continue
        if not path.is_file():  # a named pipe would never end
            problems.append(f"{path} is not a file: copy it again")
            continue
        try:
            settings = read_json_object(path)
        except UserError as error:
            problems += error.problems
            continue
        problems += [f"{path} {problem}" for problem in _problems_of(settings)]
    if problems:
        raise UserError(problems)


def never_ask_to_trust() -> None:
    """Makes transformers refuse custom code at once where it would ask on the terminal.

    A tokenizer class of transformers may load others from sub-directories, without handing
    `trust_remote_code=False` on.
    """
    from transformers import dynamic_module_utils

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0


def _problems_of(settings: dict[str, Any]) -> Iterator[str]:
    named = [key for key in _CODE_KEYS if any(value not in (None, {}, []) for value in _values(settings, key))]
    if any("/" in str(value) for value in _values(settings, _KERNEL_KEY)):
        named.append(_KERNEL_KEY)
    for key in named:
        yield (
            f"names custom code ({key}), which is never run: remove {key} from the file if the class that "
            "transformers itself has will do, else use another model"
        )
    mapping = settings.get("auto_mapping")
    library = mapping.get("parent_library") if isinstance(mapping, dict) else mapping
    if library is not None and str(library).partition(".")[0] not in _TRUSTED_LIBRARIES:
        yield f"names a module to import (auto_mapping: {library!r}), which is never done: remove auto_mapping"
    for key in _IMPORTING_KEYS:
        if settings.get(key):
            yield f"sets {key}, by which peft imports modules by their name: remove {key} from the file"


def _values(settings: Any, key: str) -> Iterator[Any]:
    """Values of a key at any depth."""
    if isinstance(settings, dict):
        for name, value in settings.items():
            if name == key:
                yield value
            else:
                yield from _values(value, key)
    elif isinstance(settings, list):
        for value in settings:
            yield from _values(value, key)
