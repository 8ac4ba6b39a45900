"""Opens a source tokenizer for expansion, of either family."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from colossal_llama.tokenizer.expansion import byte_level_bpe, sentencepiece_bpe
from colossal_llama.tokenizer.expansion.pieces import Piece
from colossal_llama.tokenizer.expansion.pretokenizer_changes import PreTokenizerChanges, pre_tokenizer_changes
from colossal_llama.tokenizer.expansion.result import Expansion
from colossal_llama.tokenizer.loading import declared_added_tokens, load_tokenizer
from colossal_llama.tokenizer.pretokenizer import Extension, definition_of, extended, extended_letters
from colossal_llama.tokenizer.rebuilt_model import rebuild_model
from colossal_llama.tokenizer.sentencepiece_model import ModelProto, read_model
from colossal_llama.utils.errors import UserError

_SENTENCEPIECE_NOTE = (
    "--extend_pretokenizer changes nothing: the tokenizer is of sentencepiece's kind and has no pre-tokenizer that "
    "cuts before marks; its merges run across whole texts"
)


@dataclass(frozen=True)
class SourceTokenizer:
    """A tokenizer to expand.

    Attributes:
        control_tokens: strings of the model that stand for no text; no piece may contain one.
        added_tokens: content of each added token → true if it is special.
        notes: what is wrong with the tokenizer's files, and how it is understood.
        expand: function from pieces to the expanded vocabulary; it may be called repeatedly.
        extension_notes: scripts by which the pre-tokenizer is not extended, with the reason.
        count_changes: function from pieces to what the extended pre-tokenizer changes; None where
            the pre-tokenizer is none that was extended, now or before.
    """

    control_tokens: frozenset[str]
    added_tokens: Mapping[str, bool]
    notes: Sequence[str]
    expand: Callable[[Sequence[Piece]], Expansion]
    extension_notes: Sequence[str] = ()
    count_changes: Callable[[Sequence[Piece]], PreTokenizerChanges] | None = None


def open_source(directory: Path, extend_scripts: Sequence[str] = ()) -> SourceTokenizer:
    """Opens byte-level BPE (LLaMA-3) or sentencepiece BPE (LLaMA-2).

    Args:
        directory: of the tokenizer.
        extend_scripts: Unicode scripts whose marks are to stay with their letters in the
            pre-tokenizer. Sentencepiece BPE has none that would cut there.

    Raises:
        UserError: the directory holds neither, a file in it cannot be read, sentencepiece cannot
            hold an added token, or the pre-tokenizer cannot be extended.
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
    extension = Extension(None, (), ())
    count_changes = None
    if model is None:
        assert definition is not None
        controls: set[str] = set()
        extension, count_changes = _extend(fast, extend_scripts)
        expand = lambda pieces: byte_level_bpe.expand_byte_level(definition, fast, pieces, first_free_id)  # noqa: E731
    else:
        if extend_scripts:
            extension = Extension(None, (), (_SENTENCEPIECE_NOTE,))
        controls = {token for token in sentencepiece_bpe.control_tokens(model) if added.get(token, True)}
        expand = lambda pieces: _only_existing(  # noqa: E731
            directory, sentencepiece_bpe.expand_sentencepiece(model, fast, pieces, first_free_id)
        )
    return SourceTokenizer(frozenset(controls), added, _notes(fast, declared), expand, extension.notes, count_changes)


def _extend(
    fast: Tokenizer, scripts: Sequence[str]
) -> tuple[Extension, Callable[[Sequence[Piece]], PreTokenizerChanges] | None]:
    """Extends the pre-tokenizer of a tokenizer in place."""
    before, extension = fast.pre_tokenizer, extended(fast, scripts)
    if extension.pre_tokenizer is not None:
        fast.pre_tokenizer = extension.pre_tokenizer  # type: ignore[assignment]
    if not extended_letters(definition_of(fast)):
        return extension, None
    return extension, lambda pieces: pre_tokenizer_changes(
        fast, before, extension.scripts, [piece.text for piece in pieces]
    )


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
