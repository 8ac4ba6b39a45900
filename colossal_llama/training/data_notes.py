"""Notes on the data of a run: parts left out, rows given twice, data sets of other programs."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerFast

from colossal_llama.dataset.part import Part
from colossal_llama.dataset.part_paths import FoundParts, left_out_notes
from colossal_llama.dataset.tokenized.part import TokenizedPart, describe, tokenizer_problem
from colossal_llama.utils.console import is_rank_zero, log_rank_zero
from colossal_llama.utils.errors import UserError


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
    first: dict[str, tuple[str, Part]] = {}
    for option, parts in parts_by_option.items():
        for part in parts:
            known_option, known = first.setdefault(part.fingerprint, (option, part))
            if known is not part and part.tokens:
                both = f"{option} {part.path}" if option != known_option else str(part.path)
                log_rank_zero(f"warning: {both} holds the same rows as {known_option} {known.path}")
            if isinstance(part, TokenizedPart):
                for line in describe(part, tokenizer):
                    log_rank_zero(line)


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
