"""Encodes conversations as token ids and target spans, for preparation and inference.

    <bos>A conversation … politely.⏎⏎Human: <bos>Hi<end>Assistant: <bos>Hello!<end>
                                                                        ^^^^^^^^^^^ target

`<end>` is `</s>` on LLaMA-2 and `<|eot_id|>` on LLaMA-3. The sequence is assembled from ids: role
labels and contents are encoded separately, and control tokens are inserted as ids. So no text can
imitate a control token or shift one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from colossal_llama.dataset.role_names import Role
from colossal_llama.dataset.system_prompt import DEFAULT_SYSTEM
from colossal_llama.tokenizer.batch_encoder import BatchEncoder
from colossal_llama.tokenizer.encoding import TextEncoder
from colossal_llama.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LABELS = {"human": "Human: ", "assistant": "Assistant: "}
TURN_END_TOKENS = {2: "</s>", 3: "<|eot_id|>"}


class Message(NamedTuple):
    """A message of a conversation.

    A `system` message may only come first; it replaces the format's system prompt. An answer that
    is not trained is context alone. The class is a tuple, because a corpus has millions of
    messages: constructing one takes a third of a frozen dataclass's time.
    """

    role: Role
    content: str
    is_trained: bool = True


@dataclass(frozen=True)
class EncodedConversation:
    """A conversation as token ids.

    Attributes:
        input_ids: all ids, beginning with BOS.
        target_spans: for every assistant message, trained or not, the half-open range [start, end)
            of its content and its end-of-turn token.
        message_ends: for every message but the system message the position just after its
            end-of-turn token.

        input_ids     <bos> A chat … Human: <bos> Hi <end> Assistant: <bos> Hello ! <end>
        target_spans                                                       [          )
        message_ends                                       ^                             ^
    """

    input_ids: list[int]
    target_spans: list[tuple[int, int]]
    message_ends: list[int]


@dataclass(frozen=True)
class EncodedBatch:
    """Conversations as token ids in flat arrays, one after the other.

    Attributes:
        ids: int32 [tokens].
        ends: int64 [conversations], the position just after each; one without any token could not
            be encoded.
        targets: int64 [answers, 2], half-open ranges of positions, in order; of all answers,
            trained or not.
        content_starts: int64 [messages], the position of the first content token of every message,
            in order; system messages are left out.
        message_ends: int64 [messages], the position just after each message's end-of-turn token.
        refusals: reasons why conversations could not be encoded, by number of the conversation.
    """

    ids: np.ndarray
    ends: np.ndarray
    targets: np.ndarray
    content_starts: np.ndarray
    message_ends: np.ndarray
    refusals: dict[int, str] = field(default_factory=dict)

    def target_mask(self, conversations: Sequence[Sequence[Message]]) -> np.ndarray:
        """Target mask of the encoded conversations: bool [tokens], True for tokens in the loss."""
        trained = [
            message.is_trained
            for number, messages in enumerate(conversations)
            for message in messages
            if message.role == "assistant" and number not in self.refusals
        ]
        targets = self.targets[np.array(trained, bool)]
        steps = np.zeros(len(self.ids) + 1, np.int8)
        steps[targets[:, 0]] += 1
        steps[targets[:, 1]] -= 1
        return np.cumsum(steps[:-1], dtype=np.int8) > 0

    def range_of(self, number: int) -> tuple[int, int]:
        """Half-open range of the positions of a conversation."""
        return int(self.ends[number - 1]) if number else 0, int(self.ends[number])

    def target_spans(self, number: int) -> list[tuple[int, int]]:
        """Target spans of a conversation, relative to its beginning."""
        start, end = self.range_of(number)
        first, last = np.searchsorted(self.targets[:, 0], (start, end))
        return [(begin - start, stop - start) for begin, stop in self.targets[first:last].tolist()]

    def contents(self, number: int) -> list[np.ndarray]:
        """Content ids of each message of a conversation."""
        chosen = self._messages_of(number)
        ranges = zip(self.content_starts[chosen].tolist(), self.message_ends[chosen].tolist(), strict=True)
        return [self.ids[start : end - 1] for start, end in ranges]

    def conversation(self, number: int) -> EncodedConversation:
        """Extracts one conversation."""
        start, end = self.range_of(number)
        ends = self.message_ends[self._messages_of(number)] - start
        return EncodedConversation(self.ids[start:end].tolist(), self.target_spans(number), ends.tolist())

    def _messages_of(self, number: int) -> slice:
        return slice(*np.searchsorted(self.message_ends, self.range_of(number), side="right"))


class ConversationTemplate:
    """The project's chat format, for one tokenizer."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        turn_end: str,
        encoder: TextEncoder | None = None,
        system: str = DEFAULT_SYSTEM,
    ):
        """Encodes everything that does not depend on the messages.

        Args:
            tokenizer: a tokenizer with a BOS token.
            turn_end: the end-of-turn token, a control token.
            encoder: of the tokenizer, if it has been built (LLaMA-3's takes 1.5 s to build).
            system: system prompt of conversations without one; empty: theirs begin with a turn.

        Raises:
            UserError: the tokenizer lacks the end-of-turn token, or a BOS token; the system prompt
                spells out a control token.
        """
        if tokenizer.bos_token_id is None:
            raise UserError(
                f"the tokenizer in {tokenizer.name_or_path} has no BOS token, which begins every message of the "
                "built-in format: choose another by --chat_template (its help lists them)"
            )
        self._encoder = encoder or TextEncoder(tokenizer)
        self._bos_id = tokenizer.bos_token_id
        self._turn_end = turn_end
        self.turn_end_id = control_token_id(tokenizer, turn_end)
        self._label_ids = {
            role: [*self._encoder.encode_continuation([label])[0], self._bos_id] for role, label in LABELS.items()
        }
        refuse_control_tokens(tokenizer, system)
        self._system = system
        self._default_prefix = self._encoded_prefixes([system])[0] if system else [self._bos_id]

    @classmethod
    def for_llama(
        cls,
        tokenizer: "PreTrainedTokenizerFast",
        llama_version: int,
        encoder: TextEncoder | None = None,
        system: str = DEFAULT_SYSTEM,
    ) -> "ConversationTemplate":
        """Chooses the end-of-turn token: `</s>` for LLaMA-2, `<|eot_id|>` for LLaMA-3.

        A LLaMA-3 base tokenizer, whose EOS is `<|end_of_text|>`, works too: the end-of-turn token
        does not depend on the EOS.

        Raises:
            UserError: the tokenizer is not of that version's family (it lacks the end-of-turn
                token), or the version is unknown.
        """
        if llama_version not in TURN_END_TOKENS:
            raise UserError(f"LLaMA version {llama_version} has no conversation format here: give 2 or 3")
        return cls(tokenizer, TURN_END_TOKENS[llama_version], encoder, system)

    def encode(self, messages: Sequence[Message]) -> EncodedConversation:
        """Encodes one conversation.

        Raises:
            ValueError: a system message is not the first one, or a role is unknown.
        """
        return self.encode_batch([messages]).conversation(0)

    def encode_batch(
        self, conversations: Sequence[Sequence[Message]], batch_encoder: BatchEncoder | None = None
    ) -> "EncodedBatch":
        """Encodes many conversations with one call of the tokenizer or of an equivalent encoder.

        The ids are assembled for all turns at once: 0.3 s for 270,000 turns, which took 1.1 s one
        by one.

        Raises:
            ValueError: see `encode`.
        """
        return self._assemble(conversations, lambda texts: self._encoded_contents(texts, batch_encoder))

    def subset_encoder(
        self, messages: Sequence[Message], batch: EncodedBatch, number: int
    ) -> Callable[[Sequence[Message]], EncodedConversation]:
        """Returns an encoder of subsets of an encoded conversation, which tokenizes nothing again.

        Fitting a long conversation into rows tries several subsets. That took 5 of 16 s on
        conversations of which 2 % are long.

        Args:
            messages: of the whole conversation.
            batch: the encoded batch.
            number: of the conversation in the batch.
        """
        turns = _split_system(messages)[1]
        known = {turn.content: ids for turn, ids in zip(turns, batch.contents(number), strict=True)}
        return lambda subset: self._assemble(
            [subset], lambda texts: _flat([known[text] for text in texts])
        ).conversation(0)

    def _assemble(
        self,
        conversations: Sequence[Sequence[Message]],
        encode_contents: Callable[[list[str]], tuple[np.ndarray, np.ndarray]],
    ) -> EncodedBatch:
        split = [_split_system(messages) for messages in conversations]
        turns = [turn for _, of_conversation in split for turn in of_conversation]
        content_ids, content_lengths = encode_contents([turn.content for turn in turns])
        prefixes = self._prefixes([system for system, _ in split])
        prefix_lengths = np.fromiter(map(len, prefixes), np.int64, len(prefixes))
        turns_of = np.array([len(of_conversation) for _, of_conversation in split], np.int64)

        is_answer = np.array([turn.role == "assistant" for turn in turns], bool)
        label_lengths = np.where(is_answer, len(self._label_ids["assistant"]), len(self._label_ids["human"]))
        turn_lengths = label_lengths + content_lengths + 1
        turn_starts = np.cumsum(turn_lengths) - turn_lengths + np.repeat(np.cumsum(prefix_lengths), turns_of)
        turn_ends = turn_starts + turn_lengths
        turns_until = np.concatenate([[0], np.cumsum(turn_lengths)])[np.cumsum(turns_of)]
        ends = np.cumsum(prefix_lengths) + turns_until

        ids = np.empty(int(ends[-1]) if len(ends) else 0, np.int32)
        is_content = np.ones(len(ids), bool)
        for start, prefix in zip((ends - np.diff(ends, prepend=0)).tolist(), prefixes, strict=True):
            ids[start : start + len(prefix)] = prefix
            is_content[start : start + len(prefix)] = False
        for role, chosen in (("human", ~is_answer), ("assistant", is_answer)):
            label = self._label_ids[role]
            positions = turn_starts[chosen][:, None] + np.arange(len(label))
            ids[positions], is_content[positions] = label, False
        ids[turn_ends - 1], is_content[turn_ends - 1] = self.turn_end_id, False
        ids[is_content] = content_ids
        content_starts = turn_starts + label_lengths
        targets = np.stack([content_starts, turn_ends], axis=1)[is_answer]
        return EncodedBatch(ids, ends, targets, content_starts, turn_ends)

    def _encoded_contents(
        self, texts: Sequence[str], batch_encoder: BatchEncoder | None
    ) -> tuple[np.ndarray, np.ndarray]:
        if batch_encoder is not None:
            return batch_encoder.encode(texts, [False] * len(texts))
        return _flat(self._encoder.encode_continuation(texts))

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Encodes a prompt: ids up to and including `Assistant: <bos>`, where the answer begins.

        They are the prefix of `encode([*messages, Message("assistant", answer)]).input_ids` for
        every answer.
        """
        return [*self.encode(messages).input_ids, *self._label_ids["assistant"]]

    def describe(self) -> dict:
        """Describes the format for a manifest: formats with equal descriptions give equal ids."""
        return {
            "kind": "llama",
            "system": self._system,
            "labels": LABELS,
            "turn_end": self._turn_end,
            "turn_end_id": self.turn_end_id,
        }

    def _prefixes(self, systems: Sequence[str | None]) -> list[list[int]]:
        """BOS and system prompt of each conversation; None stands for the default system prompt."""
        own = iter(self._encoded_prefixes([system for system in systems if system is not None]))
        return [self._default_prefix if system is None else next(own) for system in systems]

    def _encoded_prefixes(self, systems: Sequence[str]) -> list[list[int]]:
        return [[self._bos_id, *ids] for ids in self._encoder.encode_beginning([f"{text}\n\n" for text in systems])]


def _flat(lists: Sequence[Sequence[int] | np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Concatenated ids (int32), and the length of each list (int64)."""
    arrays = [np.asarray(ids, np.int32) for ids in lists]
    flat = np.concatenate(arrays) if arrays else np.empty(0, np.int32)
    return flat, np.array([len(ids) for ids in arrays], np.int64)


