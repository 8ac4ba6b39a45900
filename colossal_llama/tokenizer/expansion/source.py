"""Opens a tokenizer that is to be expanded, whichever family it belongs to."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from colossal_llama.tokenizer.expansion import byte_level_bpe, sentencepiece_bpe
from colossal_llama.tokenizer.expansion.pieces import Piece
from colossal_llama.tokenizer.expansion.result import Expansion


@dataclass(frozen=True)
class Source:
    """A tokenizer to expand.

    Attributes:
        control_tokens: what no piece may contain.
        expand: a function from pieces to the expanded vocabulary; it may be called again and again.
    """

    control_tokens: frozenset[str]
    expand: Callable[[Sequence[Piece]], Expansion]


def open_source(directory: Path) -> Source:
    """Opens byte-level BPE (LLaMA-3) or sentencepiece BPE (LLaMA-2).

    Raises:
        UserError: the directory holds neither, or what it holds cannot be read.
    """
    definition = byte_level_bpe.read_definition(directory / "tokenizer.json")
    if definition is not None:
        return _open_bytelevel(directory, definition)
    return _open_sentencepiece(directory)


def _open_bytelevel(directory: Path, definition: dict) -> Source:
    tokenizer = byte_level_bpe.load_definition((directory / "tokenizer.json").read_bytes())
    controls = byte_level_bpe.control_tokens(definition)
    return Source(frozenset(controls), lambda pieces: byte_level_bpe.expand_bytelevel(definition, tokenizer, pieces))


def _open_sentencepiece(directory: Path) -> Source:
    model = sentencepiece_bpe.read_model(directory / "tokenizer.model")
    # transformers would import torch, which no tokenizer needs: 1.6 of 5 seconds. It then advises
    # to install it: silenced.
    os.environ.setdefault("USE_TORCH", "0")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from colossal_llama.tokenizer.loading import load_tokenizer

    fast = load_tokenizer(directory).backend_tokenizer
    controls = sentencepiece_bpe.control_tokens(model)
    controls |= {token.content for token in fast.get_added_tokens_decoder().values()}
    return Source(frozenset(controls), lambda pieces: sentencepiece_bpe.expand_sentencepiece(model, fast, pieces))
