"""The bytes that every token of a vocabulary stands for."""


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
