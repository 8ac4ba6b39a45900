"""Reads the messages of fine-tuning records, in the forms that public data sets have.

    list of messages    "messages" or "conversations" (ShareGPT, OpenAI); also "conversation",
                        "dialogue", "dialog", "chat", "turns", "items", "data":
                        [{"role" or "from": …, "content" or "value": …}, …]
    list of exchanges   under the same names: [{"human": …, "assistant": …}, …] (Firefly), or
                        [{"input": …, "output": …}, …] (Capybara), or [["question", "answer"], …]
    list of texts       under the same names: ["question", "answer", …] (UltraChat, LIMA)
    exchange            {QUESTION: …, ANSWER: …} (Alpaca, Dolly, OpenOrca, GSM8K, MetaMath, Belle …)
                        QUESTION instruction, prompt, question, query, problem, input or inputs
                        ANSWER   output, completion, response, answer, solution, target or targets
                        or human or user, and assistant, gpt or bot; without an ANSWER the first of
                        "answers": {"text": [answer, …]} (SQuAD), of which others are counted
    chat of turns       "chat": {"turn_1": {"Human": …, "MOSS": …}, …} (MOSS)
    tree                "prompt": {"text": …, "role": …, "replies": […]}, of which the best replies
                        are read, and the others counted (OASST)
    transcript          one text with [|Human|] and [|AI|] (Baize), or ### Human: and ### Assistant:

A message's content may be a list of texts or text parts, joined as they are. To an exchange belong
"input" or "context", which follow the question after a blank line, and "history", which comes
before: a list of any kind above. Question and answer may be lists of messages (TRL): then answers
in the question are context alone. Keys are compared without case. A list may be JSON in a string,
as tables have it.

"messages" and "conversations" come first, then "instruction" with "output": further keys are then
counted as not read. Of the other forms exactly one must fit. So must one QUESTION and one
ANSWER, unless one text holds the others (a solution and its result), or options name the columns.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import orjson

from colossal_llama.dataset import record_keys
from colossal_llama.dataset.conversation import Message
from colossal_llama.dataset.messages import is_message, messages_of
from colossal_llama.dataset.role_names import RoleNames
from colossal_llama.readers.record import RecordError, kind_of, string_of
from colossal_llama.readers.record_forms import ANSWERS, EXCHANGES, LISTS, OTHER_LISTS, listed_answers

_EXTRAS = ("input", "context")
_NOTHING: tuple[Any, ...] = (None, "", [], {})
_TRANSCRIPTS = (("[|Human|]", "[|AI|]"), ("### Human:", "### Assistant:"))
_TRANSCRIPT_KEYS = ("text", "input", "prompt")
_MOSS_MARK = re.compile(r"<\|[^|<>]+\|>:?|<eo[a-z]>")
Found = tuple[list[Message], set[str]]
"""Messages, and the keys that were read."""
Columns = tuple[str | None, str | None]
"""Names of the columns of question and answer that options give; None where none does."""


def messages_of_record(
    record: dict, roles: RoleNames, notes: list[str], is_prompt: bool = False, columns: Columns = (None, None)
) -> Found:
    """Reads the messages of a record in whichever form it has, without the rules of turns.

    Args:
        record: the JSON object.
        roles: meanings of the names of roles.
        notes: receives the names of what is not read.
        is_prompt: the last answer may be missing; that of an exchange is not read.
        columns: of the question and of the answer, if options name them.

    Raises:
        RecordError: no form fits, several do, or a part of it is not of its form.
    """
    if columns != (None, None):
        return _exchange_of_columns(record, columns, roles, notes, is_prompt)
    names = [name for name in LISTS if record.get(name) is not None]
    if len(names) > 1:
        raise RecordError("unknown_form", 'both "messages" and "conversations" are given: leave one')
    if names:
        if record.get("history"):
            raise RecordError("unknown_form", f'"history" stands next to "{names[0]}": write all of it as messages')
        return _listed(record, names[0], roles, notes)
    if record.get("instruction") is not None and record.get("output") is not None:
        return _exchange(record, ("instruction", "" if is_prompt else "output", ["input"]), roles, notes)
    return _other_form(record, roles, notes, is_prompt)


def _other_form(record: dict, roles: RoleNames, notes: list[str], is_prompt: bool) -> Found:
    """Reads a record in the one of the forms that fits."""
    spelled = {name.strip().lower(): name for name in reversed(record)}
    if is_prompt and (transcript := _transcript(record, spelled)):
        return transcript
    lists = [name for name in _named(spelled, OTHER_LISTS) if _is_list_of_turns(record[name])]
    found: dict[str, Callable[[], Found]] = {
        f'"{name}"': partial(_listed, record, name, roles, notes) for name in lists
    }
    if isinstance(record.get("chat"), dict) and record["chat"]:
        found['"chat"'] = partial(_chat_of_turns, record, roles, notes)
    if _is_tree(record.get("prompt")):
        found['"prompt" with its replies'] = partial(_best_path, record, roles, notes)
    elif not (is_prompt and found) and (keys := _exchange_keys(record, is_prompt)):
        question, answer, _ = keys
        if not found or record[answer] not in _NOTHING:
            shown = f'"{question}" and "{answer}"' if answer else f'"{question}"'
            found[shown] = partial(_exchange, record, keys, roles, notes)
    if len(found) > 1:
        raise RecordError("unknown_form", f"several conversations are given, {', '.join(found)}: leave one")
    if found:
        return next(iter(found.values()))()
    if transcript := _transcript(record, spelled):
        return transcript
    raise _no_form(record, spelled)


def _no_form(record: dict, spelled: Mapping[str, str]) -> RecordError:
    """Names what a record lacks.

    Raises:
        RecordError: a key asks for what is not supported.
    """
    record_keys.read(record, "", [])
    if is_message(record):
        reason = "the record is one message: a conversation is a record with all of its messages"
        return RecordError("single_message", reason)
    known = (", ".join(f'"{name}"' for name in record) or "nothing")[:80]
    for questions, answers in EXCHANGES:
        if asked := _named(spelled, questions):
            listed = ", ".join(f'"{name}"' for name in answers)
            return RecordError("missing_field", f'"{asked[0]}" has no answer ({listed}): there is {known}')
    return RecordError(
        "missing_field", f'neither "messages" nor "instruction" and "output", nor another form of them, but {known}'
    )


def _named(spelled: Mapping[str, str], names: Sequence[str]) -> list[str]:
    """Those of the names that a record has, as it spells them."""
    return [spelled[name] for name in names if name in spelled]


# ------------------------------------------------------------------------------------------- lists


def _is_list_of_turns(value: Any) -> bool:
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        value = _parsed(value)
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict | list | str)


def _parsed(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _listed(record: dict, name: str, roles: RoleNames, notes: list[str]) -> Found:
    return _turns(record[name], name, roles, notes), {name}


def _turns(listed: Any, name: str, roles: RoleNames, notes: list[str]) -> list[Message]:
    """Parses a list of messages, of exchanges, or of texts of human and assistant in turn.

    Raises:
        RecordError: it is none of these.
    """
    if isinstance(listed, str) and listed.lstrip()[:1] == "[":
        listed = _parsed(listed)
    first = listed[0] if isinstance(listed, list) and listed else None
    if isinstance(first, str) and len(listed) > 1:
        return _in_turn(listed, f'of "{name}"')
    if isinstance(first, list) or (isinstance(first, dict) and not is_message(first) and _exchange_keys(first)):
        return [message for number, item in enumerate(listed, 1) for message in _listed_exchange(item, number, notes)]
    return messages_of(listed, name, notes, roles)


def _in_turn(texts: Sequence[Any], where: str) -> list[Message]:
    spoken = []
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise RecordError("wrong_type", f"text {number} {where} is {kind_of(text)}, a string is needed")
        spoken.append(Message("human" if number % 2 else "assistant", text))
    return spoken


def _listed_exchange(item: Any, number: int, notes: list[str]) -> list[Message]:
    where = f"exchange {number}"
    if isinstance(item, list):
        if len(item) != 2:
            raise RecordError("wrong_type", f"{where} has {len(item)} texts, question and answer are needed")
        return _in_turn(item, f"of {where}")
    if not isinstance(item, dict):
        raise RecordError("wrong_type", f"{where} is {kind_of(item)}, question and answer are needed")
    keys = _exchange_keys(item)
    if keys is None:
        raise RecordError("missing_field", f"{where} is no question with an answer")
    question, answer, extras = keys
    others = {name: value for name, value in item.items() if name not in (question, answer, *extras)}
    is_trained = record_keys.read(others, where, notes)
    asked = "\n\n".join(text for text in (string_of(item, name, where) for name in (question, *extras)) if text)
    return [Message("human", asked), Message("assistant", string_of(item, answer, where), is_trained is not False)]


# --------------------------------------------------------------------------------------- exchanges


def _exchange_keys(
    record: dict[str, Any], is_prompt: bool = False, columns: Columns = (None, None)
) -> tuple[str, str, list[str]] | None:
    """Names of the question, the answer ("" in a prompt) and of what follows the question.

    Returns:
        The names as the record spells them; None where it has no such pair.

    Raises:
        RecordError: several may be the question, or the answer.
    """
    spelled = {name.strip().lower(): name for name in reversed(record)}
    extras = [name for name in _named(spelled, _EXTRAS) if record[name] not in _NOTHING and name not in columns]
    for names in EXCHANGES:
        asked, answered = (
            [column] if column else _given(record, [name for name in _named(spelled, of_part) if name not in columns])
            for column, of_part in zip(columns, names, strict=True)
        )
        if len(asked) > 1:
            asked = [name for name in asked if name not in extras]
        if asked and (answered or is_prompt):
            question = _holder(record, asked, "question")
            answer = "" if is_prompt else _holder(record, answered, "answer")
            return question, answer, [name for name in extras if name != question]
    asked = _given(record, _named(spelled, EXCHANGES[0][0]))
    if asked and columns == (None, None) and listed_answers(record.get(ANSWERS)) is not None:
        question = _holder(record, [name for name in asked if name not in extras] or asked, "question")
        return question, ANSWERS, [name for name in extras if name != question]
    return None


def _exchange_of_columns(record: dict, columns: Columns, roles: RoleNames, notes: list[str], is_prompt: bool) -> Found:
    """Reads an exchange of which options name the question, the answer or both."""
    known = (", ".join(f'"{name}"' for name in record) or "nothing")[:80]
    for column, option in zip(columns, ("--source_field", "--target_field"), strict=True):
        if column is not None and column not in record:
            raise RecordError("missing_field", f'"{column}" of {option} is missing: there is {known}')
    keys = _exchange_keys(record, is_prompt, columns)
    if keys is None:
        which = "answer: name it by --target_field" if columns[0] else "question: name it by --source_field"
        raise RecordError("missing_field", f"of {known} no column is known as the {which}")
    return _exchange(record, keys, roles, notes)


def _given(record: dict[str, Any], names: list[str]) -> list[str]:
    """Those of the names that have a value; where none has, the first."""
    return [name for name in names if record[name] not in _NOTHING] or names[:1]


def _holder(record: dict[str, Any], names: list[str], what: str) -> str:
    """The name of the text that holds the texts of all the names: of a solution, and its result.

    Raises:
        RecordError: there is none.
    """
    if len(names) == 1:
        return names[0]
    texts = {name: str(record[name]).strip() for name in names if isinstance(record[name], str | int | float)}
    longest = max(texts, key=lambda name: len(texts[name]), default="")
    if len(texts) < len(names) or any(text not in texts[longest] for text in texts.values()):
        listed = " and ".join(f'"{name}"' for name in names)
        option = "--source_field" if what == "question" else "--target_field"
        raise RecordError("unknown_form", f"{listed} may be the {what}: leave one, or name it by {option}")
    return longest


def _exchange(record: dict, keys: tuple[str, str, Sequence[str]], roles: RoleNames, notes: list[str]) -> Found:
    """Reads a question and its answer, with the history before them."""
    question, answer, extras = keys
    used = {question, answer, "history"}
    history = record.get("history")
    messages = _turns(history, "history", roles, notes) if history else []
    if isinstance(record[question], list):
        asked = messages_of(record[question], question, notes, roles)
        messages += [message._replace(is_trained=message.role != "assistant") for message in asked]
    else:
        used.update(extras)
        texts = [string_of(record, name) for name in (question, *extras) if record.get(name) is not None]
        messages.append(Message("human", "\n\n".join(text for text in texts if text)))
    if answer and isinstance(record[answer], list):
        messages += messages_of(record[answer], answer, notes, roles)
    elif answer == ANSWERS and (answers := listed_answers(record[answer])) is not None:
        messages.append(Message("assistant", _first_of(answers, notes)))
    elif answer:
        messages.append(Message("assistant", string_of(record, answer)))
    return messages, used


def _first_of(answers: list, notes: list[str]) -> str:
    """The first of the answers to a question; others that differ are counted."""
    if not answers:
        raise RecordError("no_answer", f'"{ANSWERS}" lists none: the question has no answer in its context')
    if not all(isinstance(text, str) for text in answers):
        raise RecordError("wrong_type", f'"text" of "{ANSWERS}" lists what is no string')
    notes += ["cut_turns.other_answers"] * (len(set(answers)) - 1)
    return str(answers[0])


# ----------------------------------------------------------------------------- forms of one project


def _chat_of_turns(record: dict, roles: RoleNames, notes: list[str]) -> Found:
    """Reads MOSS's chat: an object of turns by number, whose texts begin and end with marks."""
    messages = []
    if record.get("meta_instruction"):
        messages.append(Message("system", string_of(record, "meta_instruction").strip()))
    for name in sorted(record["chat"], key=lambda name: [int(digits) for digits in re.findall(r"\d+", name)]):
        turn, where = record["chat"][name], f'"{name}" of "chat"'
        if not isinstance(turn, dict):
            raise RecordError("wrong_type", f"{where} is {kind_of(turn)}, an object is needed")
        for key in turn:
            text = _MOSS_MARK.sub("", string_of(turn, key, where)).strip()
            role = "assistant" if key == "MOSS" else roles.known.get(key.lower())
            if role is not None:
                messages.append(Message(role, text))
                notes += roles.notes(key)
            elif text not in ("", "None"):
                raise RecordError(
                    "unsupported_tools", f'"{key}" of {where} is not supported: only what is said is read'
                )
    return messages, {"chat", "meta_instruction"}


