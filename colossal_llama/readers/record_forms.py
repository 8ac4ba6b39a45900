"""The two kinds of records, told by their keys: documents of pre-training, and conversations.

Which messages a conversation has, exactly, is `dataset/records.py`'s; here its text is enough.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from colossal_llama.readers.record import RecordError, kind_of

TEXT_NAMES = (
    "text",  # C4, FineWeb, RedPajama, the Pile, SkyPile, OSCAR, Dolma, wikipedia
    "content",  # RefinedWeb, StarCoder, WuDao, WanJuan, CCI, CLUE's news
    "raw_content",  # RedPajama 2, CCNet
    "raw_text",
    "full_text",
    "document",
    "article",
    "body",
    "passage",
    "markdown",
    "code",  # GitHub code
    "正文",
    "内容",
    "文本",
    "段落",  # MNBVC: a list of paragraphs
)
"""Names of the column that is a whole document, the likeliest first; compared without case."""
PARAGRAPH_KEYS = ("内容",)
"""Keys of the text of a paragraph, where the column is a list of paragraphs."""
LISTS = ("messages", "conversations")
"""Keys of a list of messages."""
OTHER_LISTS = ("conversation", "dialogue", "dialog", "chat", "turns", "items", "data")
"""Keys that a list of messages may have, too."""
EXCHANGES = (
    (
        ("instruction", "prompt", "question", "query", "problem", "input", "inputs"),
        ("output", "completion", "response", "answer", "solution", "target", "targets"),
    ),
    (("human", "user"), ("assistant", "gpt", "bot")),
    (("问",), ("答",)),  # MNBVC
)
"""Keys of a question and of its answer, which go together."""
ANSWERS = "answers"
"""Key of the answers to one question, as SQuAD has them: {"text": [answer, …], …}."""
_PART_TEXTS = ("content", "value", "text")
_SYSTEM_PROMPTS = ("system", "system_prompt")


def named(names: Iterable[str], wanted: tuple[str, ...]) -> list[str]:
    """Those of the names that are wanted, in the order of `wanted`; case and blanks do not count.

    >>> named(["id", "Content", "text"], ("text", "content"))
    ['text', 'Content']
    """
    order = {name: number for number, name in enumerate(wanted)}
    found = [name for name in names if name.strip().lower() in order]
    return sorted(found, key=lambda name: (order[name.strip().lower()], name not in order))


def conversation_form(record: dict) -> str:
    """Keys that make a record a conversation, quoted; empty if it is none.

    >>> conversation_form({"prompt": "P", "completion": "C", "id": 3})
    '"prompt" and "completion"'
    """
    if keys := conversation_keys(record):
        return keys
    if (asked := named(record, EXCHANGES[0][0])) and listed_answers(record.get(ANSWERS)) is not None:
        return f'"{asked[0]}" and "{ANSWERS}"'
    return next((f'"{name}"' for name in named(record, OTHER_LISTS) if _is_list_of_turns(record[name])), "")


def listed_answers(value: Any) -> list | None:
    """The answers in a value of the form of `ANSWERS`; None if it is of another."""
    texts = value.get("text") if isinstance(value, dict) else None
    return texts if isinstance(texts, list) else None


def conversation_keys(names: Iterable[str]) -> str:
    """Those of the names that make a record a conversation, whatever their values are, quoted."""
    names = list(names)
    if lists := named(names, LISTS):
        return f'"{lists[0]}"'
    for questions, answers in EXCHANGES:
        if (asked := named(names, questions)) and (answered := named(names, answers)):
            return f'"{asked[0]}" and "{answered[0]}"'
    return ""


def _is_list_of_turns(value: Any) -> bool:
    if isinstance(value, dict):  # turns by number
        return bool(value) and all(isinstance(turn, dict) for turn in value.values())
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict | list)


def document_form(record: dict) -> str:
    """Key that makes a record a document, quoted; empty if it is none."""
    texts = named(record, ("target", *TEXT_NAMES))
    return next((f'"{name}"' for name in texts if isinstance(record[name], str)), "")


def conversation_text(record: dict) -> str:
    """Texts of a conversation, line by line, in the order in which they are said.

    Raises:
        RecordError: a message has no text.
    """
    systems = named(record, _SYSTEM_PROMPTS)
    texts = [record[name] for name in systems if isinstance(record[name], str) and record[name]]
    for name in named(record, (*LISTS, *OTHER_LISTS)):
        if isinstance(turns := _parsed(record[name]), list | dict):
            return "\n".join([*texts, *_texts_of_turns(turns, name)])
    for name in named(record, ("history",)):
        texts += _texts_of_turns(_parsed(record[name]), name)
    pairs = [(named(record, questions), named(record, answers)) for questions, answers in EXCHANGES]
    context = named(record, ("context",))
    if (answers := listed_answers(record.get(ANSWERS))) is not None:
        pairs.append((pairs[0][0], [ANSWERS]))
        record = {**record, ANSWERS: answers[:1]}
    for name in next(([*asked, *context, *answered] for asked, answered in pairs if asked and answered), []):
        if record[name] is not None:
            texts += _texts(record[name], name)
    return "\n".join(filter(None, texts))


def _texts_of_turns(turns: Any, name: str) -> Iterator[str]:
    if not isinstance(turns, list | dict | None):
        raise RecordError("wrong_type", f'"{name}" is {kind_of(turns)}, a list is needed')
    for turn in turns.values() if isinstance(turns, dict) else turns or ():
        yield from _turn_texts(turn, name)


def _parsed(value: Any) -> Any:
    """A list that is written as text, as tables have it, is parsed."""
    try:
        return orjson.loads(value) if isinstance(value, str) and value.lstrip()[:1] == "[" else value
    except orjson.JSONDecodeError:
        return value


def _turn_texts(turn: Any, name: str) -> Iterator[str]:
    """Texts of a message, of an exchange, or of a list of texts."""
    if isinstance(turn, dict):
        key = next((key for key in _PART_TEXTS if key in turn), None)
        keys = [key] if key else [key for key, value in turn.items() if isinstance(value, str)]
        for key in keys or ["content"]:
            yield from _texts(turn.get(key), key)
    else:
        yield from _texts(turn, name)


def _texts(content: Any, name: str) -> Iterator[str]:
    """A text, or the texts of a list of parts."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        yield from (text for part in content for text in ([part] if isinstance(part, str) else _part_texts(part)))
    else:
        raise RecordError("wrong_type", f'"{name}" is {kind_of(content)}, a string is needed')


def _part_texts(part: Any) -> list[str]:
    text = next((part[key] for key in ("text", "content") if key in part), None) if isinstance(part, dict) else None
    return [text] if isinstance(text, str) else []
