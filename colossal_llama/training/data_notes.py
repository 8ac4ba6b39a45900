"""Notes on the data of a run: parts left out, rows given twice, data sets of other programs."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerFast

from colossal_llama.dataset.part import Part
from colossal_llama.dataset.part_paths import FoundParts, left_out_notes
from colossal_llama.dataset.tokenized.part import TokenizedPart, describe, tokenizer_problem
from colossal_llama.utils.console import is_rank_zero, log_rank_zero
from colossal_llama.utils.errors import UserError

_SHOWN = 5
"""Data sets of other programs that are described one by one."""


def report_paths(found: Mapping[str, FoundParts]) -> None:
    """Logs what was found besides the parts, and which parts of a preparation are not given."""
    if not is_rank_zero():
        return
    notes = [note for parts in found.values() for note in parts.notes]
    for note in (*notes, *left_out_notes({option: parts.paths for option, parts in found.items()})):
        log_rank_zero(note)


def report_parts(parts_by_option: Mapping[str, Sequence[Part]], tokenizer: PreTrainedTokenizerFast) -> None:
    """Logs copies of rows, and what the data sets of other programs are."""
    if not is_rank_zero():
        return
    for line in _copies(parts_by_option):
        log_rank_zero(line)
    tokenized = [part for parts in parts_by_option.values() for part in parts if isinstance(part, TokenizedPart)]
    for part in tokenized[:_SHOWN]:
        for line in describe(part, tokenizer):
            log_rank_zero(line)
    if rest := tokenized[_SHOWN:]:
        tokens = sum(part.tokens for part in rest)
        log_rank_zero(f"and {len(rest):,} more data sets tokenized elsewhere, {tokens:,} tokens")


def _copies(parts_by_option: Mapping[str, Sequence[Part]]) -> list[str]:
    """Warnings of parts whose rows are there already: of each option the first, and a number."""
    first: dict[str, tuple[str, Part]] = {}
    copies: dict[str, list[str]] = {}
    for option, parts in parts_by_option.items():
        for part in parts:
            known_option, known = first.setdefault(part.fingerprint, (option, part))
            if known is not part and part.tokens:
                copies.setdefault(option, []).append(f"{part.path} holds the same rows as {known_option} {known.path}")
    return [
        f"warning: {option}: {found[0]}" + (f"; so it is with {len(found) - 1:,} more" if len(found) > 1 else "")
        for option, found in copies.items()
    ]


def refuse_other_ids(
    parts_by_option: Mapping[str, Sequence[Part]], tokenizer: PreTrainedTokenizerFast, ids: int
) -> None:
    """Refuses data sets of other programs that cannot be of the model's tokenizer.

    Raises:
        UserError: their ids or their padding contradict it; each is named.
    """
    problems = [
        f"{option}: {problem}"
        for option, parts in parts_by_option.items()
        for part in parts
        if isinstance(part, TokenizedPart) and (problem := tokenizer_problem(part, tokenizer, ids))
    ]
    if problems:
        raise UserError(problems)
