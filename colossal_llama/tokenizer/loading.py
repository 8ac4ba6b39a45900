"""Loads a tokenizer directory and computes the tokenizer's fingerprint."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from colossal_llama.utils.errors import UserError
from colossal_llama.utils.fingerprint import fingerprint_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(directory: str | Path) -> "PreTrainedTokenizerFast":
    """Loads the fast tokenizer of a directory (LLaMA-2 sentencepiece or LLaMA-3 byte-level BPE).

    Raises:
        UserError: the directory holds no tokenizer, or one without a fast implementation, a BOS or
            an EOS token.
    """
    path = Path(directory)
    if not path.is_dir():
        raise UserError(f"tokenizer directory {path} does not exist")
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise UserError(f"{path} holds no tokenizer: neither tokenizer.json nor tokenizer.model is there")
    # The import takes 0.7 s, with torch (no USE_TORCH=0 in the environment) more.
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True)
    except Exception as error:  # whatever transformers, tokenizers or sentencepiece raise on a damaged file
        raise UserError(f"the tokenizer in {path} cannot be loaded: {error}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"the tokenizer in {path} has no fast implementation (it loads as {type(tokenizer).__name__})")
    for name in ("bos_token", "eos_token"):
        if getattr(tokenizer, name) is None:
            raise UserError(f"the tokenizer in {path} has no {name}: set it in tokenizer_config.json")
    return tokenizer


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
