"""A tokenizer as llama.cpp reads it from a GGUF file: tokens, their types, merges or scores.

llama.cpp has its own code for each way of cutting a text before merges are applied, and knows them
by name. Its converter finds the name by the ids of a fixed text with Chinese words in it, which an
expanded tokenizer encodes otherwise. Here the definition itself is compared.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from colossal_llama.tokenizer.pretokenizer import extended_scripts
from colossal_llama.tokenizer.token_bytes import is_byte_level
from colossal_llama.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6
"""Types of tokens (`gguf.TokenType`)."""
_SPECIAL_SCORE, _UNUSED_SCORE = -1000.0, -10000.0  # as llama.cpp's converter writes them
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_PATTERN = _LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
_PRE_TOKENIZERS = {
    (_LLAMA3_PATTERN, True): "llama-bpe",
    (_LLAMA3_PATTERN, False): "smaug-bpe",  # the same pattern; words are not looked up as a whole
    (_QWEN2_PATTERN, False): "qwen2",
    ("digits", False): "smollm",
    ("", False): "gpt-2",
}
"""llama.cpp's name by pattern and `ignore_merges`."""


@dataclass(frozen=True)
class GgufVocabulary:
    """Vocabulary of a GGUF file; a token for every row of the embeddings.

    Attributes:
        kind: llama.cpp's algorithm, `llama` (sentencepiece BPE) or `gpt2` (byte-level BPE).
        pre_tokenizer: llama.cpp's name of the way in which a text is cut before merges.
        tokens: text by id.
        types: type by id.
        scores: for `llama`, by id: of two possible merges the one into the higher score is made.
        merges: for `gpt2`, in order: `"a b"`.
        notes: what llama.cpp does otherwise than transformers, a sentence each.
    """

    kind: str
    pre_tokenizer: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    notes: list[str]


def read_vocabulary(tokenizer: "PreTrainedTokenizerFast", rows: int) -> GgufVocabulary:
    """Reads what llama.cpp needs from a tokenizer.

    Args:
        tokenizer: a fast tokenizer.
        rows: of the model's embeddings, which may be more than the tokenizer has tokens.

    Raises:
        UserError: llama.cpp has no tokenizer that gives the same ids.
    """
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    model, name = definition["model"], tokenizer.name_or_path
    if model["type"] != "BPE":
        raise UserError(f"--gguf: the tokenizer in {name} is of type {model['type']}; llama.cpp is given BPE only")
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
    merges = [(left, right) for left, right in pairs]
    byte_level = is_byte_level(definition)
    tokens, types = _tokens(definition, rows, name, byte_level)
    notes = list(_notes(definition))
    if byte_level:
        pre_tokenizer, written = _byte_level_name(definition, name), [" ".join(merge) for merge in merges]
        return GgufVocabulary("gpt2", pre_tokenizer, tokens, types, [], written, notes)
    made = _sentencepiece_scores(definition, merges, name)
    by_type = {CONTROL: _SPECIAL_SCORE, USER_DEFINED: _SPECIAL_SCORE, UNUSED: _UNUSED_SCORE, BYTE: 0.0}
    scores = [by_type.get(kind, made.get(token, -float(len(made)))) for token, kind in zip(tokens, types, strict=True)]
    return GgufVocabulary("llama", "default", tokens, types, scores, [], notes)


