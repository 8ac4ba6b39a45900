"""Verifies that an expanded tokenizer, as transformers loads it, keeps every id of its source."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from colossal_llama.tokenizer.loading import load_with_transformers
from colossal_llama.utils.errors import UserError, truncate_problems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def verify_old_ids(source: Path, expanded: Path, has_slow: bool) -> None:
    """Loads both directories and compares tokens and ids one by one, in both directions.

    Args:
        source: directory of the source tokenizer.
        expanded: directory of the result.
        has_slow: compares the slow tokenizers, too (sentencepiece).

    Raises:
        UserError: names the tokens whose id, and the ids whose token, is another one.
    """
    problems = list(_changes(_load(source, True), _load(expanded, True)))
    if has_slow:
        slow = _load(source, False), _load(expanded, False)
        if not any(tokenizer.is_fast for tokenizer in slow):
            problems += [f"slow tokenizer: {change}" for change in _changes(*slow)]
    if problems:
        conclusion = (
            f"{len(problems)} ids or tokens of the source would change: nothing was written; its own files disagree "
            "with each other, or this is a defect of the expansion"
        )
        raise UserError([*truncate_problems(problems), conclusion])


def _load(directory: Path, use_fast: bool) -> "PreTrainedTokenizerBase":
    return load_with_transformers(directory, use_fast=use_fast)


def _changes(old: "PreTrainedTokenizerBase", new: "PreTrainedTokenizerBase") -> Iterator[str]:
    """Yields what differs: ids of tokens, tokens of ids, added and special tokens."""
    old_ids, new_ids = old.get_vocab(), new.get_vocab()
    for token, token_id in old_ids.items():
        if new_ids.get(token) != token_id:
            yield f"the token {token!r} has id {token_id} in the source and {new_ids.get(token)} in the result"
    ids = sorted(old_ids.values())
    pairs = zip(ids, old.convert_ids_to_tokens(ids), new.convert_ids_to_tokens(ids), strict=True)
    for token_id, old_token, new_token in pairs:
        if new_token != old_token:
            yield f"the id {token_id} is {old_token!r} in the source and {new_token!r} in the result"
    if len(set(new_ids.values())) != len(new_ids):
        yield "the result has one id for two tokens"
    for name, old_value, new_value in (
        ("added tokens", old.added_tokens_decoder, new.added_tokens_decoder),
        ("special tokens", old.special_tokens_map, new.special_tokens_map),
        ("special ids", old.all_special_ids, new.all_special_ids),
    ):
        if str(old_value) != str(new_value):
            yield f"the {name} differ"
