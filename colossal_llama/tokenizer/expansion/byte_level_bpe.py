"""Expands a byte-level BPE vocabulary (LLaMA-3): the vocabulary and the merges of `tokenizer.json`.

The pre-tokenizer's regular expression splits a text into pre-tokens. The UTF-8 bytes of each are
its symbols, and merges, listed pair by pair, build tokens inside a pre-token. Hence a piece that
extends over several pre-tokens (`3.5`, `的，`) is never produced, whatever is added. It is left
out, with the reason. The others get one merge each, ranked after all old merges; their ids follow
the special tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import orjson
from tokenizers import AddedToken, Tokenizer, pre_tokenizers

from colossal_llama.tokenizer.expansion.merge_plan import SourceTokens, plan_merges
from colossal_llama.tokenizer.expansion.pieces import Cause, Impossible, Piece, sift_pieces
from colossal_llama.tokenizer.expansion.result import Expansion, unused_entries
from colossal_llama.tokenizer.loading import loading_errors
from colossal_llama.tokenizer.pretokenizer import definition_of, extended_letters
from colossal_llama.tokenizer.token_bytes import byte_level_text
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.json_files import read_json_object

_BYTES_AS_CHARACTERS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
# Text before and after a piece that may keep it in one pre-token: nothing, a letter, a space, a
# punctuation mark. In an extended pre-tokenizer also a letter with which marks stay: ั้น is part of
# one pre-token in กั้น only.
_CONTEXTS = (("", ""), ("的", ""), ("", "的"), (" ", ""), ("", "。"), ("。", ""), ("", "\n"))


def read_definition(path: Path) -> dict | None:
    """Reads a `tokenizer.json`; None if it is absent, or not of byte-level BPE.

    Raises:
        UserError: it is not a tokenizer definition.
    """
    if not path.is_file():
        return None
    definition = read_json_object(path)
    try:
        kind = definition["model"]["type"]
        pre_tokenizer = definition["pre_tokenizer"] or {}
        steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
        is_byte_level_bpe = kind == "BPE" and any(step.get("type") == "ByteLevel" for step in steps)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a tokenizer definition ({error}): copy the tokenizer again") from error
    return definition if is_byte_level_bpe else None


def expand_byte_level(
    definition: dict, source: Tokenizer, pieces: Sequence[Piece], first_free_id: int = 0
) -> Expansion:
    """Adds pieces, and the intermediate pieces they need, to a definition.

    Args:
        definition: the source's `tokenizer.json`.
        source: the tokenizer built from it, which may have further added tokens, and an extended
            pre-tokenizer, which the result gets.
        pieces: the requested pieces.
        first_free_id: no new piece gets an id below this.

    Raises:
        UserError: ids of the source cannot be kept.
    """
    letters = extended_letters(pre_tokenizer := definition_of(source))
    if letters:
        definition = {**definition, "pre_tokenizer": pre_tokenizer}
    contexts = (*_CONTEXTS, *((letter, "") for letter in sorted(letters)[:1]))
    vocabulary: dict[str, int] = definition["model"]["vocab"]
    added = source.get_added_tokens_decoder()
    fixed = vocabulary | _added_token_entries(added, definition, source)
    source_size = max(1 + max(fixed.values()), first_free_id)
    fixed |= dict(unused_entries(fixed, source_size))
    candidates, known, impossible = sift_pieces(pieces, {token.content: token.special for token in added.values()})
    known += [piece for piece in candidates if _name(piece) in vocabulary]
    candidates = [piece for piece in candidates if _name(piece) not in vocabulary]
    impossible += filter(None, (_why_impossible(piece, source, contexts) for piece in candidates))
    impossible_pieces = {left_out.piece for left_out in impossible}
    new = {_name(piece): piece.text for piece in candidates if piece not in impossible_pieces}

    # With a new merge to an old token, which the source looks up as a whole word only, old merges
    # of that token would come first. Where nothing else is possible, it needs its merge only.
    plan = plan_merges(_source_tokens(source, new), source_ranks={}, forbidden=vocabulary.keys())
    intermediates = [piece for piece in plan.intermediates if piece not in vocabulary]
    new_ids = {name: source_size + number for number, name in enumerate([*new, *intermediates])}
    model = {
        **definition["model"],
        "vocab": fixed | new_ids,
        "merges": _with_merges(definition["model"]["merges"], [plan.merge_pairs[name] for name in plan.order]),
    }
    content = orjson.dumps(
        {**definition, "added_tokens": orjson.loads(source.to_str())["added_tokens"], "model": model}
    )
    with loading_errors("the expanded tokenizer.json"):
        expanded = Tokenizer.from_buffer(content)
    encoded = zip(new, _encode_by_merges(expanded, list(new.values())), strict=True)
    if prevented := {name for name, ids in encoded if ids != [new_ids[name]]}:
        others = [piece for piece in pieces if _name(piece) not in prevented]
        expansion = expand_byte_level(definition, source, others, first_free_id)
        prevented_pieces = [
            Impossible(piece, Cause.MERGES, "merges of the source apply to its parts before it is made")
            for piece in candidates
            if _name(piece) in prevented
        ]
        return replace(expansion, impossible=[*expansion.impossible, *prevented_pieces])
    return Expansion(
        family="byte-level BPE",
        files={"tokenizer.json": content},
        source_size=source_size,
        pieces=list(new.values()),
        intermediates=intermediates,
        known=known,
        impossible=impossible,
        encoders=[lambda texts: [e.ids for e in expanded.encode_batch_fast(list(texts), add_special_tokens=False)]],
        encode_by_merges=lambda texts: _encode_by_merges(expanded, texts),
        letters_before_marks=sorted(letters),
    )


def _name(piece: Piece) -> str:
    """Returns a piece as the vocabulary writes it: a character for each byte."""
    return _BYTES_AS_CHARACTERS.pre_tokenize_str(piece.text)[0][0]


def _why_impossible(
    piece: Piece, source: Tokenizer, contexts: Sequence[tuple[str, str]] = _CONTEXTS
) -> Impossible | None:
    """Returns the reason why no text can produce a piece, or None."""
    text = piece.text
    if source.normalizer is not None and (normal := source.normalizer.normalize_str(text)) != text:
        why = f"the tokenizer's text normalisation turns it into {normal!r}"
        return Impossible(piece, Cause.NORMALISATION, why)
    for before, after in contexts:
        start, end = len(before), len(before) + len(text)
        spans = [span for _, span in source.pre_tokenizer.pre_tokenize_str(before + text + after)]
        if any(span_start <= start and end <= span_end for span_start, span_end in spans):
            return None
    pre_tokens = [text[start:end] for _, (start, end) in source.pre_tokenizer.pre_tokenize_str(text)]
    return Impossible(piece, Cause.PRE_TOKENIZER, f"the pre-tokenizer always splits it into {' | '.join(pre_tokens)}")


def _encode_by_merges(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Encodes texts by merges alone, each as one pre-token that is not looked up as a whole.

    LLaMA-3 looks up a whole pre-token in the vocabulary before it merges anything
    (`ignore_merges`). A piece that is found only so would be unreachable inside longer pre-tokens.
    """
    by_merges = Tokenizer(tokenizer.model)  # shares the model with `tokenizer`
    by_merges.pre_tokenizer = _BYTES_AS_CHARACTERS
    ignore_merges = tokenizer.model.ignore_merges
    by_merges.model.ignore_merges = False
    try:
        return [encoding.ids for encoding in by_merges.encode_batch_fast(list(texts), add_special_tokens=False)]
    finally:
        by_merges.model.ignore_merges = ignore_merges


