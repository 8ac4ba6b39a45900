"""Proves that pieces are reachable: encodes real texts with the finished tokenizer and looks for each piece's id."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from colossal_llama.utils.errors import UserError

Encode = Callable[[Sequence[str]], Sequence[Sequence[int]]]

# Texts in which a piece may stand. LLaMA-2 puts a space before a text's first word, so that a piece
# with a leading space stands at the beginning without it. (On a text that begins with a space
# itself, transformers' slow and fast LLaMA-2 tokenizers differ, expanded or not: `▁▁a` and `▁a` for
# " a". No such text is used.)
_BEGINNING: Mapping[str, Callable[[str], str]] = {
    "the piece alone": lambda piece: piece.removeprefix(" "),
    "then U+E000": lambda piece: piece.removeprefix(" ") + "\ue000",
}
# No piece joins the private-use character U+E000 to another character unless somebody asked for
# such a piece: nothing merges across it, and what is not produced between two of them is produced
# nowhere.
_INSIDE: Mapping[str, Callable[[str], str]] = {
    "between Han characters": lambda piece: f"的{piece}了",
    "between Han punctuation": lambda piece: f"，{piece}。",
    "between Latin letters": lambda piece: f"x{piece}q",
    "on a line of its own": lambda piece: f"。\n{piece}\n",
    "between U+E000": lambda piece: f"\ue000{piece}\ue000",
}


@dataclass(frozen=True)
class Proof:
    """Which pieces were produced by which texts.

    Attributes:
        wanted: how many pieces were looked for.
        at_beginning, inside: kind of text → pieces first found there, at the beginning of a text and inside one.
        unreachable: pieces that no text produced.
    """

    wanted: int
    at_beginning: Mapping[str, int]
    inside: Mapping[str, int]
    unreachable: tuple[str, ...]


def prove(wanted: Mapping[str, int], encoders: Sequence[Encode], merge_alone: Encode | None = None) -> Proof:
    """Looks for a text that produces each piece, at the beginning of a text and inside one.

    Args:
        wanted: text of a piece → its id.
        encoders: functions from texts to ids (no special tokens added). All must give the same ids
            for every text tried.
        merge_alone: gives ids by merges alone, where the encoders look up whole words too. A piece
            must come out of it as its one id: what a look-up finds only as a word of its own is not
            reachable.

    Raises:
        UserError: two encoders disagree on a text.
    """
    at_beginning, missing_at_beginning = _search(wanted, _BEGINNING, encoders)
    inside, missing_inside = _search(wanted, _INSIDE, encoders)
    unreachable = set(missing_inside) & set(missing_at_beginning)
    if merge_alone is not None:
        merged = merge_alone(list(wanted))
        unreachable |= {piece for piece, ids in zip(wanted, merged, strict=True) if list(ids) != [wanted[piece]]}
    return Proof(len(wanted), at_beginning, inside, tuple(piece for piece in wanted if piece in unreachable))


def _search(
    wanted: Mapping[str, int], contexts: Mapping[str, Callable[[str], str]], encoders: Sequence[Encode]
) -> tuple[dict[str, int], dict[str, int]]:
    """Tries the contexts in turn.

    Returns:
        (found, missing): context → number of pieces first found there; the pieces that none
            produced.
    """
    found = {}
    missing = dict(wanted)
    for name, put in contexts.items():
        if not missing:
            break
        texts = {piece: text for piece in missing if not (text := put(piece)).startswith(" ")}
        encodings = _encode_with_all(list(texts.values()), encoders)
        reached = [piece for piece, ids in zip(texts, encodings, strict=True) if missing[piece] in ids]
        if reached:
            found[name] = len(reached)
        for piece in reached:
            del missing[piece]
    return found, missing


def _encode_with_all(texts: Sequence[str], encoders: Sequence[Encode]) -> Sequence[Sequence[int]]:
    first, *others = [[list(ids) for ids in encode(texts)] for encode in encoders]
    for other in others:
        for text, ids, other_ids in zip(texts, first, other, strict=True):
            if ids != other_ids:
                raise UserError(
                    f"the slow and the fast tokenizer disagree on {text!r} ({ids} and {other_ids}): the source "
                    "tokenizer's own "
                    "files disagree, or this is a defect of the expansion; nothing was written"
                )
    return first
