"""Rules for positions at which a text may be cut without changing its token ids.

Sentencepiece BPE (LLaMA-2) sees a text as one long word and merges adjacent symbols while the
vocabulary holds their concatenation. Two characters that are adjacent in no piece of the vocabulary
are therefore never merged, and the text may be cut between them (`CharacterPairRule`):

    The cat，the dog⏎    ▁The | ▁cat | ，| the | ▁dog | ⏎    (no piece holds e▁, t，, ，t or ⏎)

Byte-level BPE (LLaMA-3) merges within pre-tokens, which a regular expression finds. The text may be
cut at boundaries that the expression respects whatever the text around them
(`cut_at_pre_token_boundaries`).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from colossal_llama.tokenizer.pretokenizer import without_extension
from colossal_llama.tokenizer.token_bytes import SPACE_MARK

SpacePrefix = Literal["always", "unless_present", "never"]
"""When ▁ is put before a text: always, unless the text begins with a space or ▁, or never."""

_HASH_BITS = 22
_FIRST_SCAN_CHARACTERS = 1 << 12


# LLaMA-2: sentencepiece BPE


@dataclass(frozen=True)
class CharacterPairRule:
    """Allows cuts between characters that are adjacent in no piece of a sentencepiece vocabulary.

    Attributes:
        space_prefix: when the tokenizer puts ▁ before a text.
        separator: a control character that is in no piece, so that it may be cut off on both sides.
            Its encoding is one byte token, which no other text gives.
        adjacent: bool table by hash of a character pair; false: no piece holds the two characters
            side by side. A hash collision only forbids a cut that would be allowed.
    """

    space_prefix: SpacePrefix
    separator: str
    adjacent: np.ndarray

    @classmethod
    def for_definition(cls, definition: dict) -> "CharacterPairRule | None":
        """Builds the rule of a tokenizer, or returns None where the rule does not hold.

        Args:
            definition: of the tokenizer (`TextEncoder.definition()`).
        """
        space_prefix, vocabulary = _sentencepiece_space_prefix(definition), definition["model"]["vocab"]
        if space_prefix is None or (separator := _unused_control_character(vocabulary)) is None:
            return None
        return cls(space_prefix, separator, _adjacency_table(vocabulary))

    def cut_mask(self, codes: np.ndarray) -> np.ndarray:
        """Marks the characters before which the text may be cut; the first one always is.

        Args:
            codes: uint32 [characters], code points of a text with ▁ for its spaces.

        Returns:
            bool [characters].
        """
        cuts = np.ones(len(codes), bool)
        if len(codes):
            cuts[1:] = ~self.adjacent[_pair_hash(codes[:-1], codes[1:])]
            separators = codes == ord(self.separator)  # a hash collision must not forbid these cuts
            cuts |= separators
            cuts[1:] |= separators[:-1]
        return cuts

    def cut_into_blocks(self, text: str, block_characters: int) -> Iterator[str]:
        """Cuts a text, with ▁ for its spaces, into parts hardly longer than a block."""
        start = 0
        while len(text) - start > block_characters:
            end = self._next_cut(text, start + block_characters)
            yield text[start:end]
            start = end
        if start < len(text):
            yield text[start:]

    def _next_cut(self, text: str, position: int) -> int:
        """Finds the first allowed cut at or after a position, or the end of the text."""
        scan_characters = _FIRST_SCAN_CHARACTERS
        while position < len(text):
            cuts = self.cut_mask(code_points(text[position - 1 : position + scan_characters]))[1:]
            if cuts.any():
                return position + int(np.argmax(cuts))
            position, scan_characters = position + scan_characters, 2 * scan_characters
        return len(text)


def code_points(text: str) -> np.ndarray:
    """Returns the code points of a text: uint32 [characters]."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _pair_hash(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    mixed: np.ndarray = left * np.uint32(0x9E3779B1) + right * np.uint32(0x85EBCA77)
    return np.right_shift(mixed, np.uint32(32 - _HASH_BITS))


