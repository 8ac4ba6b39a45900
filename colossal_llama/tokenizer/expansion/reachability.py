"""Verifies that new pieces are reachable: encodes texts and looks for each piece's id."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from colossal_llama.utils.errors import UserError

Encode = Callable[[Sequence[str]], Sequence[Sequence[int]]]
"""A function from texts to token ids, without special tokens."""

# Texts that contain a piece. LLaMA-2 puts a space before a text's first word, so that a piece with
# a leading space stands at the beginning without it. (On a text that begins with a space itself,
# transformers' slow and fast LLaMA-2 tokenizers differ, expanded or not: `▁▁a` and `▁a` for " a".
# No such text is used.)
_BEGINNING: Mapping[str, Callable[[str], str]] = {
    "the piece alone": lambda piece: piece.removeprefix(" "),
    "then U+E000": lambda piece: piece.removeprefix(" ") + "\ue000",
}
# No piece joins the private-use character U+E000 to another character, unless such a piece was
# requested: nothing merges across it. What is not produced between two of them is produced nowhere.
_INSIDE: Mapping[str, Callable[[str], str]] = {
    "between Han characters": lambda piece: f"的{piece}了",
    "between Han punctuation": lambda piece: f"，{piece}。",
    "between Latin letters": lambda piece: f"x{piece}q",
    "on a line of its own": lambda piece: f"。\n{piece}\n",
    "between U+E000": lambda piece: f"\ue000{piece}\ue000",
}


@dataclass(frozen=True)
class Reachability:
    """Counts of pieces by the context in which they were reached.

    Attributes:
        checked: number of pieces looked for.
        at_beginning: context at the beginning of a text → number of pieces first reached there.
        inside: context inside a text → number of pieces first reached there.
        unreachable: pieces that no text produced.
    """

    checked: int
    at_beginning: Mapping[str, int]
    inside: Mapping[str, int]
    unreachable: tuple[str, ...]


def verify_reachability(
    piece_ids: Mapping[str, int],
    encoders: Sequence[Encode],
    encode_by_merges: Encode | None = None,
    letters_before_marks: Sequence[str] = (),
) -> Reachability:
    """Looks for a text that produces each piece, at the beginning of a text and inside one.

    Args:
        piece_ids: text of a piece → its id.
        encoders: functions from texts to ids (no special tokens added). All must give the same ids
            for every text tried.
        encode_by_merges: gives ids by merges alone, for tokenizers that look up whole words, too.
            It must encode a piece as its one id: a piece that is found only as a whole word counts
            as unreachable.
        letters_before_marks: letters that a piece which begins with a mark may follow in a word.

    Raises:
        UserError: two encoders disagree on a text.
    """
    at_beginning, missing_at_beginning = _search(piece_ids, _BEGINNING, encoders)
    # Of the letters some merge with the mark. A rare one does not.
    after_letters = {f"after {letter}": letter.__add__ for letter in letters_before_marks}
    inside, missing_inside = _search(piece_ids, {**_INSIDE, **after_letters}, encoders)
    unreachable = set(missing_inside) & set(missing_at_beginning)
    if encode_by_merges is not None:
        encoded = encode_by_merges(list(piece_ids))
        unreachable |= {piece for piece, ids in zip(piece_ids, encoded, strict=True) if list(ids) != [piece_ids[piece]]}
    return Reachability(
        len(piece_ids), at_beginning, inside, tuple(piece for piece in piece_ids if piece in unreachable)
    )


def _search(
    piece_ids: Mapping[str, int], contexts: Mapping[str, Callable[[str], str]], encoders: Sequence[Encode]
) -> tuple[dict[str, int], dict[str, int]]:
    """Tries the contexts in turn.

    Returns:
        (reached, missing): context → number of pieces first reached there; ids of the pieces that
        were not reached.
    """
    reached = {}
    missing = dict(piece_ids)
    for name, embed in contexts.items():
        if not missing:
            break
        texts = {piece: text for piece in missing if not (text := embed(piece)).startswith(" ")}
        encodings = _encode_with_all(list(texts.values()), encoders)
        found = [piece for piece, ids in zip(texts, encodings, strict=True) if missing[piece] in ids]
        if found:
            reached[name] = len(found)
        for piece in found:
            del missing[piece]
    return reached, missing


def _encode_with_all(texts: Sequence[str], encoders: Sequence[Encode]) -> Sequence[Sequence[int]]:
    first, *others = [[list(ids) for ids in encode(texts)] for encode in encoders]
    for other in others:
        for text, ids, other_ids in zip(texts, first, other, strict=True):
            if ids != other_ids:
                raise UserError(
                    f"sentencepiece and the fast tokenizer disagree on {text!r} ({ids} and {other_ids}): the source "
                    "tokenizer's own files disagree, or this is a defect of the expansion; nothing was written"
                )
    return first