def control_token_id(tokenizer: "PreTrainedTokenizerFast", token: str) -> int:
    """Looks up the id of a control token.

    Raises:
        UserError: the tokenizer has no such control token.
    """
    for token_id, added in tokenizer.added_tokens_decoder.items():
        if added.content == token:
            return token_id
    known = {"</s>": "LLaMA-2", "<|eot_id|>": "LLaMA-3"}
    family = f", so it is not a {known[token]} tokenizer: check --llama_version" if token in known else ""
    if family:
        family += ", or choose another format by --chat_template (its help lists them)"
    raise UserError(f"the tokenizer in {tokenizer.name_or_path} has no control token {token}{family}")


def refuse_control_tokens(tokenizer: "PreTrainedTokenizerFast", system: str) -> None:
    """Refuses a default system prompt that spells out a control token.

    Other programs would read one, whose chat template holds the text.

    Raises:
        UserError: it does.
    """
    control_tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    spelled = [token for token in control_tokens if token in system]
    if spelled:
        raise UserError(
            f"--system: the text holds {spelled[0]!r}, a control token of the tokenizer in {tokenizer.name_or_path}, "
            "which other programs would read as one: leave it out"
        )


def _split_system(messages: Sequence[Message]) -> tuple[str | None, Sequence[Message]]:
    """Content of the leading system message (None without one), and the other messages."""
    system, turns = None, messages
    if messages and messages[0].role == "system":
        system, turns = messages[0].content, messages[1:]
    for turn in turns:
        if turn.role not in LABELS:
            raise ValueError(f"role {turn.role!r} where only {' or '.join(LABELS)} is allowed")
    return system, turns
