"""Encodes conversations by a Jinja chat template: the tokenizer's own, a preset, or a file's.

The ids are those that the tokenizer gives to the rendered text, as transformers'
`apply_chat_template` returns them. An answer's tokens are those of a generation span of that text:

    <|start|>user⏎Hi<|end|><|start|>assistant⏎Hello<|end|>
    control  text  control  control  text     [ target    )

A control token that is spelled out in a message is escaped while the template is rendered, so that
it stays text.
"""

import re
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from colossal_llama.dataset.conversation import EncodedBatch, EncodedConversation, Message, refuse_control_tokens
from colossal_llama.dataset.template_presets import PRESETS, TOKENIZERS_OWN
from colossal_llama.dataset.template_renderer import ChatTemplateError, ChatTemplateLimitError, TemplateRenderer
from colossal_llama.dataset.template_system import system_of, with_system
from colossal_llama.tokenizer.batch_encoder import BatchEncoder
from colossal_llama.tokenizer.encoding import MARK, TextEncoder, control_mark
from colossal_llama.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

ROLE_NAMES = {"human": "user", "assistant": "assistant", "system": "system"}
DATE_FUNCTION = "strftime_now"  # how a template asks for the date
CHAT_DATE = "chat_template_date"  # in tokenizer_config.json: the day of the data that the model was trained on
_PROBE = (Message("human", "a question"), Message("assistant", "an answer"))


