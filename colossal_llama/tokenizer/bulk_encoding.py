"""Encodes whole batches of texts into one flat array, with exactly the ids of `TextEncoder`."""

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

from colossal_llama.tokenizer.encoding import TextEncoder


class BulkEncoder:
    """Encodes many texts at once; picklable, so that worker processes can be given one."""

    def __init__(self, encoder: TextEncoder):
        self._encoder = encoder

    def encode(self, texts: Sequence[str], beginnings: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts, one after the other.

        Args:
            texts: the texts.
            beginnings: for each text whether it begins a document (else it goes on after other tokens).

        Returns:
            The flat ids (int32) and the number of ids of each text (int64).
        """
        # Sorted by length: a batch of similar lengths is encoded faster (15.0 s against 16.7 s on 40 M tokens).
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        first = [index for index in order if beginnings[index]]
        later = [index for index in order if not beginnings[index]]
        ids: list[list[int]] = [[]] * len(texts)
        for indices, encode in (
            (first, self._encoder.encode_beginning),
            (later, self._encoder.encode_continuation),
        ):
            for index, encoded in zip(indices, encode([texts[index] for index in indices]), strict=True):
                ids[index] = encoded
        return _flatten(ids), np.fromiter(map(len, ids), np.int64, len(ids))


def _flatten(lists: Iterable[Sequence[int]]) -> np.ndarray:
    return np.fromiter(chain.from_iterable(lists), np.int32)


def token_bytes(definition: dict, size: int) -> list[bytes]:
    """For every id below `size` the bytes it stands for; empty for control tokens and for ids without a token.

    Args:
        definition: a tokenizer's definition (`TextEncoder.definition()`), of the LLaMA-2 or the LLaMA-3 kind.
    """
    to_bytes = _byte_level_bytes if _is_byte_level(definition) else _sentencepiece_bytes
    pieces = [b""] * size
    for piece, token_id in definition["model"]["vocab"].items():
        pieces[token_id] = to_bytes(piece)
    for token in definition["added_tokens"]:
        pieces[token["id"]] = b"" if token["special"] else token["content"].encode()
    return pieces


def _is_byte_level(definition: dict) -> bool:
    pre_tokenizer = definition["pre_tokenizer"] or {}
    return any(step["type"] == "ByteLevel" for step in pre_tokenizer.get("pretokenizers", [pre_tokenizer]) if step)


def _sentencepiece_bytes(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("▁", " ").encode()


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: printable Latin-1 bytes stand for themselves, the others for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {**alphabet, **{chr(0x100 + index): byte for index, byte in enumerate(others)}}


_BYTE_OF = _byte_level_alphabet()


def _byte_level_bytes(piece: str) -> bytes:
    if not all(character in _BYTE_OF for character in piece):
        return piece.encode()
    return bytes(_BYTE_OF[character] for character in piece)
