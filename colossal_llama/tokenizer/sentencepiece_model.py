"""A sentencepiece BPE model (`tokenizer.model`), and the fast tokenizer's definition of it.

transformers 4.51 converts such a model by the scores of its pieces. transformers 5.24 passes over
the scores where there is no tokenizer.json: runs of spaces are merged first, and a text that has
one gets other ids than from sentencepiece. So the conversion of 4.51 is made here for 5.
"""

from pathlib import Path
from typing import Any, TypeAlias

from sentencepiece import sentencepiece_model_pb2

from colossal_llama.tokenizer.token_bytes import SPACE_MARK
from colossal_llama.utils.errors import UserError

ModelProto: TypeAlias = sentencepiece_model_pb2.ModelProto
PieceType = ModelProto.SentencePiece.Type
_BPE = sentencepiece_model_pb2.TrainerSpec.BPE


def read_model(path: Path) -> ModelProto:
    """Reads a `tokenizer.model`.

    Raises:
        UserError: the file is not a sentencepiece model, or its type is not BPE.
    """
    model = ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf has no common base for its decoding errors
        raise UserError(f"{path} is not a sentencepiece model: {error}") from error
    if not model.pieces:
        raise UserError(f"{path} is not a sentencepiece model: it holds no pieces")
    if model.trainer_spec.model_type != _BPE:
        kind = sentencepiece_model_pb2.TrainerSpec.ModelType.Name(model.trainer_spec.model_type)
        raise UserError(
            f"{path} is a sentencepiece model of type {kind}: only BPE, the type of LLaMA's, can be expanded"
        )
    return model


def merges_by_score(model: ModelProto) -> list[tuple[str, str]]:
    """Lists the pairs of pieces that make a normal piece, highest score first.

    Among pairs of equal score the longer left part comes first, as in transformers' converter:

        ▁the   ←   ▁th + e,  ▁t + he,  ▁ + the

    Pairs that spell a control token are left out.
    """
    names = {piece.piece for piece in model.pieces}
    normal = PieceType.NORMAL
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == normal}
    merges = [
        (score, cut, len(piece) - cut, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in names and piece[cut:] in names
    ]
    merges.sort(key=lambda merge: merge[:3], reverse=True)
    return [(left, right) for *_, left, right in merges]


def fast_definition(model: ModelProto, is_legacy: bool, adds_space: bool) -> dict[str, Any]:
    """Builds the content of a tokenizer.json, as the converter of transformers 4.51 does.

    Args:
        model: LLaMA's model.
        is_legacy: puts a space before each text between control tokens (`legacy` in
            tokenizer_config.json), not before the first one alone.
        adds_space: puts a space before a text's first word (`add_prefix_space`).
    """
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
    prepend = [{"type": "Prepend", "prepend": SPACE_MARK}] if adds_space else []
    scheme = "first" if adds_space else "never"
    metaspace = {"type": "Metaspace", "replacement": SPACE_MARK, "prepend_scheme": scheme, "split": False}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if adds_space else []
    back = {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "}
    unknown = next((piece.piece for piece in model.pieces if piece.type == PieceType.UNKNOWN), None)
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = (PieceType.UNKNOWN, PieceType.CONTROL)
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": token_id, "content": piece.piece, **plain, "special": piece.type in special}
            for token_id, piece in enumerate(model.pieces)
            if piece.type in (*special, PieceType.USER_DEFINED)
        ],
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]} if is_legacy else None,
        "pre_tokenizer": None if is_legacy else metaspace,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {piece.piece: token_id for token_id, piece in enumerate(model.pieces)},
            "merges": merges_by_score(model),
        },
    }
