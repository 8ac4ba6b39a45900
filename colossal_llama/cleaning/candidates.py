"""A document between its reading and its writing: as it came in, as it is now, and what changed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from colossal_llama.cleaning.document import Document
from colossal_llama.dataset.prepare.chunk_rows import RowPosition
from colossal_llama.dataset.records import conversation_of
from colossal_llama.dataset.role_names import RoleNames
from colossal_llama.readers.fields import FieldOptions, document_of, with_category
from colossal_llama.readers.listing import InputFile
from colossal_llama.readers.unread_keys import unread

_URL = unread("url")
"""Note of a record's `url`, which is read here: it decides the group."""


@dataclass(slots=True)
class Candidate:
    """A document that no stage has dropped yet.

    Attributes:
        document: as it is now.
        original: its texts as they came in; the same list where nothing has changed.
        category: as it came in; a blocklist may move the document to another one.
        place: of its row in the chunk.
        untrained: numbers of the messages of a conversation that are not trained.
        tags: categories of blocklists that are noted in the document.
        notes: names of what is counted about the record: keys that are not read.
        hits: benchmark questions in it, as `decontamination.jsonl` lists them.
        changes: by name: how often, and by how many characters the document is shorter.
    """

    document: Document
    original: list[str]
    category: str
    place: RowPosition
    untrained: tuple[int, ...] = ()
    tags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    hits: Sequence[dict[str, Any]] = ()
    changes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def change(self, name: str, times: int, removed_characters: int = 0) -> None:
        """Counts a change of the document."""
        before = self.changes.get(name, (0, 0))
        self.changes[name] = (before[0] + times, before[1] + removed_characters)

    def as_json(self) -> bytes:
        """The candidate as a line, from which `read_candidates` makes it again."""
        document = self.document
        content = {
            "place": tuple(self.place),
            "texts": document.texts,
            "category": document.category,
            "group": document.group,
            "file": document.file,
            "position": document.position,
            "changes": self.changes,
        }
        if self.original != document.texts:
            content["original"] = self.original
        if self.category != document.category:
            content["category_before"] = self.category
        if document.roles is not None:
            content |= {"roles": document.roles, "untrained": self.untrained}
        if self.tags:
            content["tags"] = self.tags
        return orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE)

    def record(self) -> dict[str, Any]:
        """The record as it is written, in the form that preparation reads."""
        record = self._record(self.document.texts, self.document.category)
        return {**record, "tags": self.tags} if self.tags else record

    def original_record(self) -> dict[str, Any]:
        """The record as it came in, in that form."""
        return self._record(self.original, self.category)

    @property
    def original_characters(self) -> int:
        """Characters of all texts as they came in."""
        return sum(map(len, self.original))

    def _record(self, texts: list[str], category: str) -> dict[str, Any]:
        if self.document.roles is None:
            source, target = texts
            return {"source": source, "target": target, "category": category}
        messages: list[dict[str, Any]] = [
            {"from": role, "content": text} for role, text in zip(self.document.roles, texts, strict=True)
        ]
        for number in self.untrained:
            messages[number]["train"] = False
        return {"messages": messages, "category": category}


def read_candidates(path: Path, start_bytes: int, count: int) -> Iterator[Candidate]:
    """Reads lines that `Candidate.as_json` made.

    Args:
        path: of the file.
        start_bytes: position of the first of them.
        count: number of them.
    """
    with path.open("rb") as file:
        file.seek(start_bytes)
        for line in islice(file, count):
            content = orjson.loads(line)
            roles = content.get("roles")
            document = Document(
                content["texts"],
                content["category"],
                content["group"],
                content["file"],
                content["position"],
                None if roles is None else tuple(roles),
            )
            yield Candidate(
                document,
                content.get("original", content["texts"]),
                content.get("category_before", content["category"]),
                RowPosition(*content["place"]),
                tuple(content.get("untrained", ())),
                tuple(content.get("tags", ())),
                changes={name: (times, removed) for name, (times, removed) in content["changes"].items()},
            )


def document_candidate(record: dict, file: InputFile, fields: FieldOptions) -> Candidate:
    """Checks a record as a document of pre-training.

    Raises:
        RecordError: see `readers.fields.document_of`.
    """
    found = document_of(record, file, fields)
    texts = [found.source, found.target]
    document = Document(texts, found.category, _group(record, file), file.name, 0)
    notes = found.notes if document.group == file.name else tuple(note for note in found.notes if note != _URL)
    return Candidate(document, texts, found.category, RowPosition(0, 0), notes=notes)


def conversation_candidate(record: dict, file: InputFile, fields: FieldOptions, roles: RoleNames) -> Candidate:
    """Checks a record as a conversation, in any form that preparation reads.

    Raises:
        RecordError: see `dataset.records.conversation_of`.
    """
    found = conversation_of(
        with_category(record, file, fields), roles, columns=(fields.source_field, fields.target_field)
    )
    texts = [message.content for message in found.messages]
    speakers = tuple(str(message.role) for message in found.messages)
    untrained = tuple(
        number
        for number, message in enumerate(found.messages)
        if message.role == "assistant" and not message.is_trained
    )
    document = Document(texts, found.category, _group(record, file), file.name, 0, speakers)
    return Candidate(document, texts, found.category, RowPosition(0, 0), untrained, notes=found.notes)


def _group(record: dict, file: InputFile) -> str:
    """The domain of a record's `url`, also inside its `meta` or `metadata`; else the file."""
    url = record.get("url")
    if url is None and (about := record.get("meta") or record.get("metadata")) and isinstance(about, dict):
        url = about.get("url")
    if url and isinstance(url, str):
        try:
            domain = urlsplit(url).hostname
        except ValueError:  # a bracket that is not closed
            domain = None
        if domain:
            return domain.removeprefix("www.")
    return file.name