def _tokens(definition: dict, rows: int, name: str, byte_level: bool) -> tuple[list[str], list[int]]:
    added = {token["id"]: token for token in definition["added_tokens"]}
    by_id = {token_id: token for token, token_id in definition["model"]["vocab"].items()}
    by_id |= {token_id: token["content"] for token_id, token in added.items()}
    if max(by_id) >= rows:
        raise UserError(f"--gguf: the tokenizer in {name} has the id {max(by_id)}, the model {rows:,} rows only")
    tokens, types = [], []
    for token_id in range(rows):
        token = by_id.get(token_id, f"[PAD{token_id}]")
        if token_id in added:
            kind = CONTROL if added[token_id]["special"] else USER_DEFINED
            if kind == USER_DEFINED and not byte_level:
                token = token.replace("▁", " ")  # llama.cpp looks for it before spaces become ▁
        elif token_id not in by_id:
            kind = UNUSED
        else:
            kind = BYTE if not byte_level and _is_byte(token) else NORMAL
        tokens.append(token)
        types.append(kind)
    if len(set(tokens)) < rows:  # llama.cpp stops at an assertion
        twice = next(token for token in tokens if tokens.count(token) > 1)
        raise UserError(f"--gguf: two tokens of the tokenizer in {name} have the text {twice!r} in a GGUF file")
    return tokens, types


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _byte_level_name(definition: dict, name: str) -> str:
    """Finds llama.cpp's name of a byte-level tokenizer's way of cutting a text.

    Raises:
        UserError: it is none of those known.
    """
    if scripts := extended_scripts(definition["pre_tokenizer"]):
        raise UserError(
            f"--gguf: the tokenizer in {name} keeps combining marks with letters of {', '.join(scripts)} "
            "(init_tokenizer.py --extend_pretokenizer). llama.cpp knows pre-tokenizers by name, none like this: "
            "it would cut these words, and the model would get other ids than in training. Use a program that reads "
            "tokenizer.json (transformers, vLLM, SGLang), or expand without that option for llama.cpp"
        )
    key = (_pattern(definition["pre_tokenizer"]), bool(definition["model"].get("ignore_merges")))
    if key not in _PRE_TOKENIZERS or (definition["normalizer"] or {"type": "NFC"}) != {"type": "NFC"}:
        steps = {step: definition[step] for step in ("normalizer", "pre_tokenizer")}
        raise UserError(
            f"--gguf: the tokenizer in {name} cuts texts in a way that is none of LLaMA-3's, Qwen2's, SmolLM's and "
            f"GPT-2's, the ones whose names in llama.cpp are known here: {json.dumps(steps)[:400]}"
        )
    return _PRE_TOKENIZERS[key]


def _pattern(pre_tokenizer: Mapping[str, Any]) -> str | None:
    """The pattern of a pre-tokenizer that ends in byte-level characters; None for another."""
    *before, byte_level = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    if byte_level["type"] != "ByteLevel" or byte_level["add_prefix_space"]:
        return None
    match before, byte_level.get("use_regex", True):
        case [], True:
            return ""
        case [{"type": "Digits", "individual_digits": True}], True:
            return "digits"
        case [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}], False:
            return pattern
    return None


def _sentencepiece_scores(definition: dict, merges: Sequence[tuple[str, str]], name: str) -> dict[str, float]:
    """Scores by which llama.cpp merges as the tokenizer's merges do, of the tokens that they make.

    llama.cpp merges any two neighbours whose concatenation is a token, the highest score first, at
    equal scores the leftmost. So all pairs that make a token must be merges, of successive ranks.
    LLaMA-2's runs of spaces alone have one score together, and their ranks are mixed.

    Raises:
        UserError: the merges are others; or characters that are no tokens do not fall to bytes.
    """
    if not definition["model"]["byte_fallback"]:
        raise UserError(f"--gguf: the tokenizer in {name} is neither byte-level nor has it tokens for bytes")
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        first.setdefault(left + right, rank)
        last[left + right] = rank
    scores: dict[str, float] = {}
    group: list[str] = []  # tokens whose ranks are mixed
    end, problem = -1, _missing_merge(definition, set(merges))
    for token, rank in first.items():
        group = [*group, token] if rank < end else [token]
        if len(group) > 1 and len(set("".join(group))) > 1:
            problem = problem or f"the ranks of those that make {group[0]!r} and {token!r} are mixed"
        end = max(end, last[token])
        scores[token] = scores[group[0]] if len(group) > 1 else -float(len(scores))
    if problem:
        raise UserError(
            f"--gguf: the merges of the tokenizer in {name} are not those of a sentencepiece model ({problem}): "
            "llama.cpp, which merges by score, would give other ids"
        )
    return scores


def _missing_merge(definition: dict, merges: set[tuple[str, str]]) -> str | None:
    """A pair of tokens that makes a third and is no merge, as a phrase."""
    vocabulary = definition["model"]["vocab"]
    special = {token["content"] for token in definition["added_tokens"]}
    for token in vocabulary.keys() - special:
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary and (left, right) not in merges:
                return f"none makes {token!r} of {left!r} and {right!r}"
    return None


def _notes(definition: dict) -> Iterator[str]:
    if definition["normalizer"] == {"type": "NFC"}:
        yield "llama.cpp does not compose characters (NFC) before it encodes a text, as this tokenizer does"
    cut = [
        token["content"]
        for token in definition["added_tokens"]
        if token["lstrip"] or token["rstrip"] or token["single_word"]
    ]
    if cut:
        yield (
            f"llama.cpp knows no lstrip, rstrip or single_word: ids next to {', '.join(map(repr, cut[:3]))}"
            f"{' …' if len(cut) > 3 else ''} may differ"
        )
