"""Encodes conversations by a Jinja chat template: the tokenizer's own, or one from a file.

The rendered text is split at its control tokens and at the boundaries of the generation spans, and
each fragment is encoded by itself. So targets are known by construction and prompts are exact
prefixes:

    <|start|>user⏎Hi<|end|><|start|>assistant⏎Hello<|end|>
    control  text  control  control  text     [ target    )

A control token that is spelled out in a message is escaped while the template is rendered, so that
it stays text.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from colossal_llama.dataset.conversation import EncodedBatch, EncodedConversation, Message
from colossal_llama.tokenizer.batch_encoder import BatchEncoder
from colossal_llama.tokenizer.encoding import TextEncoder
from colossal_llama.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENIZERS_OWN = "tokenizer"  # value of --chat_template that selects the tokenizer's template
ROLE_NAMES = {"human": "user", "assistant": "assistant", "system": "system"}
_ESCAPE = "\ufdd0"  # a noncharacter: Unicode promises that no text needs it
_PROBE = (Message("human", "a question"), Message("assistant", "an answer"))


class ChatTemplateError(Exception):
    """Raised when the template cannot render a conversation, or marks not exactly its answers."""


class ChatTemplate:
    """Chat format given by a Jinja template, with the interface of `ConversationTemplate`."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerFast", source: str, name: str, encoder: TextEncoder | None = None
    ):
        """Compiles and checks the template.

        Args:
            tokenizer: defines the control tokens.
            source: the template, which encloses answers in a `generation` block.
            name: of the template, for messages.
            encoder: of the tokenizer, if it has been built.

        Raises:
            UserError: the template cannot be rendered, marks no answers, or a prompt is not a
                prefix of the conversation.
        """
        self._source, self._name = source, name
        self._encoder = encoder or TextEncoder(tokenizer)
        self._special_ids = {
            token.content: token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        self._token_names = {name: tokenizer.special_tokens_map.get(name, "") for name in ("bos_token", "eos_token")}
        if not re.search(r"{%-?\s*generation\s*-?%}", source):
            raise UserError(
                f"--chat_template: {name} does not mark the assistant's answers: put them between {{% generation %}} "
                "and {% endgeneration %} in a copy of the template, and give that file"
            )
        self.turn_end_id = self._check_with_probe()

    @classmethod
    def open(
        cls, tokenizer: "PreTrainedTokenizerFast", source: str, encoder: TextEncoder | None = None
    ) -> "ChatTemplate":
        """Opens the tokenizer's own template, or that of a file.

        Args:
            tokenizer: see `ChatTemplate`.
            source: the value of `--chat_template`: `tokenizer` or a path.
            encoder: see `ChatTemplate`.

        Raises:
            UserError: there is no template, or it cannot be used.
        """
        if source != TOKENIZERS_OWN:
            return cls(tokenizer, Path(source).read_text(encoding="utf-8"), source, encoder)
        if not isinstance(tokenizer.chat_template, str):
            raise UserError(
                f"--chat_template: the tokenizer in {tokenizer.name_or_path} has no chat template of its own"
            )
        return cls(tokenizer, tokenizer.chat_template, "the tokenizer's template", encoder)

    def encode(self, messages: Sequence[Message]) -> EncodedConversation:
        """Encodes one conversation; its `message_ends` are those of the answers alone.

        Raises:
            ChatTemplateError: the template refuses these messages.
        """
        text, spans = self._rendered(messages, for_prompt=False)
        if len(spans) != sum(message.role == "assistant" for message in messages):
            raise ChatTemplateError(f"{self._name} marks {len(spans)} answers in {len(messages)} messages")
        input_ids, positions = self._ids(text, [boundary for span in spans for boundary in span])
        targets = [(positions[start], positions[end]) for start, end in spans]
        return EncodedConversation(input_ids, targets, [end for _, end in targets])

    def encode_batch(
        self, conversations: Sequence[Sequence[Message]], batch_encoder: BatchEncoder | None = None
    ) -> EncodedBatch:
        """Encodes many conversations; one that the template refuses has no tokens."""
        encoded = [self._encode_or_empty(messages) for messages in conversations]
        ends = np.cumsum([len(conversation.input_ids) for conversation in encoded], dtype=np.int64)
        starts = (ends - np.diff(ends, prepend=0)).tolist()
        targets = [
            (begin + start, end + start)
            for start, conversation in zip(starts, encoded, strict=True)
            for begin, end in conversation.target_spans
        ]
        ids = np.array([token_id for conversation in encoded for token_id in conversation.input_ids], np.int32)
        spans = np.array(targets, np.int64).reshape(-1, 2)
        return EncodedBatch(ids, ends, spans, spans[:, 0], spans[:, 1])

    def subset_encoder(
        self, messages: Sequence[Message], batch: EncodedBatch, number: int
    ) -> Callable[[Sequence[Message]], EncodedConversation]:
        """Returns `encode`: a template may render a subset differently from the whole."""
        return self.encode

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Encodes a prompt, up to where the answer begins."""
        text, spans = self._rendered(messages, for_prompt=True)
        return self._ids(text, [boundary for span in spans for boundary in span])[0]

    def describe(self) -> dict:
        """Describes the format for a manifest: formats with equal descriptions give equal ids."""
        return {"kind": "jinja", "template": self._source, "turn_end_id": self.turn_end_id}

    def _encode_or_empty(self, messages: Sequence[Message]) -> EncodedConversation:
        try:
            return self.encode(messages)
        except ChatTemplateError:
            return EncodedConversation([], [], [])

    # ------------------------------------------------------------------------------------ rendering

    def __getstate__(self) -> dict:
        # A compiled template cannot be pickled.
        return {name: value for name, value in vars(self).items() if name != "_compiled"}

    @cached_property
    def _compiled(self) -> Any:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        return _compile_jinja_template(self._source)

    @cached_property
    def _special(self) -> re.Pattern:
        return re.compile("|".join(map(re.escape, sorted(self._special_ids, key=len, reverse=True))))

    def _rendered(self, messages: Sequence[Message], for_prompt: bool) -> tuple[str, list[tuple[int, int]]]:
        """Renders the template: text with escaped control tokens, and the spans of the answers."""
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import _render_with_assistant_indices

        rendered_messages = [
            {"role": ROLE_NAMES[message.role], "content": self._escaped(message.content)} for message in messages
        ]
        try:
            return _render_with_assistant_indices(
                self._compiled, rendered_messages, None, None, for_prompt, **self._token_names
            )
        except TemplateError as error:
            raise ChatTemplateError(f"{self._name}: {error}") from error

    def _escaped(self, content: str) -> str:
        """Escapes every control token in a message.

        Also escaped is an incomplete one at an end of the message: the text around it in the
        template could complete it.
        """
        if _ESCAPE in content:
            raise ChatTemplateError(
                f"{self._name}: a message holds the noncharacter U+FDD0, which is used to escape control tokens"
            )
        content = self._special.sub(lambda match: match.group()[0] + _ESCAPE + match.group()[1:], content)
        cut = any(content.endswith(token[:size]) for token in self._special_ids for size in range(1, len(token)))
        begun = any(content.startswith(token[size:]) for token in self._special_ids for size in range(1, len(token)))
        return _ESCAPE * begun + content + _ESCAPE * cut

    def _ids(self, text: str, boundaries: Sequence[int]) -> tuple[list[int], dict[int, int]]:
        """Encodes a rendered text; maps boundaries, positions in the text, to token positions."""
        fragments = list(self._fragments(text, sorted({*boundaries, len(text)})))
        plain = [text.replace(_ESCAPE, "") for _, _, text in fragments if text is not None]
        encoded = iter([*self._encoder.encode_beginning(plain[:1]), *self._encoder.encode_continuation(plain[1:])])
        ids: list[int] = []
        positions = {0: 0}
        for end, token, plain_text in fragments:
            ids += [self._special_ids[token]] if plain_text is None else next(encoded)
            positions[end] = len(ids)
        return ids, positions

    def _fragments(self, text: str, boundaries: Sequence[int]) -> Iterator[tuple[int, str, str | None]]:
        """Splits a text at its control tokens and at boundaries.

        Yields:
            (end in the text, control token, None) or (end in the text, "", text).
        """
        start = 0
        for boundary in boundaries:
            for match in self._special.finditer(text, start, boundary):
                if start < match.start():
                    yield match.start(), "", text[start : match.start()]
                yield match.end(), match.group(), None
                start = match.end()
            if start < boundary:
                yield boundary, "", text[start:boundary]
                start = boundary

    def _check_with_probe(self) -> int:
        """Checks that a prompt is a prefix of its conversation; returns the end-of-turn id."""
        try:
            whole, prompt = self.encode(_PROBE), self.prompt_ids(_PROBE[:1])
        except ChatTemplateError as error:
            raise UserError(f"--chat_template: {error}") from error
        start, end = whole.target_spans[0]
        if whole.input_ids[:start] != prompt:
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
        return whole.input_ids[end - 1]
