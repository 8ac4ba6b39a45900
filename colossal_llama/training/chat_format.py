"""Format of the data's conversations, saved with the tokenizer of every model that a run writes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from colossal_llama.dataset.chat_template import CHAT_DATE, own_template
from colossal_llama.dataset.part import Part
from colossal_llama.dataset.trained_format import (
    TRAINED_TEMPLATE,
    format_name,
    set_trained_template,
    trained_format,
)
from colossal_llama.model.config_file import read_generation_config
from colossal_llama.tokenizer.loading import VOCABULARY_FILES, load_tokenizer
from colossal_llama.utils.console import log_rank_zero


def record_chat_format(tokenizer: PreTrainedTokenizerFast, parts: Sequence[Part], fingerprint: str) -> tuple[int, ...]:
    """Gives the tokenizer the chat template and the day of the data's conversations, if it has any.

    A format that is not recorded (parts of earlier versions) leaves the tokenizer's template as it
    is, and so do documents.

    Args:
        tokenizer: of the run, changed in place.
        parts: of the run.
        fingerprint: of the tokenizer.

    Returns:
        Tokens that end an answer: EOS and the end-of-turn token; none where nothing is changed.
    """
    _record_date(tokenizer, parts)
    if parts[0].kind != "sft":
        return ()
    description = _prevailing_format([part for part in parts if part.tokenizer_fingerprint == fingerprint], len(parts))
    chosen = trained_format(description, tokenizer) if description is not None else None
    if chosen is None:
        kept = "stays" if own_template(tokenizer) else "is missing, too"
        log_rank_zero(
            "warning: the chat format of the data is not recorded (parts of an earlier version, or of another "
            f"tokenizer): the chat template of the model's tokenizer {kept}, which other programs prompt with; prepare "
            "the data again to have it set"
        )
        return ()
    if not chosen.is_exact:
        log_rank_zero(
            f"warning: the tokenizer in {tokenizer.name_or_path} puts a space before the text behind a control token "
            "(legacy, or add_prefix_space), which this training does not: programs that use the model's chat template "
            "send other ids than inference_example.py does"
        )
    set_trained_template(tokenizer, chosen.template)
    return tuple(dict.fromkeys((tokenizer.eos_token_id, chosen.turn_end_id)))


def keep_adapters_format(tokenizer: PreTrainedTokenizerFast, adapter_path: Path) -> tuple[int, ...]:
    """Gives the base's tokenizer the chat template of an adapter that is continued.

    The data may be documents, which leave it as it is.

    Returns:
        Tokens that end an answer by the adapter's generation settings.
    """
    if any((adapter_path / name).is_file() for name in VOCABULARY_FILES):
        adapters = load_tokenizer(adapter_path)
        if adapters.chat_template is not None:
            tokenizer.chat_template = adapters.chat_template
        kept = {CHAT_DATE, TRAINED_TEMPLATE} & adapters.init_kwargs.keys()
        tokenizer.init_kwargs |= {name: adapters.init_kwargs[name] for name in kept}
    stops = read_generation_config(adapter_path).get("eos_token_id")
    return tuple(stops) if isinstance(stops, list) else () if stops is None else (stops,)


def _record_date(tokenizer: PreTrainedTokenizerFast, parts: Sequence[Part]) -> None:
    """Saves with the tokenizer the day that the data's chat template was told, for inference."""
    dates = sorted({part.chat_template_date for part in parts if part.chat_template_date})
    if dates:
        tokenizer.init_kwargs[CHAT_DATE] = dates[-1]
    if len(dates) > 1:
        log_rank_zero(
            f"warning: the chat templates of the parts were told {len(dates)} days, {dates[0]} to {dates[-1]}: the "
            "model is asked with the last one"
        )


def _prevailing_format(parts: Sequence[Part], of_parts: int) -> dict[str, Any] | None:
    """Format of most tokens; a warning names the others, and the parts without a record."""
    counted: list[tuple[dict[str, Any], int, int]] = []
    for part in parts:
        if part.conversation_format is None:
            continue
        wanted = {name: value for name, value in part.conversation_format.items() if name != "date"}
        known = next((number for number, (form, *_) in enumerate(counted) if form == wanted), None)
        if known is None:
            counted.append((wanted, 1, part.tokens))
        else:
            form, number, tokens = counted[known]
            counted[known] = (form, number + 1, tokens + part.tokens)
    if not counted:
        return None
    counted.sort(key=lambda entry: -entry[2])
    listed = [f"{format_name(form)} ({number:,} parts, {tokens:,} tokens)" for form, number, tokens in counted]
    if (missing := of_parts - sum(number for _, number, _ in counted)) > 0:
        listed.append(f"none that is recorded ({missing:,} parts)")
    if len(listed) > 1:
        log_rank_zero(
            f"warning: the conversations were prepared in {len(listed)} formats: {'; '.join(listed)}. The model is "
            "saved with the chat template of the first, and answers best in it: prepare all data with one format"
        )
    return counted[0][0]
