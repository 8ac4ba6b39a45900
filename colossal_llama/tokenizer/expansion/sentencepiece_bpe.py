"""Expands a sentencepiece BPE vocabulary (LLaMA-2): `tokenizer.model` and `tokenizer.json`.

tokenizer.model is for sentencepiece itself, around which transformers 4 has its slow tokenizer.
tokenizer.json is for the fast one, the only one of transformers 5. They agree on every text for the
following reasons. Sentencepiece merges the adjacent pair whose concatenation has the
highest score. The fast tokenizer has a list of pairs, converted from the model: for each piece
every pair of pieces that makes it, sorted by the piece's score. Two things make them differ, and
both are avoided here:

- Equal scores: sentencepiece then takes the leftmost pair, the fast tokenizer the one listed first.
  New scores are distinct. (Two pairs that make one piece have equal scores, too. That is harmless:
  a piece is always made from the same pair, see `merge_plan.apply_merges`.)
- A character that is not a piece: sentencepiece merges it into a longer piece, the fast tokenizer
  has split it into bytes before. Each character of a new piece becomes a piece itself.
"""

import unicodedata
from collections.abc import Collection, Sequence

import numpy as np
import orjson
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from colossal_llama.tokenizer.expansion.merge_plan import SourceTokens, plan_merges
from colossal_llama.tokenizer.expansion.pieces import Cause, Impossible, Piece, sift_pieces
from colossal_llama.tokenizer.expansion.reachability import Encode
from colossal_llama.tokenizer.expansion.result import Expansion, unused_entries
from colossal_llama.tokenizer.sentencepiece_model import ModelProto, PieceType, merges_by_score
from colossal_llama.tokenizer.token_bytes import SPACE_MARK
from colossal_llama.utils.errors import UserError

# Read once: protobuf looks up an enum's member by name each time, 0.4 s for 69,000 pieces.
_NORMAL, _USER_DEFINED, _UNUSED = PieceType.NORMAL, PieceType.USER_DEFINED, PieceType.UNUSED


def control_tokens(model: ModelProto) -> set[str]:
    """Returns the pieces that stand for no text: `<unk>`, `<s>`, `</s>`, the byte tokens."""
    return {piece.piece for piece in model.pieces if piece.type not in (_NORMAL, _USER_DEFINED, _UNUSED)}


def expand_sentencepiece(
    model: ModelProto, fast: Tokenizer, pieces: Sequence[Piece], first_free_id: int = 0
) -> Expansion:
    """Adds pieces, and the characters and intermediate pieces they need, to a model.

    Args:
        model: the source's `tokenizer.model`.
        fast: the source's fast tokenizer, from which all but vocabulary and merges is taken.
        pieces: the requested pieces.
        first_free_id: no new piece gets an id below this.

    Raises:
        UserError: a piece would make a control token appear in ordinary text, or ids of the source
            cannot be kept.
    """
    source = _with_added_tokens(model, fast, first_free_id)
    source_names = {piece.piece for piece in source.pieces}
    added = fast.get_added_tokens_decoder()
    candidates, known, impossible = sift_pieces(pieces, {token.content: token.special for token in added.values()})
    known += [piece for piece in candidates if _name(piece) in source_names]
    candidates = [piece for piece in candidates if _name(piece) not in source_names]
    unspelt = control_tokens(model) | _single_words(source, fast)
    candidates, spelling = _sift_parts(unspelt, source_names, candidates)
    source_tokens, not_encoded = _source_tokens(source, source_names, candidates)
    impossible += spelling + not_encoded

    characters = [character for character in dict.fromkeys("".join(source_tokens)) if character not in source_names]
    forbidden = _parts(unspelt, source_names | source_tokens.keys())
    plan = plan_merges(source_tokens, source_ranks=_source_ranks(source), forbidden=forbidden)
    intermediates = [*(character for character in characters if character not in source_tokens), *plan.intermediates]
    expanded = _append(source, [*source_tokens, *intermediates], plan.order)
    _refuse_merges_to(unspelt, expanded, len(source.pieces))
    expanded_fast = _replace_vocabulary(fast, expanded)
    return Expansion(
        family="sentencepiece BPE",
        files={
            "tokenizer.model": expanded.SerializeToString(),
            "tokenizer.json": expanded_fast.to_str(pretty=False).encode(),
        },
        source_size=len(source.pieces),
        pieces=[name.replace(SPACE_MARK, " ") for name in source_tokens],
        intermediates=intermediates,
        known=known,
        impossible=impossible,
        encoders=[_slow_encoder(expanded, _adds_space(expanded_fast)), _fast_encoder(expanded_fast)],
    )