class ChatTemplate:
    """Chat format given by a Jinja template, with the interface of `ConversationTemplate`.

    Attributes:
        source: the template.
        turn_end_id: the token that ends an answer.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        source: str,
        name: str,
        date: str,
        encoder: TextEncoder | None = None,
    ):
        """Compiles and checks the template.

        Args:
            tokenizer: defines the control tokens.
            source: the template, which encloses answers in a `generation` block.
            name: of the template, for messages.
            date: the day that the template is told, YYYY-MM-DD.
            encoder: of the tokenizer, if it has been built.

        Raises:
            UserError: the template cannot be rendered, marks no answers, or a prompt is not a
                prefix of the conversation.
        """
        self.source, self._name, self._date = source, name, date
        self._system = system_of(source)
        if self._system is not None:
            refuse_control_tokens(tokenizer, self._system)
        self._encoder = encoder or TextEncoder(tokenizer)
        self._renderer = TemplateRenderer(source, name, tokenizer.special_tokens_map, date)
        self._special_ids = {
            token.content: token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        if not re.search(r"{%[-+]?\s*generation\s*[-+]?%}", source):
            raise UserError(
                f"--chat_template: {name} does not mark the assistant's answers: put them between {{% generation %}} "
                "and {% endgeneration %} in a copy of the template, and give that file"
            )
        self.turn_end_id = self._check_with_probe()

    @classmethod
    def open(
        cls,
        tokenizer: "PreTrainedTokenizerFast",
        source: str,
        date: str,
        encoder: TextEncoder | None = None,
        system: str | None = None,
    ) -> "ChatTemplate":
        """Opens the tokenizer's own template, a preset, or that of a file.

        Args:
            tokenizer: see `ChatTemplate`.
            source: the value of `--chat_template`: `tokenizer`, the name of a preset, or a path.
            date: see `ChatTemplate`.
            encoder: see `ChatTemplate`.
            system: system prompt of conversations without one, in place of what the template has
                (`with_system`); None leaves the template as it is.

        Raises:
            UserError: there is no template, or it cannot be used.
        """
        template, name = _named_template(tokenizer, source)
        return cls(tokenizer, template if system is None else with_system(template, system), name, date, encoder)

    def encode(self, messages: Sequence[Message]) -> EncodedConversation:
        """Encodes one conversation; its `message_ends` are those of the answers alone.

        Raises:
            ChatTemplateError: the template refuses these messages.
        """
        text, spans = self._rendered(messages, for_prompt=False)
        if len(spans) != sum(message.role == "assistant" for message in messages):
            raise ChatTemplateError(f"{self._name} marks {len(spans)} answers in {len(messages)} messages")
        input_ids, targets = self._ids(text, spans)
        if any(start == end for start, end in targets):
            raise ChatTemplateError(f"{self._name} marks an answer that is empty")
        return EncodedConversation(input_ids, targets, [end for _, end in targets])

    def encode_batch(
        self, conversations: Sequence[Sequence[Message]], batch_encoder: BatchEncoder | None = None
    ) -> EncodedBatch:
        """Encodes many conversations; one that the template refuses has no tokens.

        Raises:
            ChatTemplateLimitError: the template exceeds a limit; its `conversation` is set.
        """
        encoded, refusals = [], {}
        for number, messages in enumerate(conversations):
            try:
                encoded.append(self.encode(messages))
            except ChatTemplateLimitError as error:
                error.conversation = number
                raise
            except ChatTemplateError as error:
                encoded.append(EncodedConversation([], [], []))
                refusals[number] = str(error)
        ends = np.cumsum([len(conversation.input_ids) for conversation in encoded], dtype=np.int64)
        starts = (ends - np.diff(ends, prepend=0)).tolist()
        targets = [
            (begin + start, end + start)
            for start, conversation in zip(starts, encoded, strict=True)
            for begin, end in conversation.target_spans
        ]
        listed = chain.from_iterable(conversation.input_ids for conversation in encoded)
        ids = np.fromiter(listed, np.int32, int(ends[-1]) if encoded else 0)
        spans = np.array(targets, np.int64).reshape(-1, 2)
        return EncodedBatch(ids, ends, spans, spans[:, 0], spans[:, 1], refusals)

    def subset_encoder(
        self, messages: Sequence[Message], batch: EncodedBatch, number: int
    ) -> Callable[[Sequence[Message]], EncodedConversation]:
        """Returns `encode`: a template may render a subset differently from the whole."""
        return self.encode

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Encodes a prompt, up to where the answer begins."""
        return self._ids(self._rendered(messages, for_prompt=True)[0], [])[0]

    def describe(self) -> dict:
        """Describes the format for a manifest: formats with equal descriptions give equal ids."""
        dated = {"date": self._date} if DATE_FUNCTION in self.source else {}
        own_system = {} if self._system is None else {"system": self._system}
        return {
            "kind": "jinja",
            "template": self.source,
            "turn_end_id": self.turn_end_id,
            "ids": "of the rendered text as a whole",
            **own_system,
            **dated,
        }

    # ------------------------------------------------------------------------------------ rendering

    @cached_property
    def _special(self) -> re.Pattern:
        return re.compile("|".join(map(re.escape, sorted(self._special_ids, key=len, reverse=True))))

    @cached_property
    def _special_or_escape(self) -> re.Pattern:
        return re.compile(f"{MARK}|{self._special.pattern}")

    def _rendered(self, messages: Sequence[Message], for_prompt: bool) -> tuple[str, list[tuple[int, int]]]:
        """Renders the template: text with escaped control tokens, and the spans of the answers."""
        for_template = [
            {"role": ROLE_NAMES[message.role], "content": self._escaped(message.content)} for message in messages
        ]
        return self._renderer.render(for_template, for_prompt)

    def _escaped(self, content: str) -> str:
        """Escapes every control token in a message.

        Also escaped is an incomplete one at an end of the message: the text around it in the
        template could complete it.
        """
        if MARK in content:
            raise ChatTemplateError(f"{self._name}: a message holds the noncharacter U+FDD0")
        content = self._special.sub(lambda match: match.group()[0] + MARK + match.group()[1:], content)
        return MARK * self._ends_a_token(content) + content + MARK * self._begins_a_token(content)

    def _begins_a_token(self, content: str) -> bool:
        return content.endswith(self._token_beginnings)

    def _ends_a_token(self, content: str) -> bool:
        return content.startswith(self._token_ends)

    @cached_property
    def _token_beginnings(self) -> tuple[str, ...]:
        return tuple({token[:size] for token in self._special_ids for size in range(1, len(token))})

    @cached_property
    def _token_ends(self) -> tuple[str, ...]:
        return tuple({token[size:] for token in self._special_ids for size in range(1, len(token))})

    def _ids(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[tuple[int, int]]]:
        """Encodes a rendered text; maps spans of the text to spans of tokens.

        A token with text on both sides of a span's boundary is in the span, as it is in the mask
        that transformers makes.
        """
        ends, growths = [0], [0]  # by how much the text has grown at positions from each end on

        def marked(match: re.Match) -> str:
            found = match.group()
            written = "" if found == MARK else control_mark(self._special_ids[found])
            ends.append(match.end())
            growths.append(growths[-1] + len(written) - len(found))
            return written

        ids, positions = self._encoder.encode_marked(self._special_or_escape.sub(marked, text))
        if not spans:
            return ids.tolist(), []
        moved = np.array([[at + growths[bisect_right(ends, at) - 1] for at in span] for span in spans])
        first = np.searchsorted(positions[:, 1], moved[:, 0], side="right")
        after = np.searchsorted(positions[:, 0], moved[:, 1], side="left")
        return ids.tolist(), list(zip(first.tolist(), after.tolist(), strict=True))

    def _check_with_probe(self) -> int:
        """Checks that a prompt is a prefix of its conversation; returns the end-of-turn id."""
        try:
            text, spans = self._rendered(_PROBE, for_prompt=False)
            whole, prompt = self.encode(_PROBE), self._rendered(_PROBE[:1], for_prompt=True)[0]
        except ChatTemplateError as error:
            raise UserError(f"--chat_template: {error}") from error
        if self._system is not None and self._system.strip() not in text:
            raise UserError(f"--system: {self._name} does not write system prompts: choose another --chat_template")
        start, end = whole.target_spans[0]
        if text[: spans[0][0]] != prompt:
            raise UserError(
                f"--chat_template: with {self._name} a prompt does not end where an answer begins: what is between "
                "{% generation %} and {% endgeneration %} must follow what add_generation_prompt gives"
            )
        special = set(self._special_ids.values())
        if whole.input_ids[end - 1] not in special:
            raise UserError(
                f"--chat_template: with {self._name} an answer is not closed by a control token inside of the "
                "generation block, so that the model would not learn to stop: move {% endgeneration %} after the token"
            )
        if whole.input_ids[:start] != self._ids(prompt, [])[0]:
            print(
                f"warning: --chat_template: with {self._name} one token holds the end of a prompt and the beginning of "
                "an answer, so that the model is asked otherwise than it is trained: move the space before an answer "
                "out of the prompt and into the generation block",
                file=sys.stderr,
            )
        return whole.input_ids[end - 1]


