"""The UTF-8 bytes that each token of a vocabulary stands for."""

from tokenizers import pre_tokenizers

SPACE_MARK = "▁"
"""U+2581, which sentencepiece writes for a space."""


def token_bytes(definition: dict, size: int) -> list[bytes]:
    """Lists the bytes of every token id below `size`.

    Args:
        definition: a tokenizer's definition (`TextEncoder.definition()`): sentencepiece BPE
            (LLaMA-2) or byte-level BPE (LLaMA-3).
        size: the length of the list.

    Returns:
        Bytes by id; empty for control tokens and for ids without a token.
    """
    to_bytes = _byte_level_bytes if is_byte_level(definition) else _sentencepiece_bytes
    by_id = [b""] * size
    for token, token_id in definition["model"]["vocab"].items():
        by_id[token_id] = to_bytes(token)
    for added in definition["added_tokens"]:
        by_id[added["id"]] = b"" if added["special"] else added["content"].encode()
    return by_id


def is_byte_level(definition: dict) -> bool:
    """True for byte-level BPE (LLaMA-3), false for sentencepiece BPE (LLaMA-2).

    Byte-level vocabularies write a token as one character for each byte, sentencepiece as text.
    """
    pre_tokenizer = definition["pre_tokenizer"] or {}
    return any(step["type"] == "ByteLevel" for step in pre_tokenizer.get("pretokenizers", [pre_tokenizer]) if step)


def byte_level_alphabet() -> dict[str, int]:
    """Maps the characters of byte-level vocabularies to the bytes they stand for.

    Printable bytes are written as themselves, the others as U+0100 onwards (GPT-2's
    `bytes_to_unicode`).
    """
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    printable = {chr(byte): byte for byte in range(256) if chr(byte) in alphabet}
    others = [byte for byte in range(256) if chr(byte) not in alphabet]
    return printable | dict(zip(sorted(alphabet - set(printable)), others, strict=True))


def byte_level_text(token: str) -> str:
    """Returns the text of a byte-level vocabulary's entry; empty if it is none."""
    try:
        return bytes(_BYTE_OF[character] for character in token).decode()
    except (KeyError, UnicodeDecodeError):
        return ""


def _sentencepiece_bytes(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace(SPACE_MARK, " ").encode()


_BYTE_OF = byte_level_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    if not all(character in _BYTE_OF for character in token):
        return token.encode()
    return bytes(_BYTE_OF[character] for character in token)
