"""From what a person asks to the token ids of a prompt: the same ids that preparation gives the model to learn from."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from colossal_llama.dataset.chat_template import ChatTemplate, ChatTemplateError
from colossal_llama.dataset.conversation import TURN_END_TOKENS, ConversationTemplate, Message
from colossal_llama.dataset.records import RecordError, conversation_of, document_of
from colossal_llama.tokenizer.encoding import TextEncoder
from colossal_llama.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PRETRAINED_SEPARATOR = "\n\n->\n\n"
Template = ConversationTemplate | ChatTemplate


def pretrained_prompt(text: str) -> str:
    """What a base model completes: the text, a blank line, `->`, a blank line."""
    return text + PRETRAINED_SEPARATOR


class PretrainedPrompt:
    """Prompts for a base model: BOS and the ids of a source, as `prepare_pretrain_dataset.py` begins a document."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast"):
        self._encoder, self._bos_id = TextEncoder(tokenizer), tokenizer.bos_token_id

    def ids(self, source: str) -> list[int]:
        """Ids of BOS and `source`."""
        return [self._bos_id, *self._encoder.encode_beginning([source])[0]]


def llama_version_of(tokenizer: "PreTrainedTokenizerFast") -> int:
    """3 if the tokenizer has LLaMA-3's turn end, else 2."""
    return 3 if TURN_END_TOKENS[3] in tokenizer.get_vocab() else 2


def open_template(
    tokenizer: "PreTrainedTokenizerFast", llama_version: int | None, chat_template: str | None
) -> Template:
    """The conversation format of `prepare_sft_dataset.py` under the same two options.

    Args:
        llama_version: 2 or 3; None: what the tokenizer is.
        chat_template: a Jinja file, "tokenizer" for the tokenizer's own template, or None.

    Raises:
        UserError: the template cannot be used, or the tokenizer is not of that version.
    """
    if chat_template is not None:
        return ChatTemplate.open(tokenizer, chat_template)
    return ConversationTemplate.for_llama(tokenizer, llama_version or llama_version_of(tokenizer))


def conversation_prompt_ids(template: Template, messages: Sequence[Message]) -> list[int]:
    """Ids of the prompt for the assistant's next answer.

    Raises:
        UserError: a chat template does not take these messages (many take no system message).
    """
    try:
        return template.prompt_ids(messages)
    except ChatTemplateError as error:
        raise UserError(str(error)) from error


def source_of(record: dict) -> str:
    """The source of a pre-training record; its target and category are not looked at.

    Raises:
        RecordError: there is no such string.
    """
    return document_of(
        {"source": record["source"], "target": "?", "category": "?"} if "source" in record else {}
    ).source


def messages_of(record: dict) -> list[Message]:
    """The messages of a fine-tuning record, in any form that preparation takes, up to the last human one.

    An answer that the record ends with is left out: it is what the model is asked for.

    Raises:
        RecordError: the record has none of these forms, or no human message.
    """
    # Preparation's checks demand that the assistant speaks; here it has not yet.
    if "instruction" in record:
        asked = {**record, "output": "?"}
    else:
        name = "conversations" if "conversations" in record else "messages"
        listed = record.get(name)
        asked = record
        if isinstance(listed, list):
            asked = {**record, name: [*listed, {"from": "assistant", "content": "?"}]}
    messages = list(conversation_of(asked).messages)
    while messages and messages[-1].role == "assistant":
        messages.pop()
    if not messages or messages[-1].role != "human":
        raise RecordError("no_human_message", "no message of a human to answer")
    return messages


def within_positions(template: Template, messages: Sequence[Message], most_tokens: int) -> tuple[list[Message], int]:
    """The conversation without its oldest exchanges, as many as must go for the prompt to have at most `most_tokens`.

    A system message stays, and so does the last human message, even when it alone is too long.

    Returns:
        The messages, and how many were left out.
    """
    kept, left_out = list(messages), 0
    first = 1 if kept and kept[0].role == "system" else 0
    while len(kept) > first + 1 and len(conversation_prompt_ids(template, kept)) > most_tokens:
        del kept[first : first + 2]
        left_out += 2
    return kept, left_out