def _adjacency_table(vocabulary: Iterable[str]) -> np.ndarray:
    pieces = list(vocabulary)
    codes, lengths = code_points("".join(pieces)), np.fromiter(map(len, pieces), np.int64, len(pieces))
    inside = np.ones(len(codes), bool)
    inside[np.cumsum(lengths)[:-1] - 1] = False  # last characters: what follows belongs to the next piece
    adjacent = np.zeros(1 << _HASH_BITS, bool)
    adjacent[_pair_hash(codes[:-1], codes[1:])[inside[:-1]]] = True
    return adjacent


def _unused_control_character(vocabulary: Iterable[str]) -> str | None:
    """Finds a control character that is in no piece; a line feed is preferred."""
    in_pieces = set("".join(vocabulary))
    return next((chr(code) for code in (0x0A, *range(0x01, 0x20)) if chr(code) not in in_pieces), None)


def _sentencepiece_space_prefix(definition: dict) -> SpacePrefix | None:
    """Returns when a tokenizer puts ▁ before a text, or None where the pair rule does not hold.

    It holds when merges run over the whole text, unknown characters become byte tokens, and no
    added token is matched in a text.
    """
    model, normalizer, pre_tokenizer = definition["model"], definition["normalizer"], definition["pre_tokenizer"]
    is_known_model = (
        model["type"] == "BPE"
        and model.get("byte_fallback")
        and not any(model.get(name) for name in ("dropout", "ignore_merges", "continuing_subword_prefix"))
        and not model.get("end_of_word_suffix")
        and all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256))
        and not any("<0x" in piece and len(piece) > 6 for piece in model["vocab"])
    )
    if not is_known_model or not all(token["special"] for token in definition["added_tokens"]):
        return None
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    replaces_spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
    if pre_tokenizer is None and steps == [{"type": "Prepend", "prepend": SPACE_MARK}, replaces_spaces]:
        return "always"
    if pre_tokenizer is None and steps == [replaces_spaces]:
        return "never"
    if steps or pre_tokenizer is None or pre_tokenizer["type"] != "Metaspace" or pre_tokenizer["split"]:
        return None
    if pre_tokenizer["replacement"] != SPACE_MARK:
        return None
    return "never" if pre_tokenizer["prepend_scheme"] == "never" else "unless_present"


# LLaMA-3: byte-level BPE

_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# No match of the pattern extends across a boundary found here. A line feed ends every match that
# holds one unless white space follows; a word ends before a space, and a Chinese word before `，`.
# What follows is matched as at the beginning of a text, since the pattern looks ahead only at the
# end of white space. An extended pre-tokenizer adds to words what follows their letters: marks and
# joiners, of which none is next to a boundary.
_PRE_TOKEN_BOUNDARY = re.compile(
    r"\n(?=[A-Za-z0-9\u4e00-\u9fff])|(?<=[A-Za-z])(?= [A-Za-z])|(?<=[\u4e00-\u9fff])(?=[，。])"
)


def has_llama3_pre_tokenizer(definition: dict) -> bool:
    """True when a tokenizer finds its pre-tokens by LLaMA-3's expression alone, extended or not."""
    split = {"type": "Split", "pattern": {"Regex": _LLAMA3_PATTERN}, "behavior": "Isolated", "invert": False}
    pre_tokenizer = without_extension(definition["pre_tokenizer"]) or {}
    steps = pre_tokenizer.get("pretokenizers", [])
    return (
        definition["normalizer"] is None
        and all(token["special"] for token in definition["added_tokens"])
        and len(steps) == 2
        and steps[0] == split
        and steps[1]["type"] == "ByteLevel"
        and not steps[1]["add_prefix_space"]
        and not steps[1]["use_regex"]
    )


def cut_at_pre_token_boundaries(text: str, block_characters: int) -> Iterator[str]:
    """Cuts a text of LLaMA-3 at the first boundary after each block; a shorter text stays whole."""
    start = 0
    while len(text) - start > block_characters:
        boundary = _PRE_TOKEN_BOUNDARY.search(text, start + block_characters)
        if boundary is None:
            break
        yield text[start : boundary.end()]
        start = boundary.end()
    yield text[start:]
