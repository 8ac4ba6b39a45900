"""The document that every stage of cleaning reads and changes, and the verdict that drops it."""

from dataclasses import dataclass


@dataclass(slots=True)
class Document:
    """One record of the input, in memory between its reading and its writing.

    A document of pre-training has two texts: its source (often empty) and its target. A
    conversation has one text for each message, and `roles` names who says it.
    """

    texts: list[str]
    category: str
    # The domain of the record's `url`; without one, the file. Boilerplate recurs within a group.
    group: str
    file: str
    # Line or record number within the file, counted from 1.
    position: int
    roles: tuple[str, ...] | None = None

    @property
    def is_conversation(self) -> bool:
        """True where each text is a message, so that no line of it may be cut out."""
        return self.roles is not None

    @property
    def text(self) -> str:
        """The text that rules and signatures see: the non-empty texts, one a line.

        System prompts are not in it: conversations that share a long one are no duplicates by that.
        """
        if self.roles is None:
            return "\n".join(text for text in self.texts if text)
        return "\n".join(text for text, role in zip(self.texts, self.roles, strict=True) if text and role != "system")

    @property
    def length_characters(self) -> int:
        """Characters of all texts together."""
        return sum(map(len, self.texts))


@dataclass(frozen=True, slots=True)
class Verdict:
    """Reason to drop a document: the rule, the figure it measured, and the limit it broke."""

    reason: str
    figure: float | str
    limit: float | str
