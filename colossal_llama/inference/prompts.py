"""Builds the token ids of prompts, equal to the ids that preparation makes of the same text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from colossal_llama.dataset.chat_template import ChatTemplate, chat_date, own_template
from colossal_llama.dataset.conversation import TURN_END_TOKENS, ConversationTemplate, Message
from colossal_llama.dataset.records import conversation_of
from colossal_llama.dataset.system_prompt import DEFAULT_SYSTEM
from colossal_llama.dataset.template_presets import CHOICES, TOKENIZERS_OWN
from colossal_llama.dataset.template_renderer import ChatTemplateError
from colossal_llama.dataset.template_system import builtin_format, differ_in_system_alone
from colossal_llama.dataset.trained_format import builtin_version, format_name, template_name, trained_template
from colossal_llama.readers.record import RecordError, string_of
from colossal_llama.tokenizer.encoding import TextEncoder
from colossal_llama.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PRETRAINED_SEPARATOR = "\n\n->\n\n"
Template = ConversationTemplate | ChatTemplate


def pretrained_prompt(text: str) -> str:
    """Returns what a base model completes: the text, a blank line, `->` and a blank line."""
    return text + PRETRAINED_SEPARATOR


class PretrainedPrompt:
    """Prompts for a base model: BOS and the ids of a source, as a prepared document begins.

    There is no BOS where the tokenizer has none (Qwen's).
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast"):
        bos_id: int | None = tokenizer.bos_token_id
        self._encoder, self._beginning = TextEncoder(tokenizer), [] if bos_id is None else [bos_id]

    def ids(self, source: str) -> list[int]:
        """Returns BOS and the ids of `source`."""
        return [*self._beginning, *self._encoder.encode_beginning([source])[0]]


def detect_llama_version(tokenizer: "PreTrainedTokenizerFast") -> int:
    """Returns 3 if the tokenizer has LLaMA-3's turn-end token, else 2."""
    return 3 if TURN_END_TOKENS[3] in tokenizer.get_vocab() else 2


def open_template(
    tokenizer: "PreTrainedTokenizerFast",
    llama_version: int | None,
    chat_template: str | None,
    without_system: bool = False,
) -> Template:
    """Opens the conversation format of `prepare_sft_dataset.py` under the same options.

    Without them it is the format that the model was trained with, where training has recorded it.
    With them its system prompt is still the recorded one, if the format has the rest in common.

    Args:
        tokenizer: the model's tokenizer.
        llama_version: 2 or 3; None: as recorded, or detected from the tokenizer.
        chat_template: a Jinja file, the name of a preset, "tokenizer" for the tokenizer's own
            template, or None.
        without_system: conversations without a system message have no system prompt at all.

    Raises:
        UserError: the template cannot be used, or the tokenizer is not of that version.
    """
    trained = trained_template(tokenizer)
    builtin = builtin_format(trained) if trained is not None else None
    if chat_template is None and (llama_version is not None or trained is None or builtin is not None):
        version = llama_version or (builtin.version if builtin else detect_llama_version(tokenizer))
        system = "" if without_system else builtin.system if builtin else DEFAULT_SYSTEM
        return ConversationTemplate.for_llama(tokenizer, version, system=system)
    source, date = chat_template or TOKENIZERS_OWN, chat_date(tokenizer)
    opened = ChatTemplate.open(tokenizer, source, date, system="" if without_system else None)
    if trained is not None and not without_system and differ_in_system_alone(trained, opened.source):
        return ChatTemplate.open(tokenizer, TOKENIZERS_OWN, date)
    return opened


def other_format_notice(tokenizer: "PreTrainedTokenizerFast", template: Template | None) -> str | None:
    """Returns a notice where prompts have another format than the tokenizer's chat template.

    Args:
        tokenizer: the model's tokenizer.
        template: the format of the prompts; None for those of a base model.
    """
    own, is_trained = own_template(tokenizer), trained_template(tokenizer) is not None
    used = template.describe() if template is not None else {}
    if own is None or (template is None and not is_trained):
        return None
    version = builtin_version(own)
    if isinstance(template, ChatTemplate) and differ_in_system_alone(template.source, own):
        return None
    if version is not None and used.get("turn_end") == TURN_END_TOKENS[version]:
        return None
    if template is None:
        return f"note: the model was fine-tuned on conversations in {template_name(own)}: --prompt_style sft asks it so"
    if is_trained:
        return (
            f"note: the model was fine-tuned in {template_name(own)}, and is asked in {format_name(used)}: leave out "
            "--llama_version and --chat_template to ask it as it was trained"
        )
    return (
        f"note: the model is asked in {format_name(used)}, not in the chat template that its tokenizer has: if it was "
        f"trained with that one, give it as --chat_template ({CHOICES})"
    )


def conversation_prompt_ids(template: Template, messages: Sequence[Message]) -> list[int]:
    """Returns the ids of the prompt for the assistant's next answer.

    Raises:
        UserError: a chat template refuses these messages (many take no system message).
    """
    try:
        return template.prompt_ids(messages)
    except ChatTemplateError as error:
        raise UserError(str(error)) from error


def prompt_source(record: dict) -> str:
    """Returns the source of a pre-training record; its target and category are ignored.

    Raises:
        RecordError: the record has no `source`, or one that is not a string.
    """
    return string_of(record, "source")


def prompt_messages(record: dict) -> list[Message]:
    """Returns the messages of a fine-tuning record up to the last human one.

    The record has any form that preparation takes. A final answer of the assistant is dropped: it
    is what the model shall generate.

    Raises:
        RecordError: the record has none of these forms, or no human message.
    """
    messages = list(conversation_of(record, is_prompt=True).messages)
    while messages and messages[-1].role == "assistant":
        messages.pop()
    if not messages or messages[-1].role != "human":
        raise RecordError("no_human_message", "no message of a human to answer")
    return messages


def drop_oldest_exchanges(
    template: Template, messages: Sequence[Message], max_tokens: int
) -> tuple[list[Message], int]:
    """Drops as many of the oldest exchanges as needed for a prompt of at most `max_tokens`.

    The system message is kept, and so is the last human message, even if it is too long by itself.

    Returns:
        The messages kept, and the number of messages dropped.
    """
    kept, dropped = list(messages), 0
    first = 1 if kept and kept[0].role == "system" else 0
    while len(kept) > first + 1 and len(conversation_prompt_ids(template, kept)) > max_tokens:
        del kept[first : first + 2]
        dropped += 2
    return kept, dropped
