"""Encodes text as plain text, without special tokens.

Imports no transformers, so that a worker process is small and starts at once.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import orjson
from tokenizers import AddedToken, Tokenizer, models

from colossal_llama.tokenizer.token_bytes import byte_level_alphabet, is_byte_level

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MARK = "\ufdd0"  # a noncharacter: Unicode promises that no text needs it
_MODEL_SETTINGS = ("byte_fallback", "dropout", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")


class TextEncoder:
    """Encodes text as plain text: adds no BOS or EOS, and a control token spelt out stays text.

    LLaMA-2 puts a space before a text's first word. That is right for text that begins a document.
    For text that follows other tokens it is wrong: decoding would show a space that is not in the
    text. Hence the two methods:

        encode_beginning(["Hello"])     ▁Hello
        encode_continuation(["Hello"])  Hello

    On LLaMA-3 (byte-level BPE, no such space) both give the same ids. `"<s>"` becomes the three
    tokens `<`, `s`, `>`.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", serialized: str | None = None):
        """Shares the vocabulary of a tokenizer.

        Args:
            tokenizer: a fast tokenizer, which is not modified.
            serialized: its definition as JSON, if the caller has it already (serializing LLaMA-3's
                takes 0.2 s).
        """
        self._backend = tokenizer.backend_tokenizer
        self._serialized = serialized or self._backend.to_str()

    # Unpickling a `Tokenizer` loses `encode_special_tokens`: each process builds its own from the
    # serialized definition.
    def __getstate__(self) -> dict:
        return {"_serialized": self._serialized}

    def __setstate__(self, state: dict) -> None:
        self._serialized = state["_serialized"]
        self._backend = Tokenizer.from_str(self._serialized)

    @cached_property
    def _beginning(self) -> Tokenizer:
        if _without_prefix_space(self._preprocessing) == self._preprocessing:
            return self._continuation
        return _plain_text_tokenizer(self._backend, self._preprocessing, self._hidden)

    @cached_property
    def _continuation(self) -> Tokenizer:
        if not self._hidden:
            return self._with_all_tokens
        return _plain_text_tokenizer(self._backend, _without_prefix_space(self._preprocessing), self._hidden)

    @cached_property
    def _with_all_tokens(self) -> Tokenizer:
        return _plain_text_tokenizer(self._backend, _without_prefix_space(self._preprocessing))

    @cached_property
    def _hidden(self) -> frozenset[str]:
        """Special tokens that text would give otherwise than by being cut out of it."""
        produced = _produced_special_tokens(self._backend, self._with_all_tokens)
        own_symbols = byte_level_alphabet() if is_byte_level(self._preprocessing) else ()
        return produced.difference(own_symbols)

    @cached_property
    def _marked(self) -> tuple[Tokenizer, np.ndarray]:
        """Copy whose control tokens are written as marks, and the tokenizer's id of each of its."""
        copy = _copy_without_added_tokens(self._backend, self._preprocessing)
        ids = np.arange(copy.get_vocab_size() + len(self._backend.get_added_tokens_decoder()))
        for token_id, token in sorted(self._backend.get_added_tokens_decoder().items()):
            written = control_mark(token_id) if token.special else token.content
            settings = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "normalized")}
            add = copy.add_special_tokens if token.special else copy.add_tokens
            add([AddedToken(written, **settings)])
            ids[copy.token_to_id(written)] = token_id
        return copy, ids

    @cached_property
    def _preprocessing(self) -> dict:
        """The definition's `normalizer` and `pre_tokenizer`, applied to a text before any merge."""
        steps = {"normalizer": self._backend.normalizer, "pre_tokenizer": self._backend.pre_tokenizer}
        return {name: step and json.loads(step.__getstate__()) for name, step in steps.items()}

    def definition(self) -> dict:
        """Returns the tokenizer's definition (tokenizer.json) without merges and post-processor.

        It is read from the tokenizer's attributes: parsing LLaMA-3's JSON with its 280,000 merges
        takes 0.5 s.
        """
        model = self._backend.model
        settings = {name: getattr(model, name, None) for name in _MODEL_SETTINGS}
        vocabulary = self._backend.get_vocab(with_added_tokens=False)
        for token in self._hidden:
            del vocabulary[token]
        added = self._backend.get_added_tokens_decoder().items()
        return {
            **self._preprocessing,
            "model": {"type": type(model).__name__, **settings, "vocab": vocabulary},
            "added_tokens": [
                {"id": token_id, "content": token.content, "special": token.special} for token_id, token in added
            ],
        }

    def encode_beginning(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes texts that begin a document: one list of ids for each text."""
        return _encode_all(self._beginning, texts)

    def encode_continuation(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes texts that follow other tokens: one list of ids for each text."""
        return _encode_all(self._continuation, texts)

    def encode_marked(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Encodes a text whose control tokens are written as `control_mark`, and no others.

        The ids are those that the tokenizer gives to the text with its control tokens: it alone
        decides what a control token does to the text next to it (LLaMA-2's space before a word).

        Returns:
            Ids: int64 [tokens]. Where each begins and ends in the text: int64 [tokens, 2].
        """
        copy, ids = self._marked
        encoding = copy.encode(text, add_special_tokens=False)
        offsets = np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * len(encoding))
        return ids[np.array(encoding.ids, np.int64)], offsets.reshape(-1, 2)


def control_mark(token_id: int) -> str:
    """Returns what stands for a control token in a text for `TextEncoder.encode_marked`."""
    return f"{MARK}{token_id}{MARK}"


def _encode_all(backend: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def _produced_special_tokens(backend: Tokenizer, plain: Tokenizer) -> frozenset[str]:
    """Finds the special tokens that a tokenizer's model gives for their text.

    They are entries of its vocabulary: words that it looks up as a whole (`ignore_merges`), single
    characters, or what a pair of other tokens makes. Those that are part of other tokens are left
    out, which could not be made without them, and the one that stands for unknown text.
    """
    special = {token.content: i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    encoded = _encode_all(plain, list(special))
    produced = {token for token, ids in zip(special, encoded, strict=True) if special[token] in ids}
    produced.discard(getattr(backend.model, "unk_token", None))
    return frozenset(produced.difference(*_merges(orjson.loads(backend.to_str()))) if produced else ())


def _merges(definition: dict) -> list[tuple[str, str]]:
    """Lists a definition's merges: `["a", "b"]`, or `"a b"` in older files."""
    merges = definition["model"].get("merges", [])
    return [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]


def _plain_text_tokenizer(backend: Tokenizer, preprocessing: dict, hidden: frozenset[str] = frozenset()) -> Tokenizer:
    """Builds a tokenizer of the same vocabulary that takes control tokens in a text as text.

    The vocabulary is shared, not copied: rebuilding LLaMA-2's takes 0.13 s, LLaMA-3's 0.7 s.

    Args:
        backend: the tokenizer.
        preprocessing: its normalizer and pre-tokenizer.
        hidden: entries of the vocabulary that no text may give.
    """
    added = backend.get_added_tokens_decoder()
    # Tokens added as text are matched in a text, so all added tokens must keep their ids.
    if hidden or any(not token.special for token in added.values()):
        removed = {"post_processor": None, "truncation": None, "padding": None}
        definition = orjson.loads(backend.to_str()) | removed | preprocessing
        if hidden:
            kept = [token for token in definition["added_tokens"] if not token["special"]]
            entries = {token["content"]: token["id"] for token in kept}
            vocabulary = definition["model"]["vocab"].items()
            entries |= {token: token_id for token, token_id in vocabulary if token not in hidden}
            merges = [pair for pair in _merges(definition) if "".join(pair) not in hidden]
            definition["added_tokens"] = kept
            definition["model"] |= {"vocab": entries, "merges": merges}
        plain = Tokenizer.from_buffer(orjson.dumps(definition))
    else:
        plain = _copy_without_added_tokens(backend, preprocessing)
    plain.encode_special_tokens = True
    return plain


def _copy_without_added_tokens(backend: Tokenizer, preprocessing: dict) -> Tokenizer:
    empty = json.loads(Tokenizer(models.BPE()).to_str())
    copy = Tokenizer.from_str(json.dumps(empty | preprocessing))
    copy.model = backend.model
    return copy


def _without_prefix_space(preprocessing: dict) -> dict:
    """Copies a normalizer and a pre-tokenizer without the space before a text's first word."""
    copy = {**preprocessing, "pre_tokenizer": json.loads(json.dumps(preprocessing["pre_tokenizer"]))}
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
