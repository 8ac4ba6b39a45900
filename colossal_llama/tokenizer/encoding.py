"""Encodes text as plain text. Imports no transformers, so that a worker process is small and starts at once."""

import json
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import orjson
from tokenizers import Tokenizer, models

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_MODEL_SETTINGS = ("byte_fallback", "dropout", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")


class TextEncoder:
    """Encodes text as plain text: no BOS or EOS is added, and a control token written out in the text stays text.

    LLaMA-2 puts a space before a text's first word. That is right for text that begins a document
    and wrong for text that goes on after other tokens, where decoding would show a space that
    nobody wrote. Hence the two methods:

        encode_beginning(["Hello"])     ▁Hello
        encode_continuation(["Hello"])  Hello

    On LLaMA-3 (byte-level BPE, no such space) both give the same ids. `"<s>"` becomes the three
    pieces `<`, `s`, `>`.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", serialized: str | None = None):
        """Args:
        tokenizer: a fast tokenizer, which is left as it is.
        serialized: its definition as JSON, if it is at hand (LLaMA-3's takes 0.2 s to write).
        """
        self._backend = tokenizer.backend_tokenizer
        self._serialized = serialized or self._backend.to_str()

    # A pickled `Tokenizer` forgets `encode_special_tokens`: each process builds what it needs when
    # it needs it.
    def __getstate__(self) -> dict:
        return {"_serialized": self._serialized}

    def __setstate__(self, state: dict) -> None:
        self._serialized = state["_serialized"]
        self._backend = Tokenizer.from_str(self._serialized)

    @cached_property
    def _beginning(self) -> Tokenizer:
        return _as_plain_text(self._backend, self._steps)

    @cached_property
    def _continuation(self) -> Tokenizer:
        without_prefix = _without_prefix_space(self._steps)
        return self._beginning if without_prefix == self._steps else _as_plain_text(self._backend, without_prefix)

    @cached_property
    def _steps(self) -> dict:
        """What is done to a text before the merges: the definition's normalizer and pre_tokenizer."""
        steps = {"normalizer": self._backend.normalizer, "pre_tokenizer": self._backend.pre_tokenizer}
        return {name: step and json.loads(step.__getstate__()) for name, step in steps.items()}

    def definition(self) -> dict:
        """The tokenizer's own definition (tokenizer.json) as Python objects, but for its merges and what it does to ids.

        Put together from what the tokenizer tells: parsing LLaMA-3's JSON with its 280,000 merges
        takes 0.5 s.
        """
        model = self._backend.model
        settings = {name: getattr(model, name, None) for name in _MODEL_SETTINGS}
        vocabulary = self._backend.get_vocab(with_added_tokens=False)
        added = self._backend.get_added_tokens_decoder().items()
        return {
            **self._steps,
            "model": {"type": type(model).__name__, **settings, "vocab": vocabulary},
            "added_tokens": [
                {"id": index, "content": token.content, "special": token.special} for index, token in added
            ],
        }

    def encode_beginning(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that begin a document, one list a text."""
        return _ids(self._beginning, texts)

    def encode_continuation(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that follow other tokens, one list a text."""
        return _ids(self._continuation, texts)


def _ids(backend: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def _as_plain_text(backend: Tokenizer, steps: dict) -> Tokenizer:
    """A tokenizer with the same vocabulary, and with `steps` before it, that adds nothing and knows no control tokens in a text.

    The vocabulary is shared, not copied: building LLaMA-2's anew takes 0.13 s, LLaMA-3's 0.7 s.
    """
    shell = json.loads(Tokenizer(models.BPE()).to_str()) | steps
    added = backend.get_added_tokens_decoder()
    if any(not token.special for token in added.values()):  # these are found in a text, so all must keep their ids
        definition = (
            orjson.loads(backend.to_str()) | {"post_processor": None, "truncation": None, "padding": None} | steps
        )
        plain = Tokenizer.from_buffer(orjson.dumps(definition))
    else:
        plain = Tokenizer.from_str(json.dumps(shell))
        plain.model = backend.model
    plain.encode_special_tokens = True
    return plain


def _without_prefix_space(steps: dict) -> dict:
    """A copy of a normalizer and a pre-tokenizer in which nothing is put before a text's first word."""
    copy = {**steps, "pre_tokenizer": json.loads(json.dumps(steps["pre_tokenizer"]))}
    normalizer = copy["normalizer"] or {}
    parts = normalizer.get("normalizers", [normalizer])
    kept = [part for part in parts if part and part["type"] != "Prepend"]
    if kept != parts:
        copy["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None
    pre_tokenizer = copy["pre_tokenizer"] or {}
    for step in pre_tokenizer.get("pretokenizers", [pre_tokenizer]):
        if step and step["type"] == "Metaspace":
            step["prepend_scheme"] = "never"
        if step and step["type"] == "ByteLevel":
            step["add_prefix_space"] = False
    return copy
