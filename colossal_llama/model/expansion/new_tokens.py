"""New tokens of an expanded tokenizer, each split into pieces of the source's vocabulary."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from colossal_llama.tokenizer.encoding import TextEncoder
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.errors import UserError

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class NewTokens:
    """Properties of an expanded tokenizer that its model needs.

    Attributes:
        source_vocabulary: rows that an embedding needs for the source tokenizer.
        target_vocabulary: rows that an embedding needs for the target tokenizer.
        source_pieces: of each of the target's ids beyond the source's (`split_into_source_pieces`).
        special_ids: the target's, by the names in SPECIAL_IDS.
    """

    source_vocabulary: int
    target_vocabulary: int
    source_pieces: list[list[int]]
    special_ids: dict[str, int | None]


def read_new_tokens(source_directory: Path, target_directory: Path) -> NewTokens:
    """Loads both tokenizers and compares them.

    Raises:
        UserError: one of them is missing or damaged, or the target does not extend the source.
    """
    source, target = load_tokenizer(source_directory), load_tokenizer(target_directory)
    check_extends_source(source, target, str(target_directory))
    first, end = vocabulary_rows(source), vocabulary_rows(target)
    pieces = split_into_source_pieces(source, target, range(first, end))
    return NewTokens(first, end, pieces, {name: getattr(target, name) for name in SPECIAL_IDS})


def check_extends_source(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast, target_name: str) -> None:
    """Checks that every token of the source has the same id in the target.

    Raises:
        UserError: a token has another id, or none.
    """
    known, expanded = source.get_vocab(), target.get_vocab()
    changed = sorted((index, token) for token, index in known.items() if expanded.get(token) != index)
    if changed:
        index, token = changed[0]
        raise UserError(
            f"the tokenizer in {target_name} does not extend the source model's: {len(changed):,} of {len(known):,} "
            f"tokens have another id or none, for example {token!r}, which is {index} in the source and "
            f"{expanded.get(token)} in the target. "
            "Expand the source model's own tokenizer with init_tokenizer.py"
        )


def vocabulary_rows(tokenizer: PreTrainedTokenizerFast) -> int:
    """Number of rows that an embedding needs for a tokenizer: its greatest id + 1."""
    return max(tokenizer.get_vocab().values()) + 1


def split_into_source_pieces(
    source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast, rows: range
) -> list[list[int]]:
    """Splits each of the target's ids in `rows` into source ids; an id without token into none.

    A vocabulary piece is passed to the source's BPE model directly, without normalizer and
    pre-tokenizer. That keeps it as it is: LLaMA-2's 你好 gets no ▁ before it, and ▁你好 keeps
    its own (a space in the text). A byte-level piece of LLaMA-3, which may begin or end within a
    character, is split as the bytes it stands for. Added tokens (`<|im_start|>` …) are no pieces:
    their text is encoded as plain text that continues a document.

        LLaMA-2   你好 → 你 好    ▁你好 → ▁ 你 好    越来越 → 越 来 越    龘 → <0xE9> <0xBE> <0x98>
    """
    pieces = {index: piece for piece, index in target.backend_tokenizer.get_vocab(with_added_tokens=False).items()}
    added = {index: token.content for index, token in target.added_tokens_decoder.items()}
    texts = [added[index] for index in rows if index in added]
    of_added = iter(TextEncoder(source).encode_continuation(texts) if texts else ())
    model = source.backend_tokenizer.model
    result = []
    for index in rows:
        if index in added:
            result.append(next(of_added))
        elif index in pieces:
            result.append([token.id for token in model.tokenize(pieces[index])])
        else:
            result.append([])
    return result