def _name(piece: Piece) -> str:
    """Returns a piece as the model writes it."""
    return piece.text.replace(" ", SPACE_MARK)


def _with_added_tokens(model: ModelProto, fast: Tokenizer, first_free_id: int) -> ModelProto:
    """Copies the model and adds the source's added tokens at their ids, and unused ids between.

    A tokenizer that got a `<pad>` after its 32,000 pieces has it under id 32,000; the first new
    piece would take that id.

    Raises:
        UserError: there are too many unused ids, or pieces of the source make an added token that
            is found as a single word only.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    size, added = len(model.pieces), fast.get_added_tokens_decoder()
    ids = {piece.piece: token_id for token_id, piece in enumerate(model.pieces)}
    ids |= {token.content: token_id for token_id, token in added.items()}
    end = max([size, first_free_id, *(token_id + 1 for token_id in added)])
    names = {token_id: token.content for token_id, token in added.items()}
    names |= {token_id: name for name, token_id in unused_entries(ids, end)}
    lowest = min(piece.score for piece in model.pieces)
    for token_id in range(size, end):
        # Unused: sentencepiece never gives it. Transformers cuts added tokens out of a text itself.
        copy.pieces.add(piece=names[token_id], score=lowest, type=_UNUSED)
    single_words = _single_words(copy, fast)
    made = {token for part, token in _parts(single_words, ids).items() if part in ids}
    made |= {token for token in single_words if len(token) == 1}
    if made:
        raise UserError(
            f"the source's added tokens {', '.join(map(repr, sorted(made)))} cannot keep their ids: the pieces of the "
            "result make them, also where they are no single word; remove them or add them without single_word"
        )
    return copy


def _single_words(model: ModelProto, fast: Tokenizer) -> set[str]:
    """Returns the added tokens, no pieces of the source, that are found as single words only.

    The others are cut out of a text wherever they stand, before pieces could make them.
    """
    normal = {piece.piece for piece in model.pieces if piece.type == _NORMAL}
    added = fast.get_added_tokens_decoder().values()
    return {token.content for token in added if token.single_word and token.content not in normal}


def _sift_parts(
    unspelt: Collection[str], names: set[str], pieces: Sequence[Piece]
) -> tuple[list[Piece], list[Impossible]]:
    """Separates the pieces that spell a control token together with another piece.

    Transformers' converter of a `tokenizer.model` makes a merge of every such pair. A `</s>` spelt
    out in a text would then become the control token.

    Args:
        unspelt: tokens that no pieces may spell.
        names: the source's pieces.
        pieces: the requested pieces.

    Returns:
        (others, impossible): the pieces to add; those left out, with the reason.
    """
    others, impossible = [], []
    every_part = {part for token in unspelt for cut in range(1, len(token)) for part in (token[:cut], token[cut:])}
    names_of_parts = every_part & names
    for piece in pieces:
        name = _name(piece)
        spelt = _parts(unspelt, names_of_parts | {name}).get(name) if name in every_part else None
        if spelt is None:
            others.append(piece)
            names_of_parts |= every_part & {name}
        else:
            reason = f"joined with another piece it would spell the control token {spelt} in ordinary text"
            impossible.append(Impossible(piece, Cause.CONTROL_TOKEN, reason))
    return others, impossible


def _source_tokens(
    model: ModelProto, source_names: set[str], pieces: Sequence[Piece]
) -> tuple[dict[str, SourceTokens], list[Impossible]]:
    """Encodes new pieces by the source; a character that the source lacks counts as a token.

    Returns:
        (source_tokens, impossible): name → its source tokens; the pieces that cannot be added, with
        the reason.
    """
    characters = [
        character for character in dict.fromkeys("".join(map(_name, pieces))) if character not in source_names
    ]
    with_characters = _append(model, characters, ())
    with_characters.normalizer_spec.add_dummy_prefix = False
    processor = SentencePieceProcessor(model_proto=with_characters.SerializeToString())
    source_tokens, impossible = {}, []
    for piece, parts in zip(pieces, processor.encode([piece.text for piece in pieces], out_type=str), strict=True):
        control = next((c for c in _name(piece) if c not in source_names and unicodedata.category(c) == "Cc"), None)
        if control is not None:
            name = f"U+{ord(control):04X}"
            reason = f"the control character {name} is a byte token here; as a piece it would change every text"
            impossible.append(Impossible(piece, Cause.CONTROL_CHARACTER, reason))
        elif "".join(parts) != _name(piece):
            reason = f"the model's text normalisation turns it into {''.join(parts)!r}"
            impossible.append(Impossible(piece, Cause.NORMALISATION, reason))
        else:
            source_tokens[_name(piece)] = tuple(parts)
    return source_tokens, impossible


def _source_ranks(model: ModelProto) -> dict[str, float]:
    """Ranks the model's pieces of two or more characters by score: negative, the best is lowest."""
    normal = [piece for piece in model.pieces if piece.type == _NORMAL and len(piece.piece) > 1]
    normal.sort(key=lambda piece: -piece.score)
    return {piece.piece: float(number - len(normal)) for number, piece in enumerate(normal)}


