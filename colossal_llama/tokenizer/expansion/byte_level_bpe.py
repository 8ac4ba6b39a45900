"""Expands a byte-level BPE vocabulary (LLaMA-3): the vocabulary and the merges of `tokenizer.json`.

A text is cut into words by the pre-tokenizer's pattern, each word's UTF-8 bytes become 256 symbols,
and merges, listed pair by pair, build tokens inside a word. Hence a piece across words (`3.5`,
`的，`) can never be produced, whatever is added: it is left out, with the reason. The others get one
merge each, behind all old merges; their ids follow the special tokens.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson
from tokenizers import Tokenizer, pre_tokenizers

from colossal_llama.tokenizer.expansion.merge_plan import plan_merges
from colossal_llama.tokenizer.expansion.pieces import Piece
from colossal_llama.tokenizer.expansion.result import Expansion
from colossal_llama.utils.errors import UserError

_BYTES_AS_CHARACTERS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
# Neighbours that may keep a piece in one word when it is not one by itself: nothing, a letter, a
# space, a punctuation mark.
_NEIGHBOURS = (("", ""), ("的", ""), ("", "的"), (" ", ""), ("", "。"), ("。", ""), ("", "\n"))


def read_definition(path: Path) -> dict | None:
    """Reads a `tokenizer.json`, or gives None if there is none or it belongs to a `tokenizer.model` beside it.

    Raises:
        UserError: it is no tokenizer definition, or of another kind than byte-level BPE with no
            `tokenizer.model` beside it.
    """
    if not path.is_file():
        return None
    try:
        definition = orjson.loads(path.read_bytes())
        kind = definition["model"]["type"]
        pre_tokenizer = definition["pre_tokenizer"] or {}
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a tokenizer definition: {error}") from error
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    if kind == "BPE" and any(step.get("type") == "ByteLevel" for step in steps):
        return definition
    if path.with_name("tokenizer.model").is_file():
        return None
    raise UserError(
        f"{path} defines a {kind} tokenizer that is not byte-level, and no tokenizer.model is beside it: only "
        "sentencepiece BPE "
        "(LLaMA-2) and byte-level BPE (LLaMA-3) can be expanded"
    )


def control_tokens(definition: dict) -> set[str]:
    """The tokens that are cut out of a text before anything else: `<|begin_of_text|>` …"""
    return {token["content"] for token in definition["added_tokens"]}


def load_definition(content: bytes) -> Tokenizer:
    """Builds the tokenizer of a `tokenizer.json`.

    Raises:
        UserError: the library refuses it.
    """
    try:
        return Tokenizer.from_buffer(content)
    except ValueError as error:
        raise UserError(f"the source's tokenizer.json cannot be loaded: {error}") from error


def expand_bytelevel(definition: dict, source: Tokenizer, pieces: Sequence[Piece]) -> Expansion:
    """Adds pieces and the bridges they need to a definition.

    Args:
        definition: the source's `tokenizer.json`.
        source: the tokenizer built from it.
        pieces: what to add.
    """
    vocabulary: dict[str, int] = definition["model"]["vocab"]
    source_size = 1 + max(*vocabulary.values(), *(token["id"] for token in definition["added_tokens"]))
    known = [piece for piece in pieces if _name(piece) in vocabulary]
    unknown = [piece for piece in pieces if _name(piece) not in vocabulary]
    impossible = [(piece, reason) for piece in unknown if (reason := _why_impossible(piece.text, source))]
    left_out = {piece for piece, _ in impossible}
    new = {_name(piece): piece.text for piece in unknown if piece not in left_out}

    plan = plan_merges(_segment(source, new), known_rank={})
    bridges = [bridge for bridge in plan.bridges if bridge not in vocabulary]  # one that is there needs its merge only
    new_ids = {name: source_size + place for place, name in enumerate([*new, *bridges])}
    model = {
        **definition["model"],
        "vocab": vocabulary | _controls_for_holes(definition, source) | new_ids,
        "merges": _with_merges(definition["model"]["merges"], [plan.splits[name] for name in plan.order]),
    }
    content = orjson.dumps({**definition, "model": model})
    expanded = load_definition(content)
    return Expansion(
        family="byte-level BPE",
        files={"tokenizer.json": content},
        source_size=source_size,
        pieces=list(new.values()),
        bridges=bridges,
        known=known,
        impossible=impossible,
        encoders=[lambda texts: [e.ids for e in expanded.encode_batch_fast(list(texts), add_special_tokens=False)]],
        merge_alone=lambda texts: _merge_alone(expanded, texts),
    )


def _name(piece: Piece) -> str:
    """A piece as the vocabulary writes it: a character for each byte."""
    return _BYTES_AS_CHARACTERS.pre_tokenize_str(piece.text)[0][0]


def _why_impossible(text: str, source: Tokenizer) -> str | None:
    """The reason why no text produces a piece, or None."""
    if source.normalizer is not None and (normal := source.normalizer.normalize_str(text)) != text:
        return f"the tokenizer's text normalisation turns it into {normal!r}"
    for before, after in _NEIGHBOURS:
        start, end = len(before), len(before) + len(text)
        words = source.pre_tokenizer.pre_tokenize_str(before + text + after)
        if any(word_start <= start and end <= word_end for _, (word_start, word_end) in words):
            return None
    words = [text[start:end] for _, (start, end) in source.pre_tokenizer.pre_tokenize_str(text)]
    return f"the pre-tokenizer always cuts it into {' | '.join(words)}"


def _merge_alone(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids by merges alone: each text is one word, and no word is looked up as a whole.

    LLaMA-3 looks up a whole word in the vocabulary before it merges anything (`ignore_merges`); a
    piece that is found in no other way than that would be dead inside of longer words.
    """
    alone = Tokenizer(tokenizer.model)  # shares the model with `tokenizer`
    alone.pre_tokenizer = _BYTES_AS_CHARACTERS
    looks_up_words = tokenizer.model.ignore_merges
    alone.model.ignore_merges = False
    try:
        return [encoding.ids for encoding in alone.encode_batch_fast(list(texts), add_special_tokens=False)]
    finally:
        alone.model.ignore_merges = looks_up_words


def _segment(source: Tokenizer, new: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Name → the source's tokens of its text, for all of `new` (name → text)."""
    ids = _merge_alone(source, list(new.values()))
    token_of = {token_id: source.id_to_token(token_id) for token_id in {token_id for row in ids for token_id in row}}
    return {name: tuple(token_of[token_id] for token_id in row) for name, row in zip(new, ids, strict=True)}


def _controls_for_holes(definition: dict, source: Tokenizer) -> dict[str, int]:
    """The control tokens, which live behind the vocabulary, as entries of it.

    With new ids behind them they would leave a hole in the vocabulary, and the tokenizers library
    then warns on every save that it "could be corrupted". Only a token that is no word by itself
    may be put there: one that is would be looked up.
    """
    tokens = {token["content"]: token["id"] for token in definition["added_tokens"]}
    words_of = source.pre_tokenizer.pre_tokenize_str
    return {token: token_id for token, token_id in tokens.items() if len(words_of(token)) > 1}


def _with_merges(merges: list, pairs: Sequence[tuple[str, str]]) -> list:
    """The list with more pairs, in the way it is written: `["a", "b"]`, or `"a b"` by older versions of the library."""
    as_text = bool(merges) and isinstance(merges[0], str)
    return merges + [" ".join(pair) if as_text else list(pair) for pair in pairs]