def _source_tokens(source: Tokenizer, new: Mapping[str, str]) -> dict[str, SourceTokens]:
    """Encodes new pieces by the source.

    Args:
        source: the source tokenizer.
        new: name → text.

    Returns:
        Name → source tokens.
    """
    ids = _encode_by_merges(source, list(new.values()))
    token_of = {token_id: source.id_to_token(token_id) for token_id in {token_id for row in ids for token_id in row}}
    return {name: tuple(token_of[token_id] for token_id in row) for name, row in zip(new, ids, strict=True)}


def _added_token_entries(added: Mapping[int, AddedToken], definition: dict, source: Tokenizer) -> dict[str, int]:
    """Returns the added tokens with their ids as entries of the vocabulary.

    The tokenizers library numbers an added token that is no entry itself, after all entries: with
    new pieces it would get another id.

    Raises:
        UserError: a pre-token of ordinary text would be looked up as such an entry
            (`ignore_merges`). (`TextEncoder` hides entries of special tokens.)
    """
    vocabulary = definition["model"]["vocab"]
    problems = []
    for token in added.values():
        text = byte_level_text(token.content)
        if token.content in vocabulary or not text or not definition["model"].get("ignore_merges"):
            continue
        # Elsewhere the added token is cut out of the text before any look-up.
        escapes = text != token.content or token.single_word
        if escapes and _why_impossible(Piece(text, ""), source) is None:
            problems.append(
                f"the source's added token {token.content!r} cannot keep its id: with new pieces ordinary text that "
                f"holds {text!r} would give it, too; remove the token from the source or add it without single_word"
            )
    if problems:
        raise UserError(problems)
    return {token.content: token_id for token_id, token in added.items()}


def _with_merges(merges: list, pairs: Sequence[tuple[str, str]]) -> list:
    """Appends pairs in the list's notation: `["a", "b"]`, or `"a b"` in older files."""
    as_text = bool(merges) and isinstance(merges[0], str)
    return merges + [" ".join(pair) if as_text else list(pair) for pair in pairs]
