"""Renders chat templates as transformers does, with the answers' spans, at a fixed date.

A template is a program that came with a file of somebody else. It runs in Jinja's sandbox, within
limits of processor time, memory and length, and whatever it raises becomes one sentence.
"""

import json
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from colossal_llama.utils.execution_limits import TimeLimitError, execution_limits

PROCESSOR_TIME_S = 5.0  # for one conversation; the slowest template tried took 2 ms for 100 messages
MEMORY_BYTES = 1 << 30  # for one conversation, besides 64 bytes for each of its characters
RENDERED_CHARACTERS = 10_000_000  # of a rendered conversation, besides ten times its own
_ANSWER_START, _ANSWER_END = "\ufdd1", "\ufdd2"
"""Enclose the answers; noncharacters, of which Unicode promises that no text needs them."""


class ChatTemplateError(Exception):
    """Raised when a template cannot render a conversation, or marks not exactly its answers."""


class ChatTemplateLimitError(ChatTemplateError):
    """Raised when a template exceeds a limit, as it may for the next conversation, too.

    Attributes:
        conversation: number of the conversation in its batch.
    """

    conversation = 0


class _Generation(jinja2.ext.Extension):
    """The block {% generation %} … {% endgeneration %}, which encloses an answer."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it as an attribute of instances)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_enclosed"), [], [], body).set_lineno(line)

    def _enclosed(self, caller: Callable[[], str]) -> str:
        return f"{_ANSWER_START}{caller()}{_ANSWER_END}"


class TemplateRenderer:
    """A chat template with the variables and functions that transformers gives it."""

    def __init__(self, source: str, name: str, token_names: Mapping[str, Any], date: str):
        """Keeps what is needed to compile the template, which happens on first use.

        Args:
            source: the template.
            name: of the template, for messages.
            token_names: variables such as `bos_token`.
            date: that `strftime_now` tells, YYYY-MM-DD.
        """
        self._source, self._name, self._token_names, self._date = source, name, token_names, date

    # A compiled template cannot be pickled.
    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_compiled"}

    def render(self, messages: Sequence[Mapping[str, str]], for_prompt: bool) -> tuple[str, list[tuple[int, int]]]:
        """Renders a conversation, with the beginning of the next answer for a prompt.

        Returns:
            The text, and in it the span of every generation block.

        Raises:
            ChatTemplateError: the template cannot be compiled, or refuses these messages; or a
                message holds a noncharacter that is used here.
        """
        characters = sum(len(message["content"]) for message in messages)
        if any(mark in message["content"] for message in messages for mark in (_ANSWER_START, _ANSWER_END)):
            raise ChatTemplateError(f"{self._name}: a message holds a noncharacter, U+FDD1 or U+FDD2")
        variables = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": for_prompt}
        try:
            with execution_limits(PROCESSOR_TIME_S, MEMORY_BYTES + 64 * characters):
                blocks = self._compiled.generate(**self._token_names, **variables)
                text = self._joined(blocks, RENDERED_CHARACTERS + 10 * characters)
                text.encode()  # fails at half a surrogate pair, which no tokenizer takes
        except (TimeLimitError, MemoryError) as error:
            raise ChatTemplateLimitError(f"{self._name} {_exceeded(error)}") from None
        except ChatTemplateError:
            raise
        except Exception as error:  # a template is a program, which may raise anything
            raise ChatTemplateError(f"{self._name}: {_described(error)}") from error
        return self._without_marks(text)

    def _joined(self, blocks: Iterable[str], most_characters: int) -> str:
        written, characters = [], 0
        for block in blocks:
            written.append(block)
            characters += len(block)
            if characters > most_characters:
                raise ChatTemplateLimitError(f"{self._name} makes more than {most_characters:,} characters of a chat")
        return "".join(written)

    def _without_marks(self, text: str) -> tuple[str, list[tuple[int, int]]]:
        """Removes the marks around the answers; returns the text and the spans of the answers."""
        pieces = text.split(_ANSWER_START)
        written, length, spans = [pieces[0]], len(pieces[0]), []
        for piece in pieces[1:]:
            answer, end, rest = piece.partition(_ANSWER_END)
            if not end or _ANSWER_END in rest:
                raise ChatTemplateError(f"{self._name}: a generation block is within another one")
            spans.append((length, length + len(answer)))
            written += [answer, rest]
            length += len(answer) + len(rest)
        return "".join(written), spans

    @cached_property
    def _compiled(self) -> jinja2.Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, jinja2.ext.loopcontrols],
            finalize=_without_functions,
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_template_error
        environment.globals["strftime_now"] = datetime.fromisoformat(self._date).strftime
        # Rows must not depend on chance.
        del environment.filters["random"], environment.globals["lipsum"]
        return environment.from_string(self._source)


def _without_functions(value: Any) -> Any:
    """Refuses to write a function (`content.strip` without `()`): its text is a memory address."""
    if callable(value) and not isinstance(value, jinja2.Undefined):
        raise jinja2.TemplateError(f"a function is written out instead of being called: {type(value).__name__}")
    return value


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_template_error(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _exceeded(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"needs more than {MEMORY_BYTES >> 30} GiB of memory for a conversation"
    return (
        f"had not rendered a conversation after {PROCESSOR_TIME_S:g} s of processor time: it never ends, or its loops "
        "are too long"
    )


def _described(error: Exception) -> str:
    """One line: the kind of the error, unless the template itself worded it, and its line."""
    if isinstance(error, RecursionError):
        text = "a macro calls itself without end, or expressions are nested too deeply"
    else:
        text = " ".join(str(error).split())[:300]
        if not isinstance(error, jinja2.TemplateError):
            text = f"{type(error).__name__}: {text}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    number = error.lineno if isinstance(error, jinja2.TemplateSyntaxError) else lines[-1] if lines else None
    return text if number is None else f"line {number}: {text}"
