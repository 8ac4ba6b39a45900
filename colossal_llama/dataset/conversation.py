"""Turns the messages of a conversation into token ids and target spans: for preparation and for inference alike.

    <bos>A chat between … polite answers to the human's questions.⏎⏎Human: <bos>Hi<end>Assistant: <bos>Hello!<end>
                                                                                                  ^^^^^^^^^^^ target

`<end>` is `</s>` on LLaMA-2 and `<|eot_id|>` on LLaMA-3. The sequence is put together from ids: labels and contents are
encoded apart and control tokens are inserted as ids, so that no text can imitate or shift one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from colossal_llama.tokenizer.bulk_encoding import BulkEncoder
from colossal_llama.tokenizer.encoding import TextEncoder
from colossal_llama.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Role = Literal["human", "assistant", "system"]

DEFAULT_SYSTEM = (
    "A conversation between a human who is curious about many things and an artificial intelligence assistant. "
    "The assistant answers the human's questions helpfully, in detail and politely."
)
LABELS = {"human": "Human: ", "assistant": "Assistant: "}
TURN_END_TOKENS = {2: "</s>", 3: "<|eot_id|>"}


@dataclass(frozen=True)
class Message:
    """What one side says. A `system` message may only come first; it replaces the default system sentence."""

    role: Role
    content: str


@dataclass(frozen=True)
class EncodedConversation:
    """A conversation as token ids.

    Attributes:
        input_ids: all ids, beginning with BOS.
        target_spans: for every assistant message the half-open range [start, end) of its content and its turn end.
        message_ends: for every message but the system's the position just after its turn end.

        input_ids     <bos> A chat … Human: <bos> Hi <end> Assistant: <bos> Hello ! <end>
        target_spans                                                       [          )
        message_ends                                       ^                             ^
    """

    input_ids: list[int]
    target_spans: list[tuple[int, int]]
    message_ends: list[int]


class ConversationTemplate:
    """The project's conversation format for one tokenizer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", turn_end: str, encoder: TextEncoder | None = None):
        """Prepares the ids of everything that does not depend on the messages.

        Args:
            tokenizer: a tokenizer with a BOS token.
            turn_end: the control token that closes every turn.
            encoder: the tokenizer's, if it is there already (LLaMA-3's takes 1.5 s to build).

        Raises:
            UserError: the tokenizer lacks the turn end.
        """
        self._encoder = encoder or TextEncoder(tokenizer)
        self._bos_id = tokenizer.bos_token_id
        self._turn_end = turn_end
        self.turn_end_id = control_token_id(tokenizer, turn_end)
        self._label_ids = {
            role: [*self._encoder.encode_continuation([label])[0], self._bos_id] for role, label in LABELS.items()
        }
        self._default_opening = self._openings([DEFAULT_SYSTEM])[0]

    @classmethod
    def for_llama(
        cls, tokenizer: "PreTrainedTokenizerFast", llama_version: int, encoder: TextEncoder | None = None
    ) -> "ConversationTemplate":
        """The format of SPEC 3.2: turns end with `</s>` on LLaMA-2 and with `<|eot_id|>` on LLaMA-3.

        A LLaMA-3 base tokenizer, whose EOS is `<|end_of_text|>`, works too: the turn end does not depend on the EOS.

        Raises:
            UserError: the tokenizer is not of that version's family (it lacks the turn end), or the version is unknown.
        """
        if llama_version not in TURN_END_TOKENS:
            raise UserError(f"LLaMA version {llama_version} has no conversation format here: give 2 or 3")
        return cls(tokenizer, TURN_END_TOKENS[llama_version], encoder)

    def encode(self, messages: Sequence[Message]) -> EncodedConversation:
        """Ids and target spans of one conversation (see `EncodedConversation`).

        Raises:
            ValueError: a system message stands elsewhere than at the beginning, or a role is unknown.
        """
        return self.encode_batch([messages])[0]

    def encode_batch(
        self, conversations: Sequence[Sequence[Message]], bulk_encoder: BulkEncoder | None = None
    ) -> list[EncodedConversation]:
        """`encode` for many conversations with one call of the tokenizer, or of a faster encoder that agrees with it."""
        encode_contents = (bulk_encoder or self._encoder).encode_continuation
        split = [_split_system(messages) for messages in conversations]
        custom_systems = [system for system, _ in split if system is not None]
        custom_openings = iter(self._openings(custom_systems))
        contents = iter(encode_contents([turn.content for _, turns in split for turn in turns]))
        encoded = []
        for system, turns in split:
            opening = self._default_opening if system is None else next(custom_openings)
            encoded.append(self._assemble(opening, turns, [next(contents) for _ in turns]))
        return encoded

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids up to and including `Assistant: <bos>`, where the answer to `messages` is to begin.

        They are the prefix of `encode([*messages, Message("assistant", answer)]).input_ids` for every answer.
        """
        return [*self.encode(messages).input_ids, *self._label_ids["assistant"]]

    def describe(self) -> dict:
        """What decides the ids, for a manifest: two preparations with equal descriptions have equal formats."""
        return {
            "kind": "llama",
            "system": DEFAULT_SYSTEM,
            "labels": LABELS,
            "turn_end": self._turn_end,
            "turn_end_id": self.turn_end_id,
        }

    def _openings(self, systems: Sequence[str]) -> list[list[int]]:
        return [[self._bos_id, *ids] for ids in self._encoder.encode_beginning([f"{text}\n\n" for text in systems])]

    def _assemble(
        self, opening: list[int], turns: Sequence[Message], contents: Sequence[list[int]]
    ) -> EncodedConversation:
        input_ids = list(opening)
        target_spans, message_ends = [], []
        for turn, content in zip(turns, contents, strict=True):
            input_ids += self._label_ids[turn.role]
            start = len(input_ids)
            input_ids += content
            input_ids.append(self.turn_end_id)
            if turn.role == "assistant":
                target_spans.append((start, len(input_ids)))
            message_ends.append(len(input_ids))
        return EncodedConversation(input_ids, target_spans, message_ends)


def control_token_id(tokenizer: "PreTrainedTokenizerFast", token: str) -> int:
    """The id of a control token.

    Raises:
        UserError: the tokenizer has no such control token.
    """
    for token_id, added in tokenizer.added_tokens_decoder.items():
        if added.content == token:
            return token_id
    known = {"</s>": "LLaMA-2", "<|eot_id|>": "LLaMA-3"}
    family = f", so it is not a {known[token]} tokenizer: check --llama_version" if token in known else ""
    raise UserError(f"the tokenizer in {tokenizer.name_or_path} has no control token {token}{family}")


def _split_system(messages: Sequence[Message]) -> tuple[str | None, Sequence[Message]]:
    """The text of the leading system message (None without one) and the turns."""
    system, turns = None, messages
    if messages and messages[0].role == "system":
        system, turns = messages[0].content, messages[1:]
    for turn in turns:
        if turn.role not in LABELS:
            raise ValueError(f"role {turn.role!r} at a place where only {' or '.join(LABELS)} may be")
    return system, turns
