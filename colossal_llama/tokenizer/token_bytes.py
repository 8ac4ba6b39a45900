"""The bytes that every token of a vocabulary stands for."""

from tokenizers import pre_tokenizers

SPACE_MARK = "▁"  # U+2581, sentencepiece's way to write a space


def token_bytes(definition: dict, size: int) -> list[bytes]:
    """For every id below `size` the bytes it stands for; empty for control tokens and for ids without a token.

    Args:
        definition: a tokenizer's definition (`TextEncoder.definition()`), of the LLaMA-2 or the
            LLaMA-3 kind.
    """
    to_bytes = _byte_level_bytes if is_byte_level(definition) else _sentencepiece_bytes
    pieces = [b""] * size
    for piece, token_id in definition["model"]["vocab"].items():
        pieces[token_id] = to_bytes(piece)
    for token in definition["added_tokens"]:
        pieces[token["id"]] = b"" if token["special"] else token["content"].encode()
    return pieces


def is_byte_level(definition: dict) -> bool:
    """Whether a tokenizer writes its tokens as bytes (LLaMA-3), one character a byte, and not as text (LLaMA-2)."""
    pre_tokenizer = definition["pre_tokenizer"] or {}
    return any(step["type"] == "ByteLevel" for step in pre_tokenizer.get("pretokenizers", [pre_tokenizer]) if step)


def _sentencepiece_bytes(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(SPACE_MARK, " ").encode()


def byte_level_alphabet() -> dict[str, int]:
    """Character → the byte that byte-level vocabularies write so: printable bytes as themselves, the others as U+0100 onwards."""
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    printable = {chr(byte): byte for byte in range(256) if chr(byte) in alphabet}
    others = [byte for byte in range(256) if chr(byte) not in alphabet]
    return printable | dict(zip(sorted(alphabet - set(printable)), others, strict=True))


_BYTE_OF = byte_level_alphabet()


def _byte_level_bytes(piece: str) -> bytes:
    if not all(character in _BYTE_OF for character in piece):
        return piece.encode()
    return bytes(_BYTE_OF[character] for character in piece)
