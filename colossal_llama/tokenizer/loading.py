"""Loads a tokenizer directory and computes the tokenizer's fingerprint."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
from tokenizers import Tokenizer

from colossal_llama.tokenizer.settings_file import (
    CHAT_TEMPLATE_FILE,
    SETTINGS_FILES,
    TOKENIZER_CONFIG,
    is_for_both,
    loading_overrides,
)
from colossal_llama.utils.custom_code import never_ask_to_trust, refuse_custom_code
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.fingerprint import fingerprint_bytes
from colossal_llama.utils.json_files import read_json_object
from colossal_llama.utils.transformers_version import is_transformers_5

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model")
REPEATED_FILES = ("vocab.json", "merges.txt")
"""The model of a byte-level tokenizer.json once more, for slow tokenizers and other programs."""


def load_tokenizer(directory: str | Path) -> "PreTrainedTokenizerFast":
    """Loads the fast tokenizer of a directory (LLaMA-2 sentencepiece or LLaMA-3 byte-level BPE).

    A tokenizer may have no BOS token if its tokenizer_config.json says so by null, as Qwen's do:
    those models are trained on texts without one.

    Raises:
        UserError: the directory holds no tokenizer, or one with code of its own, without a fast
            implementation, a BOS or an EOS token, or with one id for two tokens.
    """
    path = Path(directory)
    if not path.is_dir():
        raise UserError(f"tokenizer directory {path} does not exist")
    if not any((path / name).is_file() for name in VOCABULARY_FILES):
        raise UserError(f"{path} holds no tokenizer: neither {' nor '.join(VOCABULARY_FILES)} is there")
    tokenizer = load_with_transformers(path, use_fast=True)
    # The import takes 0.7 s, with torch (no USE_TORCH=0 in the environment) more.
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"the tokenizer in {path} has no fast implementation (it loads as {type(tokenizer).__name__})")
    for name in ("eos_token",) if _declares_no_bos(path) else ("bos_token", "eos_token"):
        if getattr(tokenizer, name) is None:
            raise UserError(f"the tokenizer in {path} has no {name}: set it in tokenizer_config.json")
    if shared := _ids_of_several_tokens(tokenizer.get_vocab()):
        token_id, tokens = shared[0]
        raise UserError(
            f"the tokenizer in {path} has one id for several tokens ({len(shared):,} such ids): "
            f"{token_id} is {' and '.join(map(repr, tokens))}; copy or make the tokenizer again"
        )
    return tokenizer


def load_with_transformers(directory: Path, use_fast: bool) -> "PreTrainedTokenizerBase":
    """Loads a directory as transformers 4.51 does, without running code of the directory.

    transformers 5 gives the same definition (`tokenizer_fingerprint`) as 4.51, from files of
    either version. Its own classes make up parts of it: GPT2Tokenizer leaves out all but one
    pre-tokenizer of tokenizer.json, LlamaTokenizer passes over the scores of tokenizer.model.

    Args:
        directory: holds a tokenizer.
        use_fast: the fast implementation where there is one, else the slow one, which transformers
            5 and directories that 5 has written do not have.

    Raises:
        UserError: the files are damaged, or name code of their own.
    """
    refuse_custom_code(directory)
    _check_files(directory)
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    never_ask_to_trust()
    with loading_errors(f"the tokenizer in {directory}"):
        if is_transformers_5():
            definition = _converted_definition(directory)
        elif is_for_both(directory):
            return AutoTokenizer.from_pretrained(directory, use_fast=use_fast, trust_remote_code=False)
        else:
            definition = {}
        with _without_class_warning():
            given = {**definition, **loading_overrides(directory)}
            tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, **given, trust_remote_code=False)
        _take_back_empty_post_processor(tokenizer, directory / "tokenizer.json")
        return tokenizer


def _take_back_empty_post_processor(tokenizer: "PreTrainedTokenizerFast", path: Path) -> None:
    """Removes the idle post-processor that transformers 5 adds where tokenizer.json has none."""
    processor = tokenizer.backend_tokenizer.post_processor
    if processor is None or json.loads(processor.__getstate__()).get("special_tokens") != {}:
        return
    if path.is_file() and orjson.loads(path.read_bytes()).get("post_processor") is None:
        tokenizer.backend_tokenizer.post_processor = None


def _converted_definition(directory: Path) -> dict[str, "Tokenizer"]:
    """Converts a `tokenizer.model` for transformers 5; nothing where tokenizer.json is there."""
    if (directory / "tokenizer.json").is_file():
        return {}
    from colossal_llama.tokenizer.sentencepiece_model import fast_definition, read_model

    settings = read_json_object(directory / TOKENIZER_CONFIG) if (directory / TOKENIZER_CONFIG).is_file() else {}
    is_legacy, adds_space = (settings.get(key) is not False for key in ("legacy", "add_prefix_space"))
    content = fast_definition(read_model(directory / "tokenizer.model"), is_legacy, adds_space)
    return {"tokenizer_object": Tokenizer.from_str(json.dumps(content))}


@contextmanager
def _without_class_warning() -> Iterator[None]:
    """Silences the warning of 4.51 that a directory names another class, as is meant here."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def stored_chat_template(directory: Path) -> str | None:
    """Reads the chat template of a directory for plain chats; None without one.

    Raises:
        UserError: a file of settings is damaged.
    """
    if (directory / CHAT_TEMPLATE_FILE).is_file():
        return (directory / CHAT_TEMPLATE_FILE).read_text(encoding="utf-8")
    path = directory / TOKENIZER_CONFIG
    stored = read_json_object(path).get("chat_template") if path.is_file() else None
    if isinstance(stored, list):  # several, by name
        stored = {entry.get("name"): entry.get("template") for entry in stored if isinstance(entry, dict)}.get(
            "default"
        )
    return stored if isinstance(stored, str) else None


