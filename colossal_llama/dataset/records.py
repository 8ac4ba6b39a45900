"""Checks input records that are conversations; names what is wrong with them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from colossal_llama.dataset import record_keys
from colossal_llama.dataset.conversation import Message
from colossal_llama.dataset.conversation_forms import Columns, messages_of_record
from colossal_llama.dataset.role_names import KNOWN_ROLES, Role, RoleNames
from colossal_llama.readers.record import RecordError, string_of
from colossal_llama.readers.record_forms import LISTS

DEFAULT_CATEGORY = "default"  # of a conversation without one
CONVERSATION_RULES = 2
"""Number of the rules by which records become messages; another number may give other rows."""


@dataclass(frozen=True)
class Conversation:
    """A fine-tuning record."""

    messages: tuple[Message, ...]
    category: str
    notes: tuple[str, ...] = field(default=(), compare=False)
    """See `readers.fields.Document`."""


def conversation_of(
    record: dict, roles: RoleNames = KNOWN_ROLES, is_prompt: bool = False, columns: Columns = (None, None)
) -> Conversation:
    """Checks a fine-tuning record, in any form of `conversation_forms`.

    Each may have a "category" and a system prompt, which may be empty. Keys that decide what is
    trained are obeyed or refused, other keys are noted (`record_keys`); turns that do not alternate
    are noted or left out (`_checked_turns`).

    Args:
        record: the JSON object.
        roles: meanings of the names of roles; "system" is also that of the record's system prompt.
        is_prompt: the last answer may be missing; one is put there.
        columns: of question and answer, if options name them.

    Raises:
        RecordError: no form fits, or several do; a message is empty or of an unknown role, a key
            asks for what is not supported, or no assistant message is trained.
    """
    notes: list[str] = []
    system = _system_prompt(record, roles, notes)
    category = string_of(record, "category") if record.get("category") is not None else DEFAULT_CATEGORY
    found, used = messages_of_record(record, roles, notes, is_prompt, columns)
    messages = [*system, *found]
    if not used.isdisjoint(LISTS):
        _refuse_unread_instruction(record, messages)
    if is_prompt:
        messages.append(Message("assistant", "?"))
    used |= {"category", "system", "history"}
    if record.keys() - used:
        is_trained = record_keys.read({name: value for name, value in record.items() if name not in used}, "", notes)
        if is_trained is False:
            raise RecordError("no_trained_answer", "the record is marked as not trained: there is nothing to learn")
    return Conversation(
        tuple(_checked_turns(messages, notes, first=1 - len(system))), category or DEFAULT_CATEGORY, tuple(notes)
    )


def _system_prompt(record: dict, roles: RoleNames, notes: list[str]) -> list[Message]:
    """System prompt of a record under whichever name, as a message; none where it is dropped."""
    names = [name for name in record if record_keys.is_system_prompt(name) and record[name] not in (None, "")]
    if not names:
        return []
    notes += roles.notes("system")
    if "system" in roles.dropped:
        notes.append("dropped_messages.system")
        return []
    if len({string_of(record, name) for name in names}) > 1:
        raise RecordError("unknown_form", f'"{names[0]}" and "{names[1]}" differ: leave one system prompt')
    return [Message("system", string_of(record, names[0]))]


def _refuse_unread_instruction(record: dict, messages: Sequence[Message]) -> None:
    """Refuses an "instruction" next to messages, unless one of them says it, too."""
    text = record.get("instruction")
    if text and not (isinstance(text, str) and any(text in message.content for message in messages)):
        raise RecordError(
            "unread_instruction",
            '"instruction" stands next to messages and is in none of them: name it "system", or leave it out',
        )


def _checked_turns(messages: list[Message], notes: list[str], first: int) -> list[Message]:
    """Applies the rules of turns: what cannot be used is refused or left out, what is odd is noted.

    Blank messages (whitespace, or characters that cannot be seen) are refused. Questions after the
    last answer are left out. A first answer without a question, and a message after another one of
    the same role, stay as they are.

    Args:
        messages: of the conversation.
        notes: receives what is left out or odd.
        first: number of the first message in errors; 0 for the record's system prompt.
    """
    before: Role | None = None
    for number, message in enumerate(messages, first):
        # The comparison takes a sixth of the search's time, which is 0.4 microseconds.
        if not ("!" <= message.content[:1] <= "~" or _VISIBLE.search(message.content)):
            raise _blank(message, f"message {number} (from {message.role})" if number else "the system prompt")
        if message.role == "system" and number > first:
            raise _misplaced_system(number, first)
        if message.role == before:
            notes.append("odd_turns.same_role_again")
        elif message.role == "assistant" and before != "human":
            notes.append("odd_turns.answer_without_a_question")
        if not message.is_trained and message.role == "assistant":
            notes.append("untrained_answers.marked_so")
        before = message.role
    answers = [number for number, message in enumerate(messages, 1) if message.role == "assistant"]
    if not answers:
        raise RecordError("no_assistant_message", "the assistant never speaks: there is nothing to learn")
    if not any(messages[number - 1].is_trained for number in answers):
        raise RecordError("no_trained_answer", "every answer is marked as not trained: there is nothing to learn")
    if answers[-1] < len(messages):
        notes.append("documents_cut.question_without_an_answer")
        notes += ["cut_turns.question_without_an_answer"] * (len(messages) - answers[-1])
    return messages[: answers[-1]]


_VISIBLE = re.compile(
    r"[^\s\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    r"\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
"""Neither whitespace, nor a control or format character, a selector, or a filler (Hangul, …)."""


def _blank(message: Message, where: str) -> RecordError:
    if not message.content:
        return RecordError("empty_message", f"{where} is empty")
    return RecordError("blank_message", f"{where} has nothing but blanks")


def _misplaced_system(number: int, first: int) -> RecordError:
    reason = "only the first may be" if first else "the record has a system prompt already, leave one"
    return RecordError("misplaced_system", f"message {number} is a system message: {reason}")
