"""Default system prompts in chat templates: written into a template, and found in one.

A template is given another default by statements before it, which put a system message in front
of conversations that have none. The built-in format, which is written as a template here, has its
system prompt in its first line:

    <s> A conversation … politely.⏎⏎Human: <s>Hi</s>Assistant: <s>Hello!</s>
       ^ LLaMA-2: the ids begin with ▁A, and the tokenizer puts this space at the beginning of a
         text alone, where <s> is
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from colossal_llama.dataset.conversation import LABELS, TURN_END_TOKENS

SPACE = """{%- if not (system.startswith(' ') or system.startswith('▁')) -%}
    {{- ' ' -}}
{%- endif -%}
"""
"""Writes what the tokenizer writes before a text: a space, unless it begins with one."""
_ROLE_NAMES = {"human": ["human", "user"], "assistant": ["assistant", "gpt"], "system": ["system", "developer"]}
"""Names of roles that the template of the built-in format takes; saved models have them."""
_BEFORE, _BEHIND = (
    f"""{{%- if not messages or messages[0]['role'] not in {_ROLE_NAMES["system"]} -%}}
    {{%- set messages = [{{'role': 'system', 'content': """,
    """}] + messages -%}
{%- endif """,
)
"""Around the system prompt that is put in front of a conversation."""
_LITERAL = r'("(?:[^"\\]|\\.)*"(?: \+ "(?:[^"\\]|\\.)*")*)'
_PROLOGUE = re.compile(rf"""{re.escape(_BEFORE)}{_LITERAL}{re.escape(_BEHIND)}(?:-%}}|%}}{{{{- '' }}}})""")
_FIRST_LINE = re.compile(rf"{{%- set system = {_LITERAL} -%}}\n")


@dataclass(frozen=True)
class BuiltinFormat:
    """The built-in format of a LLaMA version, with its system prompt."""

    version: int
    system: str
    space: str
    """Statement that writes a space before the system prompt; empty where none belongs there."""

    @property
    def source(self) -> str:
        """The format as a template."""
        return builtin_source(self.system, LABELS, TURN_END_TOKENS[self.version], self.space)


def builtin_source(system: str, labels: Mapping[str, str], turn_end: str, space: str) -> str:
    """Writes the built-in format as a Jinja template.

    Args:
        system: the default system prompt; empty for none.
        labels: before the messages, by role.
        turn_end: the end-of-turn token.
        space: the statement that writes a space between the first BOS and the system prompt.
    """
    end, human, assistant = _literal(turn_end), _literal(labels["human"]), _literal(labels["assistant"])
    unless_given, given, prompt = "", "", f"{space}{{{{- system + {_literal(chr(10) * 2)} -}}}}\n"
    if not system:
        unless_given, given = "{%- set has_system = false -%}\n", "    {%- set has_system = true -%}\n"
        prompt = f"{{%- if has_system -%}}\n{prompt}{{%- endif -%}}\n"
    return f"""\
{{%- set system = {_literal(system)} -%}}
{unless_given}{{%- set turns = messages -%}}
{{%- if messages and messages[0]['role'] in {_ROLE_NAMES["system"]} -%}}
{given}    {{%- set system = messages[0]['content'] -%}}
    {{%- set turns = messages[1:] -%}}
{{%- endif -%}}
{{%- if system is not string -%}}
    {{{{- raise_exception('the content of the system message must be a string') -}}}}
{{%- endif -%}}
{{{{- bos_token -}}}}
{prompt}{{%- for message in turns -%}}
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


def builtin_format(source: str) -> BuiltinFormat | None:
    """The built-in format that a template is, whatever its system prompt; None for another one."""
    first = _FIRST_LINE.match(source)
    if first is None:
        return None
    system = _text(first[1])
    formats = [BuiltinFormat(version, system, space) for version in TURN_END_TOKENS for space in (SPACE, "")]
    return next((known for known in formats if known.source == source), None)


def with_system(source: str, system: str) -> str:
    """Gives a template another default system prompt, which conversations with their own replace.

    Args:
        source: the template.
        system: empty for none: then the template has its own default, if it has one.
    """
    if (known := builtin_format(source)) is not None:
        return BuiltinFormat(known.version, system, known.space).source
    bare = without_system(source)
    if not system:
        return bare
    # What follows `-%}` loses its white space, and what follows `%}` its line end. Spaces before a
    # statement are removed by transformers where a line begins with them.
    end = "%}{{- '' }}" if bare[:1].isspace() else "-%}"
    bare = re.sub(r"^[ \t]+(?={[%#][^+])", "", bare)
    return f"{_BEFORE}{_literal(system)}{_BEHIND}{end}{bare}"


def without_system(source: str) -> str:
    """A template without the default system prompt that `with_system` has given it."""
    return _PROLOGUE.sub("", source, count=1) if _PROLOGUE.match(source) else source


def system_of(source: str) -> str | None:
    """The default system prompt that `with_system` has given to a template; None without one."""
    found = _PROLOGUE.match(source)
    return _text(found[1]) if found else None


def differ_in_system_alone(source: str, other: str) -> bool:
    """True for templates that are the same, but for their default system prompts."""
    return with_system(source, "") == with_system(other, "")


def _literal(text: str) -> str:
    """String of Jinja, whose escapes are a superset of JSON's.

    Marks of statements are divided, since programs search templates for them.
    """
    return re.sub(r"(?<={)(?=[{%#])|(?<=[}%#])(?=})", '" + "', json.dumps(text, ensure_ascii=False))


def _text(literal: str) -> str:
    return json.loads(literal.replace('" + "', ""))