def _is_tree(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("replies"), list)


def _best_path(record: dict, roles: RoleNames, notes: list[str]) -> Found:
    """Follows OASST's tree by the replies of the best rank; of those without one by the first."""
    node, path = record["prompt"], []
    while True:
        path.append({"role": node.get("role"), "text": node.get("text")})
        replies = node.get("replies") or []
        if not (isinstance(replies, list) and all(isinstance(reply, dict) for reply in replies)):
            raise RecordError("wrong_type", '"replies" of a message holds what is no message')
        if not replies:
            return messages_of(path, "prompt", notes, roles), {"prompt"}
        node = min(replies, key=_rank)
        notes += ["cut_turns.other_replies"] * (len(replies) - 1)


def _rank(reply: dict) -> float:
    rank = reply.get("rank")
    return rank if isinstance(rank, int | float) else math.inf


def _transcript(record: dict, spelled: Mapping[str, str]) -> Found | None:
    """Reads a conversation that is one text, in which marks say who speaks; None without one."""
    for name in _named(spelled, _TRANSCRIPT_KEYS):
        for human, assistant in _TRANSCRIPTS:
            if isinstance(record[name], str) and human in record[name] and assistant in record[name]:
                begin, *pieces = re.split(f"({re.escape(human)}|{re.escape(assistant)})", record[name])
                messages = [Message("system", begin.strip())] if begin.strip() else []
                for mark, text in zip(pieces[::2], pieces[1::2], strict=True):
                    messages.append(Message("human" if mark == human else "assistant", text.strip()))
                if not messages[-1].content:  # the mark of a turn that was not written
                    messages.pop()
                return messages, {name}
    return None
