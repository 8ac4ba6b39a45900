"""Opens the usual LLaMA tokenizer directories without transformers, whose import takes 0.7 s and whose loading another 0.4 s.

What `AutoTokenizer` would make of the directory is made here from the same files: for LLaMA-2 the
merges come from tokenizer.model (transformers prefers it to tokenizer.json where
tokenizer_config.json has `add_prefix_space`), for LLaMA-3 tokenizer.json holds everything. The
result is the same to the byte (`backend_tokenizer.to_str()`), which a test holds; a directory with
anything unusual in it is left to transformers.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from colossal_llama.tokenizer.token_bytes import SPACE_MARK

_LLAMA_CLASSES = {"LlamaTokenizer", "LlamaTokenizerFast"}
_GENERAL_CLASSES = {"PreTrainedTokenizer", "PreTrainedTokenizerFast"}
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
_IDLE_SETTINGS = {  # nothing that turns text into ids depends on these
    "chat_template", "clean_up_tokenization_spaces", "model_input_names", "model_max_length", "padding_side",
    "spaces_between_special_tokens", "use_default_system_prompt",
}  # fmt: skip
_MUST_BE_EMPTY = {"additional_special_tokens", "extra_special_tokens", "sp_model_kwargs"}
_KNOWN_SETTINGS = {
    "add_bos_token", "add_eos_token", "add_prefix_space", "added_tokens_decoder", "legacy", "tokenizer_class",
    *_SPECIAL_TOKENS, *_IDLE_SETTINGS, *_MUST_BE_EMPTY,
}  # fmt: skip


class _Unusual(Exception):
    """The directory holds something that only transformers knows how to treat."""


@dataclass(frozen=True)
class DirectTokenizer:
    """The part of transformers' fast tokenizer by which text becomes ids; names as there."""

    backend_tokenizer: Tokenizer
    bos_token: str
    eos_token: str
    name_or_path: str

    @property
    def bos_token_id(self) -> int:
        """The id of BOS."""
        return self.backend_tokenizer.token_to_id(self.bos_token)

    @property
    def eos_token_id(self) -> int:
        """The id of EOS."""
        return self.backend_tokenizer.token_to_id(self.eos_token)

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The tokens outside of the merges, by id."""
        return self.backend_tokenizer.get_added_tokens_decoder()

    def __len__(self) -> int:
        """The size of the vocabulary, added tokens included."""
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)


def open_directly(directory: Path) -> DirectTokenizer | None:
    """The tokenizer of a directory, or None if it is not certain that transformers would make the same of it.

    None means as little as that: a directory that is damaged or holds no tokenizer gives None, too.
    """
    try:
        config = json.loads((directory / "tokenizer_config.json").read_bytes())
        added = _added_tokens(config)
        if config["tokenizer_class"] in _LLAMA_CLASSES:
            backend = _open_llama(directory, config, added)
        elif config["tokenizer_class"] in _GENERAL_CLASSES:
            backend = _read_definition(directory)
        else:
            return None
        backend.add_tokens([added[index] for index in sorted(added)])
        if config["tokenizer_class"] in _LLAMA_CLASSES:
            backend.post_processor = _llama_post_processor(backend, config)
    except Exception:  # transformers then says what is wrong with the directory, if anything is
        return None
    return DirectTokenizer(backend, config["bos_token"], config["eos_token"], str(directory))


def _added_tokens(config: dict) -> dict[int, AddedToken]:
    """The configured added tokens by id.

    Raises:
        _Unusual: the configuration holds what is not known here, or a special token that is not
            among the added ones.
    """
    switches = ("add_bos_token", "add_eos_token", "add_prefix_space", "legacy")
    if set(config) - _KNOWN_SETTINGS or any(config.get(name) for name in _MUST_BE_EMPTY):
        raise _Unusual
    if any(config.get(name) not in (None, True, False) for name in switches):
        raise _Unusual
    added = {int(index): AddedToken(**entry) for index, entry in config["added_tokens_decoder"].items()}
    needed = _SPECIAL_TOKENS[:3] if config["tokenizer_class"] in _LLAMA_CLASSES else _SPECIAL_TOKENS[:2]
    special = {config.get(name) for name in _SPECIAL_TOKENS} - {None}
    known = {token.content for token in added.values() if token.special}
    if any(config.get(name) is None for name in needed) or not special <= known:
        raise _Unusual
    return added


def _read_definition(directory: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json."""
    backend = Tokenizer.from_str((directory / "tokenizer.json").read_text(encoding="utf-8"))
    if backend.truncation is not None or backend.padding is not None:
        raise _Unusual
    if backend.pre_tokenizer and "add_prefix_space" in json.loads(backend.pre_tokenizer.__getstate__()):
        raise _Unusual  # transformers sets it anew
    return backend