def _declares_no_bos(directory: Path) -> bool:
    path = directory / TOKENIZER_CONFIG
    return path.is_file() and read_json_object(path).get("bos_token", "") is None


def _check_files(directory: Path) -> None:
    """Checks the files that transformers passes over when they are not as they should be.

    Raises:
        UserError: one is not a file, or a file of settings holds no JSON object.
    """
    for path in (directory / name for name in (*VOCABULARY_FILES, *SETTINGS_FILES)):
        if not path.exists():
            continue
        if not path.is_file():
            raise UserError(f"{path} is not a file: copy the tokenizer again")
        if path.name in SETTINGS_FILES and path.suffix == ".json":
            content = read_json_object(path)
            if path.name == "added_tokens.json" and not all(type(value) is int for value in content.values()):
                raise UserError(f"{path} holds other values than ids: copy the file again")


def declared_added_tokens(directory: Path) -> dict[str, set[int]]:
    """Reads the ids that a directory's files give to added tokens, which need not agree.

    A fast tokenizer numbers added tokens itself where its vocabulary lacks them, and the slow one
    takes these ids as they are.

    Raises:
        UserError: a file is not as transformers writes it.
    """
    declared: dict[str, set[int]] = defaultdict(set)
    with loading_errors(f"the added tokens of {directory}"):
        settings = read_json_object(directory / "tokenizer_config.json")
        for token_id, token in settings.get("added_tokens_decoder", {}).items():
            declared[token["content"]].add(int(token_id))
        path = directory / "added_tokens.json"
        for token, token_id in (read_json_object(path) if path.is_file() else {}).items():
            declared[token].add(token_id)
        path = directory / "tokenizer.json"
        for token in (read_json_object(path) if path.is_file() else {}).get("added_tokens", []):
            declared[token["content"]].add(token["id"])
    return dict(declared)


@contextmanager
def loading_errors(what: str) -> Iterator[None]:
    """Turns what transformers, tokenizers or sentencepiece raise on damaged files into a message.

    Raises:
        UserError: `what` cannot be loaded, and why.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        # A panic of the tokenizers library is a BaseException, of a class that cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{what} cannot be loaded: {reason[:500]}; copy its files again") from error


def _ids_of_several_tokens(vocabulary: Mapping[str, int]) -> list[tuple[int, list[str]]]:
    if len(set(vocabulary.values())) == len(vocabulary):
        return []
    tokens = defaultdict(list)
    for token, token_id in vocabulary.items():
        tokens[token_id].append(token)
    return [(token_id, sorted(names)) for token_id, names in sorted(tokens.items()) if len(names) > 1]


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerFast", serialized: str | None = None) -> str:
    """Computes the SHA-256 of everything that decides the ids of a text.

    That is the fast tokenizer's definition (tokenizer.json) and its BOS and EOS tokens.

    Args:
        tokenizer: the tokenizer.
        serialized: its definition as JSON, if the caller has it already.
    """
    definition = serialized or tokenizer.backend_tokenizer.to_str(pretty=False)
    special = json.dumps([tokenizer.bos_token, tokenizer.eos_token])
    return fingerprint_bytes(definition.encode(), special.encode())
