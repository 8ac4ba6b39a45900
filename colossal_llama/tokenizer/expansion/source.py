"""Opens a source tokenizer for expansion, of either family."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from colossal_llama.tokenizer.expansion import byte_level_bpe, sentencepiece_bpe
from colossal_llama.tokenizer.expansion.pieces import Piece
from colossal_llama.tokenizer.expansion.result import Expansion
from colossal_llama.tokenizer.loading import declared_added_tokens, load_tokenizer
from colossal_llama.tokenizer.rebuilt_model import rebuild_model
from colossal_llama.tokenizer.sentencepiece_model import ModelProto, read_model
from colossal_llama.utils.errors import UserError


@dataclass(frozen=True)
class SourceTokenizer:
    """A tokenizer to expand.

    Attributes:
        control_tokens: strings of the model that stand for no text; no piece may contain one.
        added_tokens: content of each added token → true if it is special.
        notes: what is wrong with the tokenizer's files, and how it is understood.
        expand: function from pieces to the expanded vocabulary; it may be called repeatedly.
    """

    control_tokens: frozenset[str]
    added_tokens: Mapping[str, bool]
    notes: Sequence[str]
    expand: Callable[[Sequence[Piece]], Expansion]


def open_source(directory: Path) -> SourceTokenizer:
    """Opens byte-level BPE (LLaMA-3) or sentencepiece BPE (LLaMA-2).

    Raises:
        UserError: the directory holds neither, a file in it cannot be read, or sentencepiece cannot
            hold an added token.
    """
    definition = byte_level_bpe.read_definition(directory / "tokenizer.json")
    model = None if definition is not None else _read_model(directory)
    # Keeps transformers from importing torch, which no tokenizer needs (1.6 of 5 seconds), and from
    # the advice to install it.
    os.environ.setdefault("USE_TORCH", "0")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # As transformers loads it: it adds tokens that tokenizer_config.json alone names.
    fast = load_tokenizer(directory).backend_tokenizer
    added = {token.content: token.special for token in fast.get_added_tokens_decoder().values()}
    if model is not None and (unusable := [token for token in added if "\0" in token]):
        raise UserError(
            f"the added token {unusable[0]!r} of {directory} contains a null character, which a tokenizer.model cannot "
            "hold: correct tokenizer_config.json and special_tokens_map.json there"
        )
    declared = declared_added_tokens(directory)
    # No new piece gets an id that a file gives to an added token, even if that is not its id.
    first_free_id = 1 + max((token_id for ids in declared.values() for token_id in ids), default=-1)
    if model is None:
        assert definition is not None
        controls: set[str] = set()
        expand = lambda pieces: byte_level_bpe.expand_byte_level(definition, fast, pieces, first_free_id)  # noqa: E731
    else:
        controls = {token for token in sentencepiece_bpe.control_tokens(model) if added.get(token, True)}
        expand = lambda pieces: _only_existing(  # noqa: E731
            directory, sentencepiece_bpe.expand_sentencepiece(model, fast, pieces, first_free_id)
        )
    return SourceTokenizer(frozenset(controls), added, _notes(fast, declared), expand)


def _read_model(directory: Path) -> ModelProto:
    path = directory / "tokenizer.model"
    return read_model(path) if path.is_file() else rebuild_model(directory / "tokenizer.json")


def _only_existing(directory: Path, expansion: Expansion) -> Expansion:
    """Leaves out the tokenizer.model where the source has none (transformers 5 writes none)."""
    if (directory / "tokenizer.model").is_file():
        return expansion
    return replace(expansion, files={"tokenizer.json": expansion.files["tokenizer.json"]})


def _notes(fast: Tokenizer, declared: Mapping[str, set[int]]) -> list[str]:
    """Names the added tokens to which the files give another id than the loaded tokenizer has."""
    notes = []
    for token, ids in declared.items():
        own = fast.token_to_id(token)
        others = ", ".join(map(str, sorted(ids - {own})))
        loaded = "does not load it" if own is None else f"loads it as {own}, which it keeps"
        if others:
            notes.append(
                f"the source's files give the added token {token!r} the id {others}, but the fast tokenizer {loaded}; "
                "no new piece gets that id"
            )
    return notes