# ------------------------------------------------------------------------------------------------------- LLaMA-2


def _open_llama(directory: Path, config: dict, added: Mapping[int, AddedToken]) -> Tokenizer:
    if config.get("add_prefix_space") is None and (directory / "tokenizer.json").exists():
        return _read_definition(directory)
    pieces = _bpe_pieces(directory / "tokenizer.model")
    if any(added[index].content != pieces[index][0] for index in range(3) if index in added):
        raise _Unusual
    vocabulary = {piece: index for index, (piece, _, _) in enumerate(pieces)}
    # transformers gives the first three pieces, which are <unk>, <s> and </s>, the score 0 whatever
    # the model says
    scores = {piece: score if index > 2 else 0.0 for index, (piece, score, _) in enumerate(pieces)}
    merges = merges_by_score(vocabulary, scores)
    model = models.BPE(vocabulary, merges, unk_token=pieces[0][0], fuse_unk=True, byte_fallback=True)
    backend = Tokenizer(model)
    control = [
        AddedToken(piece, normalized=False, special=kind == _CONTROL) for piece, _, kind in pieces if kind in _ADDED
    ]
    backend.add_tokens(control)
    _set_llama_steps(backend, legacy=config.get("legacy") is not False, prefix=config.get("add_prefix_space", True))
    return backend


_CONTROL, _USER_DEFINED = 3, 4  # SentencePiece.Type of sentencepiece_model.proto
_ADDED = (_CONTROL, _USER_DEFINED)
_BPE = 2  # TrainerSpec.ModelType


def _bpe_pieces(path: Path) -> list[tuple[str, float, int]]:
    """Piece, score and type of every id of a `tokenizer.model` whose `<unk>` is id 0."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(path.read_bytes())
    pieces = [(piece.piece, piece.score, piece.type) for piece in model.pieces]
    if model.trainer_spec.model_type != _BPE or pieces[0][0] != model.trainer_spec.unk_piece:
        raise _Unusual
    return pieces


def merges_by_score(vocabulary: Collection[str], scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """The pairs of pieces that make a piece, the best score first: a sentencepiece model as a list of merges.

        ▁the   ←   ▁th + e,  ▁t + he,  ▁ + the      at equal scores the longer left part first

    Args:
        vocabulary: the pieces that a pair may consist of.
        scores: the pieces that a pair may make, in the order of the ids, with their scores.
    """
    merges = [
        (score, cut, len(piece) - cut, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    merges.sort(key=lambda merge: merge[:3], reverse=True)
    return [(left, right) for *_, left, right in merges]


def _set_llama_steps(backend: Tokenizer, legacy: bool, prefix: bool) -> None:
    """What is done to a text before and after the merges; `legacy` is transformers' name for the older way."""
    if legacy:
        prepend = [normalizers.Prepend(prepend=SPACE_MARK)] if prefix else []
        backend.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(pattern=" ", content=SPACE_MARK)])
    else:
        scheme = "first" if prefix else "never"
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE_MARK, prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(content=" ", left=1)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )


def _llama_post_processor(backend: Tokenizer, config: dict) -> processors.TemplateProcessing:
    """What puts BOS and EOS around a text where they are asked for (they never are here, but it is part of the definition)."""
    bos, eos = config["bos_token"], config["eos_token"]
    with_bos, with_eos = config.get("add_bos_token", True), config.get("add_eos_token", False)

    def wrapped(name: str, number: int) -> list[str]:
        return [f"{bos}:{number}"] * bool(with_bos) + [f"${name}:{number}"] + [f"{eos}:{number}"] * bool(with_eos)

    used = [token for token, wanted in ((bos, with_bos), (eos, with_eos)) if wanted]
    return processors.TemplateProcessing(
        single=" ".join(wrapped("A", 0)),
        pair=" ".join(wrapped("A", 0) + wrapped("B", 1)),
        special_tokens=[(token, backend.token_to_id(token)) for token in used],
    )
