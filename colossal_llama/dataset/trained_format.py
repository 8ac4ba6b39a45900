"""Conversation format that a model was trained with, in the form in which its tokenizer carries it.

Preparation describes its format in every part.json. Training turns that into a chat template of the
tokenizer that it saves, so that every program prompts as training did. The built-in format becomes
a Jinja template, whose text has the ids of `ConversationTemplate` under the tokenizer:

    <s> A conversation … politely.⏎⏎Human: <s>Hi</s>Assistant: <s>Hello!</s>
       ^ LLaMA-2: the ids begin with ▁A, and the tokenizer puts this space at the beginning of a
         text alone, where <s> is

Only what a text cannot say differs: a control token spelled out in a message is one for other
programs. A LLaMA-2 tokenizer of the older kind (`legacy`) puts a space before the text behind every
control token, which no template can prevent.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from colossal_llama.dataset.chat_template import ROLE_NAMES, own_template
from colossal_llama.dataset.conversation import (
    DEFAULT_SYSTEM,
    LABELS,
    TURN_END_TOKENS,
    ConversationTemplate,
    Message,
)
from colossal_llama.dataset.template_presets import PRESETS
from colossal_llama.utils.fingerprint import fingerprint_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_ROLE_NAMES = {"human": ["human", "user"], "assistant": ["assistant", "gpt"], "system": ["system", "developer"]}
"""Names of roles that the template of the built-in format takes; saved models have them."""
TRAINED_TEMPLATE = "trained_chat_template_fingerprint"
"""Key in tokenizer_config.json: the template that a run has set, if it still is that one."""
_SPACE = """{%- if not (system.startswith(' ') or system.startswith('▁')) -%}
    {{- ' ' -}}
{%- endif -%}
"""
"""Writes what the tokenizer writes before a text: a space, unless it begins with one."""
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
        return f"the built-in format with {description.get('turn_end')}"
    return template_name(str(description.get("template")))


def template_name(source: str) -> str:
    """Names a chat template for messages: built-in format, preset, or its first characters."""
    if (version := builtin_version(source)) is not None:
        return f"the built-in format with {TURN_END_TOKENS[version]}"
    for name, preset in PRESETS.items():
        if preset.source == source:
            return name
    start = " ".join(source.split())
    return f"the chat template {start[:40]!r}{' …' if len(start) > 40 else ''}"


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
    messages = (Message("system", system), *_PROBE_TURNS)
    wanted = ConversationTemplate(tokenizer, str(turn_end)).prompt_ids(messages)
    for space in (_SPACE, ""):
        source = jinja_source(system, labels, str(turn_end), space)
        if _template_ids(tokenizer, source, messages) == wanted:
            return TrainedFormat(source, turn_end_id)
    return TrainedFormat(source, turn_end_id, is_exact=False)


def _template_ids(tokenizer: "PreTrainedTokenizerFast", source: str, messages: tuple[Message, ...]) -> list[int]:
    listed = [{"role": ROLE_NAMES[message.role], "content": message.content} for message in messages]
    text = tokenizer.apply_chat_template(listed, chat_template=source, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def jinja_source(system: str, labels: Mapping[str, str], turn_end: str, space: str) -> str:
    """Writes the built-in format as a Jinja template.

    Args:
        system: the default system prompt.
        labels: before the messages, by role.
        turn_end: the end-of-turn token.
        space: the statement that writes a space between the first BOS and the system prompt.
    """
    end, human, assistant = _literal(turn_end), _literal(labels["human"]), _literal(labels["assistant"])
    return f"""\
{{%- set system = {_literal(system)} -%}}
{{%- set turns = messages -%}}
{{%- if messages and messages[0]['role'] in {_ROLE_NAMES["system"]} -%}}
    {{%- set system = messages[0]['content'] -%}}
    {{%- set turns = messages[1:] -%}}
{{%- endif -%}}
{{%- if system is not string -%}}
    {{{{- raise_exception('the content of the system message must be a string') -}}}}
{{%- endif -%}}
{{{{- bos_token -}}}}
{space}{{{{- system + {_literal(chr(10) * 2)} -}}}}
{{%- for message in turns -%}}
    {{%- if message['content'] is not string -%}}
        {{{{- raise_exception('the content of a message must be a string') -}}}}
    {{%- endif -%}}
    {{%- if message['role'] in {_ROLE_NAMES["human"]} -%}}
        {{{{- {human} + bos_token + message['content'] + {end} -}}}}
    {{%- elif message['role'] in {_ROLE_NAMES["assistant"]} -%}}
        {{{{- {assistant} + bos_token -}}}}
        {{%- generation -%}}
            {{{{- message['content'] + {end} -}}}}
        {{%- endgeneration -%}}
    {{%- else -%}}
        {{{{- raise_exception('the roles are user and assistant; a system message may only come first') -}}}}
    {{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}
    {{{{- {assistant} + bos_token -}}}}
{{%- endif -%}}
"""


def _literal(text: str) -> str:
    """String of Jinja, whose escapes are a superset of JSON's."""
    return json.dumps(text, ensure_ascii=False)


def builtin_version(source: str) -> int | None:
    """LLaMA version whose built-in format a template is; None for another template."""
    for version, turn_end in TURN_END_TOKENS.items():
        if source in (jinja_source(DEFAULT_SYSTEM, LABELS, turn_end, space) for space in (_SPACE, "")):
            return version
    return None


def set_trained_template(tokenizer: "PreTrainedTokenizerBase", source: str) -> None:
    """Makes a template the tokenizer's in place of every other, and records that it is trained."""
    if own_template(tokenizer) != source:
        tokenizer.chat_template = source
    tokenizer.init_kwargs[TRAINED_TEMPLATE] = fingerprint_bytes(source.encode())


def trained_template(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The tokenizer's template if a run of training has set it; None for any other one."""
    own, recorded = own_template(tokenizer), tokenizer.init_kwargs.get(TRAINED_TEMPLATE)
    return own if own is not None and recorded == fingerprint_bytes(own.encode()) else None
