"""The two kinds of records, told by their keys: documents of pre-training, and conversations.

Which messages a conversation has, exactly, is `dataset/records.py`'s; here its text is enough.
"""

from collections.abc import Iterable, Iterator
from typing import Any

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
_LISTS = ("messages", "conversations", "conversation", "dialogue", "dialog")
_QUESTIONS = ("instruction", "prompt", "question", "query", "input", "问")
_ANSWERS = ("output", "completion", "response", "answer", "答")
_PART_TEXTS = ("content", "value", "text")


def named(names: Iterable[str], wanted: tuple[str, ...]) -> list[str]:
    """Those of the names that are wanted, in the order of `wanted`; case and blanks do not count.

    >>> named(["id", "Content", "text"], ("text", "content"))
    ['text', 'Content']
    """
    order = {name: number for number, name in enumerate(wanted)}
    found = [name for name in names if name.strip().lower() in order]
    return sorted(found, key=lambda name: (order[name.strip().lower()], name not in order))


def conversation_form(names: Iterable[str]) -> str:
    """Keys that make a record a conversation, quoted; empty if it is none.

    >>> conversation_form(["prompt", "completion", "id"])
    '"prompt" and "completion"'
    """
    names = list(names)
    if lists := named(names, _LISTS):
        return f'"{lists[0]}"'
    questions, answers = named(names, _QUESTIONS), named(names, _ANSWERS)
    return f'"{questions[0]}" and "{answers[0]}"' if questions and answers else ""


def document_form(record: dict) -> str:
    """Key that makes a record a document, quoted; empty if it is none."""
    texts = named(record, ("target", *TEXT_NAMES))
    return next((f'"{name}"' for name in texts if isinstance(record[name], str)), "")


def conversation_text(record: dict) -> str:
    """Texts of a conversation, line by line, in the order in which they are said.

    Raises:
        RecordError: a message has no text.
    """
    for name in named(record, _LISTS):
        if isinstance(record[name], list):
            return "\n".join(text for message in record[name] for text in _message_texts(message))
    names = [*named(record, _QUESTIONS), *named(record, _ANSWERS)]
    return "\n".join(text for name in names for text in _texts(record[name], name) if text)


def _message_texts(message: Any) -> Iterator[str]:
    content = next((message[key] for key in _PART_TEXTS if key in message), None) if isinstance(message, dict) else None
    yield from _texts(content, "content")


def _texts(content: Any, name: str) -> Iterator[str]:
    """A text, or the texts of a list of parts."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        yield from (text for part in content for text in ([part] if isinstance(part, str) else _part_texts(part)))
    else:
        raise RecordError("wrong_type", f'"{name}" is {kind_of(content)}, a string is needed')


def _part_texts(part: Any) -> list[str]:
    text = part.get("text") if isinstance(part, dict) else None
    return [text] if isinstance(text, str) else []