def _append(model: ModelProto, names: Sequence[str], order: Sequence[str]) -> ModelProto:
    """Copies a model and appends new pieces, all scored below the old ones.

    Args:
        model: the model.
        names: the new pieces in the order of their ids.
        order: those that need a merge, best first; the others (single characters, whose score has
            no effect) score lowest.

    Raises:
        UserError: there are not enough 32-bit floats below the source's scores.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    lowest = min(piece.score for piece in model.pieces)
    scores = _distinct_scores_below(lowest, len(names))
    ordered = set(order)
    score_of = dict(zip([*order, *(name for name in names if name not in ordered)], scores, strict=True))
    for name in names:
        copy.pieces.add(piece=name, score=score_of[name], type=_NORMAL)
    copy.trainer_spec.vocab_size = len(copy.pieces)
    return copy


def _distinct_scores_below(lowest: float, count: int) -> list[float]:
    """Returns decreasing scores that stay distinct as the model's 32-bit floats.

    LLaMA-2's lowest score is -1e9, where neighbouring floats are 64 apart: steps of 1 would all
    round to the same score.
    """
    largest = np.float32(2 * abs(lowest) + count)
    step = max(1.0, float(np.spacing(largest)))
    scores = (lowest - step * np.arange(1, count + 1, dtype=np.float64)).astype(np.float32)
    if not (np.diff(scores, prepend=np.float32(lowest)) < 0).all():
        raise UserError(
            f"the source's lowest score is {lowest}: no room for {count} distinct lower scores in 32-bit floats"
        )
    return scores.tolist()


def _parts(tokens: Collection[str], names: Collection[str]) -> dict[str, str]:
    """Maps strings that spell a token with a name to that token: with `>`, `<s` spells `<s>`."""
    parts = {}
    for token in sorted(tokens):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if right in names:
                parts[left] = token
            if left in names:
                parts[right] = token
    return parts


def _refuse_merges_to(unspelt: Collection[str], model: ModelProto, source_size: int) -> None:
    """Refuses intermediate pieces that spell a control token with another piece; see `_sift_parts`.

    Raises:
        UserError: names these pieces.
    """
    names = {piece.piece for piece in model.pieces}
    new_names = {piece.piece for piece in model.pieces[source_size:]}
    problems = [
        f"the new piece {part!r} would spell the control token {token} in ordinary text, joined with another one: "
        "leave out the requested pieces that contain it"
        for part, token in _parts(unspelt, names).items()
        if part in new_names
    ]
    if problems:
        raise UserError(problems)


def _replace_vocabulary(fast: Tokenizer, model: ModelProto) -> Tokenizer:
    """Copies the fast tokenizer with the model's vocabulary and merges; the rest is unchanged."""
    definition = orjson.loads(fast.to_str())
    definition["model"]["vocab"] = {piece.piece: token_id for token_id, piece in enumerate(model.pieces)}
    definition["model"]["merges"] = merges_by_score(model)
    return Tokenizer.from_buffer(orjson.dumps(definition))


def _adds_space(fast: Tokenizer) -> bool:
    """True when a space is put before a text's first word (the source's `add_prefix_space`)."""
    return fast.encode("a", add_special_tokens=False).tokens[0].startswith(SPACE_MARK)


def _slow_encoder(model: ModelProto, adds_space: bool) -> Encode:
    """Returns sentencepiece's encoding function, that of the slow tokenizer of transformers 4."""
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.normalizer_spec.add_dummy_prefix = adds_space
    return SentencePieceProcessor(model_proto=copy.SerializeToString()).encode


def _fast_encoder(fast: Tokenizer) -> Encode:
    """Returns the fast tokenizer's encoding function without added tokens, as the slow one's is."""
    plain = Tokenizer.from_buffer(orjson.dumps(orjson.loads(fast.to_str()) | {"added_tokens": []}))
    return lambda texts: [encoding.ids for encoding in plain.encode_batch_fast(list(texts), add_special_tokens=False)]
