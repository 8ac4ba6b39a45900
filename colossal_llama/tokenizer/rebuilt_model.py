"""Rebuilds the sentencepiece model of which a tokenizer.json is the conversion.

transformers 5 writes LLaMA-2's kind of tokenizer as tokenizer.json alone. The merges tell the
scores: they are listed by the score of the piece that they make, best first, and for each piece
there is every pair that makes it. Both are checked; other merges are no sentencepiece model's.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from colossal_llama.tokenizer.sentencepiece_model import ModelProto, PieceType, merges_by_score
from colossal_llama.tokenizer.token_bytes import SPACE_MARK
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.json_files import read_json_object

_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))


def rebuild_model(path: Path) -> ModelProto:
    """Rebuilds a model from the content of a tokenizer.json.

    Raises:
        UserError: it is not the conversion of a sentencepiece BPE model with byte fallback.
    """
    definition = read_json_object(path)
    try:
        problem = _problem_of(definition)
        model = ModelProto() if problem else _rebuilt(definition)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        problem = f"it is no tokenizer definition ({type(error).__name__}: {error})"
    if problem is None and not _has_all_merges(definition, model):
        problem = "its merges are not those of a sentencepiece model"
    if problem is not None:
        raise UserError(
            f"{path} cannot be expanded without the tokenizer.model that it was made from: {problem}; byte-level BPE "
            "(LLaMA-3) and sentencepiece BPE (LLaMA-2) can be expanded"
        )
    return model


def _problem_of(definition: dict[str, Any]) -> str | None:
    model = definition["model"]
    if model["type"] != "BPE" or not model.get("byte_fallback") or not model["vocab"].keys() >= _BYTES:
        return f"it is a {model['type']} tokenizer without a token for each byte"
    if sorted(model["vocab"].values()) != list(range(len(model["vocab"]))):
        return "its ids are not 0, 1, 2 …"
    if _unknown(model) not in model["vocab"]:
        return "it has no token for unknown text"
    steps = [*_steps(definition["normalizer"], "normalizers"), *_steps(definition["pre_tokenizer"], "pretokenizers")]
    if other := [step["type"] for step in steps if not _only_marks_spaces(step)]:
        return f"it changes texts otherwise ({', '.join(other)})"
    return None


def _steps(setting: dict[str, Any] | None, key: str) -> Sequence[dict[str, Any]]:
    return () if setting is None else setting.get(key, [setting])


def _only_marks_spaces(step: dict[str, Any]) -> bool:
    """True for a step that writes ▁ for spaces, and before a text."""
    if step["type"] == "Metaspace":
        return step["replacement"] == SPACE_MARK and not step.get("split", True)
    written = step.get("prepend") if step["type"] == "Prepend" else step.get("content")
    return step["type"] in ("Prepend", "Replace") and set(written or "") == {SPACE_MARK}


def _unknown(model: dict[str, Any]) -> str:
    return model.get("unk_token") or "<unk>"  # LLaMA's; transformers 5 leaves it out


def _merges(definition: dict[str, Any]) -> list[tuple[str, str]]:
    """Reads merges: `["a", "b"]`, or `"a b"` in older files."""
    listed = definition["model"]["merges"]
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in listed]
    return [(left, right) for left, right in pairs]


def _levels(products: Sequence[str]) -> dict[str, int]:
    """Numbers pieces by score, best first; those whose merges are listed mixed have one score."""
    last = {piece: place for place, piece in enumerate(products)}
    levels: dict[str, int] = {}
    level, end = 0, -1
    for place, piece in enumerate(products):
        level += place > end
        end = max(end, last[piece])
        levels[piece] = level
    return levels


def _rebuilt(definition: dict[str, Any]) -> ModelProto:
    vocabulary, unknown = definition["model"]["vocab"], _unknown(definition["model"])
    special = {token["content"]: token["special"] for token in definition["added_tokens"]}
    levels = _levels([left + right for left, right in _merges(definition)])
    lowest = 1 + max(levels.values(), default=0)  # of single characters, whose score has no effect
    model = ModelProto()
    for piece in sorted(vocabulary, key=vocabulary.__getitem__):
        added = PieceType.CONTROL if special.get(piece) else PieceType.USER_DEFINED
        kind = PieceType.BYTE if piece in _BYTES else added if piece in special else PieceType.NORMAL
        kind = PieceType.UNKNOWN if piece == unknown else kind
        model.pieces.add(piece=piece, score=-float(levels.get(piece, lowest)), type=kind)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.vocab_size, trainer.byte_fallback = trainer.BPE, len(vocabulary), True
    trainer.unk_id, trainer.unk_piece = vocabulary[unknown], unknown
    normalizer.name, normalizer.remove_extra_whitespaces = "identity", False
    return model


def _has_all_merges(definition: dict[str, Any], model: ModelProto) -> bool:
    merges = _merges(definition)
    levels = _levels([left + right for left, right in merges])
    return _by_level(merges, levels) == _by_level(merges_by_score(model), levels)


def _by_level(merges: Iterable[tuple[str, str]], levels: dict[str, int]) -> dict[int, list[tuple[str, str]]]:
    """Groups merges by score; the order of those that make one piece has no effect."""
    groups: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for left, right in merges:
        groups[levels.get(left + right, 0)].append((left, right))
    return {
        level: pairs if len({left + right for left, right in pairs}) > 1 else sorted(pairs)
        for level, pairs in groups.items()
    }
