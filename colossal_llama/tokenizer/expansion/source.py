"""Opens a source tokenizer for expansion, of either family."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from colossal_llama.tokenizer.expansion import byte_level_bpe, sentencepiece_bpe
from colossal_llama.tokenizer.expansion.pieces import Piece
from colossal_llama.tokenizer.expansion.result import Expansion


@dataclass(frozen=True)
class SourceTokenizer:
    """A tokenizer to expand.

    Attributes:
        control_tokens: strings that no piece may contain.
        expand: function from pieces to the expanded vocabulary; it may be called repeatedly.
    """

    control_tokens: frozenset[str]
    expand: Callable[[Sequence[Piece]], Expansion]


def open_source(directory: Path) -> SourceTokenizer:
    """Opens byte-level BPE (LLaMA-3) or sentencepiece BPE (LLaMA-2).

    Raises:
        UserError: the directory holds neither, or a file in it cannot be read.
    """
    definition = byte_level_bpe.read_definition(directory / "tokenizer.json")
    if definition is not None:
        return _open_byte_level(directory, definition)
    return _open_sentencepiece(directory)


def _open_byte_level(directory: Path, definition: dict) -> SourceTokenizer:
    tokenizer = byte_level_bpe.load_definition((directory / "tokenizer.json").read_bytes())
    controls = byte_level_bpe.control_tokens(definition)
    return SourceTokenizer(
        frozenset(controls), lambda pieces: byte_level_bpe.expand_byte_level(definition, tokenizer, pieces)
    )


def _open_sentencepiece(directory: Path) -> SourceTokenizer:
    model = sentencepiece_bpe.read_model(directory / "tokenizer.model")
    # Keeps transformers from importing torch, which no tokenizer needs (1.6 of 5 seconds), and from
    # the advice to install it.
    os.environ.setdefault("USE_TORCH", "0")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from colossal_llama.tokenizer.loading import load_tokenizer

    fast = load_tokenizer(directory).backend_tokenizer
    controls = sentencepiece_bpe.control_tokens(model)
    controls |= {token.content for token in fast.get_added_tokens_decoder().values()}
    return SourceTokenizer(
        frozenset(controls), lambda pieces: sentencepiece_bpe.expand_sentencepiece(model, fast, pieces)
    )
