"""Roles of messages by the names that data sets give them, and by what `--roles` says of others."""

import argparse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

Role = Literal["human", "assistant", "system"]
ROLES: dict[str, Role] = {
    "human": "human",
    "user": "human",
    "prompter": "human",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
    "developer": "system",
}
Meaning = Literal[Role, "drop"]
MEANINGS: tuple[Meaning, ...] = (*get_args(Role), "drop")
"""What a role may be said to be; a message of one that is dropped is left out, and counted."""


@dataclass(frozen=True)
class RoleNames:
    """Meanings of the names of roles."""

    known: Mapping[str, Role]
    dropped: frozenset[str] = frozenset()

    @classmethod
    def with_given(cls, given: Iterable[tuple[str, Meaning]]) -> "RoleNames":
        """The known names with others, or with other meanings, in any case (`--roles`)."""
        as_written = dict(given)
        in_lower_case = {name.lower(): meaning for name, meaning in as_written.items()}
        meanings: dict[str, Meaning] = {**ROLES, **in_lower_case, **as_written}
        dropped = frozenset(name for name, meaning in meanings.items() if meaning == "drop")
        return cls({name: cast(Role, role) for name, role in meanings.items() if role != "drop"}, dropped)

    def meaning(self, name: str) -> Meaning | None:
        """Meaning of a role's name, without regard to case unless it is known as written."""
        for spelling in (name, name.strip().lower()):
            if spelling in self.dropped:
                return "drop"
            if spelling in self.known:
                return self.known[spelling]
        return None


KNOWN_ROLES = RoleNames(ROLES)


def role_meanings(text: str) -> list[tuple[str, Meaning]]:
    """Type of `--roles`: NAME=MEANING, of which one word may give several by commas.

    Raises:
        ArgumentTypeError: one is not of that form.
    """
    given = []
    for word in text.split(","):
        name, _, meaning = (part.strip() for part in word.rpartition("="))
        if not name or meaning not in MEANINGS:
            meant = ROLES.get(meaning.lower(), meaning.lower())
            hint = f"; did you mean {name}={meant}?" if name and meant in MEANINGS else ""
            raise argparse.ArgumentTypeError(f"{word!r} is not NAME={'|'.join(MEANINGS)}{hint}")
        given.append((name, cast(Meaning, meaning)))
    return given


def role_problems(given: Iterable[tuple[str, Meaning]]) -> Iterator[str]:
    """Names of roles that are given two meanings."""
    meanings: dict[str, Meaning] = {}
    for name, meaning in given:
        if meanings.setdefault(name, meaning) != meaning:
            yield f"--roles: {name!r} is {meanings[name]} and {meaning}: leave one out"
