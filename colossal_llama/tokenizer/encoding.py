"""Encodes text as plain text. Imports no transformers, so that a worker process is small and starts at once."""

import json
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class TextEncoder:
    """Encodes text as plain text: no BOS or EOS is added, and a control token written out in the text stays text.

    LLaMA-2 puts a space before a text's first word. That is right for text that begins a document and wrong for text
    that goes on after other tokens, where decoding would show a space that nobody wrote. Hence the two methods:

        encode_beginning(["Hello"])     ▁Hello
        encode_continuation(["Hello"])  Hello

    On LLaMA-3 (byte-level BPE, no such space) both give the same ids. `"<s>"` becomes the three pieces `<`, `s`, `>`.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast"):
        self._serialized = tokenizer.backend_tokenizer.to_str()
        definition = self.definition()
        definition["post_processor"] = None
        definition["truncation"] = definition["padding"] = None
        without_prefix = _without_prefix_space(definition)
        self._beginning_json = json.dumps(definition)
        self._continuation_json = None if without_prefix == definition else json.dumps(without_prefix)

    # A pickled `Tokenizer` forgets `encode_special_tokens` (and LLaMA-3's takes a second to build): each process builds
    # what it needs when it needs it.
    @cached_property
    def _beginning(self) -> Tokenizer:
        return _as_plain_text(self._beginning_json)

    @cached_property
    def _continuation(self) -> Tokenizer:
        return self._beginning if self._continuation_json is None else _as_plain_text(self._continuation_json)

    def __getstate__(self) -> dict:
        names = ("_serialized", "_beginning_json", "_continuation_json")
        return {name: getattr(self, name) for name in names}

    def definition(self) -> dict:
        """The tokenizer's own definition (tokenizer.json) as Python objects, parsed anew: 100 MB for LLaMA-3."""
        return json.loads(self._serialized)

    def encode_beginning(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that begin a document, one list a text."""
        return _ids(self._beginning, texts)

    def encode_continuation(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that follow other tokens, one list a text."""
        return _ids(self._continuation, texts)


def _ids(backend: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def _as_plain_text(serialized: str) -> Tokenizer:
    backend = Tokenizer.from_str(serialized)
    backend.encode_special_tokens = True
    return backend


def _without_prefix_space(definition: dict) -> dict:
    """A copy of a tokenizer definition in which nothing is put before a text's first word."""
    copy = {**definition, "pre_tokenizer": json.loads(json.dumps(definition["pre_tokenizer"]))}
    normalizer = copy["normalizer"] or {}
    steps = normalizer.get("normalizers", [normalizer])
    kept = [step for step in steps if step and step["type"] != "Prepend"]
    if kept != steps:
        copy["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None
    pre_tokenizer = copy["pre_tokenizer"] or {}
    for step in pre_tokenizer.get("pretokenizers", [pre_tokenizer]):
        if step and step["type"] == "Metaspace":
            step["prepend_scheme"] = "never"
        if step and step["type"] == "ByteLevel":
            step["add_prefix_space"] = False
    return copy
