"""Conversation format that a model was trained with, in the form in which its tokenizer carries it.

Preparation describes its format in every part.json. Training turns that into a chat template of the
tokenizer that it saves, so that every program prompts as training did. The built-in format becomes
a Jinja template, whose text has the ids of `ConversationTemplate` under the tokenizer.

Only what a text cannot say differs: a control token spelled out in a message is one for other
programs. A LLaMA-2 tokenizer of the older kind (`legacy`) puts a space before the text behind every
control token, which no template can prevent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from colossal_llama.dataset.chat_template import ROLE_NAMES, own_template
from colossal_llama.dataset.conversation import LABELS, TURN_END_TOKENS, ConversationTemplate, Message
from colossal_llama.dataset.system_prompt import DEFAULT_SYSTEM, shown_system
from colossal_llama.dataset.template_presets import PRESETS
from colossal_llama.dataset.template_system import SPACE, builtin_format, builtin_source, system_of, without_system
from colossal_llama.utils.fingerprint import fingerprint_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

TRAINED_TEMPLATE = "trained_chat_template_fingerprint"
"""Key in tokenizer_config.json: the template that a run has set, if it still is that one."""
_PROBE_TURNS = (Message("human", "Hi"), Message("assistant", "Hello, what is it?"), Message("human", "你好"))


@dataclass(frozen=True)
class TrainedFormat:
    """A conversation format as it is saved with a model."""

    template: str
    """Jinja source, which marks the answers."""
    turn_end_id: int
    is_exact: bool = True
    """False where the tokenizer gives other ids to the rendered text than training has."""


def format_name(description: Mapping[str, Any]) -> str:
    """Names a format of a part.json, for messages."""
    if description.get("kind") == "llama":
        return _builtin_name(description.get("turn_end"), description.get("system"))
    return template_name(str(description.get("template")))


def template_name(source: str) -> str:
    """Names a chat template for messages: built-in format, preset, or its first characters."""
    if (known := builtin_format(source)) is not None:
        return _builtin_name(TURN_END_TOKENS[known.version], known.system)
    system, bare = system_of(source), without_system(source)
    name = next((name for name, preset in PRESETS.items() if preset.source == bare), None)
    if name is None:
        start = " ".join(bare.split())
        name = f"the chat template {start[:40]!r}{' …' if len(start) > 40 else ''}"
    return name if system is None else f"{name} and {shown_system(system)}"


def _builtin_name(turn_end: Any, system: Any) -> str:
    own = isinstance(system, str) and system != DEFAULT_SYSTEM
    return f"the built-in format with {turn_end}{f' and {shown_system(system)}' if own else ''}"


def trained_format(description: Mapping[str, Any], tokenizer: "PreTrainedTokenizerFast") -> TrainedFormat | None:
    """Converts the description of a part.json to what is saved; None for an unknown one.

    Args:
        description: see `ConversationTemplate.describe` and `ChatTemplate.describe`.
        tokenizer: the preparation's.

    Raises:
        UserError: the tokenizer lacks the end-of-turn token.
    """
    turn_end_id = description.get("turn_end_id")
    if type(turn_end_id) is not int:
        return None
    if description.get("kind") == "jinja" and isinstance(description.get("template"), str):
        return TrainedFormat(description["template"], turn_end_id)
    labels, system, turn_end = (description.get(name) for name in ("labels", "system", "turn_end"))
    if description.get("kind") != "llama" or not isinstance(labels, dict) or labels.keys() != LABELS.keys():
        return None
    if not isinstance(system, str):
        return None
    template = ConversationTemplate(tokenizer, str(turn_end), system=system)
    probes = (_PROBE_TURNS, (Message("system", "Be kind."), *_PROBE_TURNS))
    wanted = [template.prompt_ids(messages) for messages in probes]
    for space in (SPACE, ""):
        source = builtin_source(system, labels, str(turn_end), space)
        if [_template_ids(tokenizer, source, messages) for messages in probes] == wanted:
            return TrainedFormat(source, turn_end_id)
    return TrainedFormat(source, turn_end_id, is_exact=False)


def _template_ids(tokenizer: "PreTrainedTokenizerFast", source: str, messages: Sequence[Message]) -> list[int]:
    listed = [{"role": ROLE_NAMES[message.role], "content": message.content} for message in messages]
    text = tokenizer.apply_chat_template(listed, chat_template=source, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def builtin_version(source: str) -> int | None:
    """LLaMA version whose built-in format a template is; None for another template."""
    known = builtin_format(source)
    return known.version if known is not None else None


def set_trained_template(tokenizer: "PreTrainedTokenizerBase", source: str) -> None:
    """Makes a template the tokenizer's in place of every other, and records that it is trained."""
    if own_template(tokenizer) != source:
        tokenizer.chat_template = source
    tokenizer.init_kwargs[TRAINED_TEMPLATE] = fingerprint_bytes(source.encode())


def trained_template(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The tokenizer's template if a run of training has set it; None for any other one."""
    own, recorded = own_template(tokenizer), tokenizer.init_kwargs.get(TRAINED_TEMPLATE)
    return own if own is not None and recorded == fingerprint_bytes(own.encode()) else None
