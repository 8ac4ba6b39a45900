"""Opens a tokenizer, names it by fingerprint, and encodes text as plain text."""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from colossal_llama.utils.errors import UserError
from colossal_llama.utils.files import fingerprint_bytes


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerFast:
    """Loads the fast tokenizer of a directory (LLaMA-2 sentencepiece or LLaMA-3 byte-level BPE).

    Raises:
        UserError: there is no tokenizer in the directory, or it has no fast form or no BOS or EOS token.
    """
    path = Path(directory)
    if not path.is_dir():
        raise UserError(f"tokenizer directory {path} does not exist")
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise UserError(f"{path} holds no tokenizer: neither tokenizer.json nor tokenizer.model is there")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True)
    except Exception as error:  # whatever transformers, tokenizers or sentencepiece raise on a damaged file
        raise UserError(f"the tokenizer in {path} cannot be loaded: {error}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"the tokenizer in {path} has no fast form (it loads as {type(tokenizer).__name__})")
    for name in ("bos_token", "eos_token"):
        if getattr(tokenizer, name) is None:
            raise UserError(f"the tokenizer in {path} has no {name}: set it in tokenizer_config.json")
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 over everything that decides the ids of a text: the fast tokenizer's definition and its BOS and EOS."""
    definition = tokenizer.backend_tokenizer.to_str(pretty=False)
    special = json.dumps([tokenizer.bos_token, tokenizer.eos_token])
    return fingerprint_bytes(definition.encode(), special.encode())


class TextEncoder:
    """Encodes text as plain text: no BOS or EOS is added, and a control token written out in the text stays text.

    LLaMA-2 puts a space before a text's first word. That is right for text that begins a document and wrong for text that
    goes on after other tokens, where decoding would show a space that nobody wrote. Hence the two methods:

        encode_beginning(["Hello"])     ▁Hello
        encode_continuation(["Hello"])  Hello

    On LLaMA-3 (byte-level BPE, no such space) both give the same ids. `"<s>"` becomes the three pieces `<`, `s`, `>`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        definition = json.loads(tokenizer.backend_tokenizer.to_str())
        definition["post_processor"] = None
        definition["truncation"] = definition["padding"] = None
        self._beginning = _as_plain_text(definition)
        self._continuation = _as_plain_text(_without_prefix_space(definition))

    def encode_beginning(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that begin a document, one list a text."""
        return [encoding.ids for encoding in self._beginning.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_continuation(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that follow other tokens, one list a text."""
        return [encoding.ids for encoding in self._continuation.encode_batch_fast(list(texts), add_special_tokens=False)]


def _as_plain_text(definition: dict) -> Tokenizer:
    backend = Tokenizer.from_str(json.dumps(definition))
    backend.encode_special_tokens = True
    return backend


def _without_prefix_space(definition: dict) -> dict:
    """A copy of a tokenizer definition in which nothing is put before a text's first word."""
    copy = json.loads(json.dumps(definition))
    normalizer = copy["normalizer"] or {}
    steps = normalizer.get("normalizers", [normalizer])
    kept = [step for step in steps if step and step["type"] != "Prepend"]
    copy["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None
    pre_tokenizer = copy["pre_tokenizer"] or {}
    for step in pre_tokenizer.get("pretokenizers", [pre_tokenizer]):
        if step and step["type"] == "Metaspace":
            step["prepend_scheme"] = "never"
        if step and step["type"] == "ByteLevel":
            step["add_prefix_space"] = False
    return copy