def own_template(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Source of the template that a tokenizer has for plain chats; None without one."""
    own = tokenizer.chat_template
    if isinstance(own, dict):  # several by name
        own = own.get("default")
    return own if isinstance(own, str) else None


def _named_template(tokenizer: "PreTrainedTokenizerFast", source: str) -> tuple[str, str]:
    """Source of the template that `--chat_template` chooses, and its name for messages.

    Raises:
        UserError: there is none.
    """
    if source in PRESETS:
        _check_control_tokens(tokenizer, source)
        return PRESETS[source].source, source
    if source != TOKENIZERS_OWN:
        return _read_template(Path(source)), source
    own = own_template(tokenizer)
    if own is None:
        raise UserError(
            f"--chat_template: the tokenizer in {tokenizer.name_or_path} has no chat template of its own: give a "
            f"Jinja file or one of {', '.join(PRESETS)}"
        )
    return own, "the tokenizer's template"


def _check_control_tokens(tokenizer: "PreTrainedTokenizerFast", preset: str) -> None:
    known = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    if missing := [token for token in PRESETS[preset].control_tokens if token not in known]:
        raise UserError(
            f"--chat_template {preset}: the tokenizer in {tokenizer.name_or_path} has no control token "
            f"{', '.join(missing)}: choose the format of its family, or leave --chat_template out for the built-in one"
        )


def chat_date(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Day that the model's chat template was told in training, YYYY-MM-DD; without a record today.

    Raises:
        UserError: the record is no date.
    """
    recorded = tokenizer.init_kwargs.get(CHAT_DATE)
    try:
        day = datetime.now() if recorded is None else datetime.fromisoformat(recorded)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{CHAT_DATE} in tokenizer_config.json of {tokenizer.name_or_path} is {str(recorded)[:40]!r}: write a day "
            "like 2025-01-31, or remove it"
        ) from error
    return day.date().isoformat()


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"--chat_template: {path} is not UTF-8 ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise UserError(f"--chat_template: {path} cannot be read: {error.strerror}") from error
