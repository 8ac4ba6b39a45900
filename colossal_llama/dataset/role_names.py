"""Roles of messages by the names that data sets give them, and by what `--roles` says of others."""

import argparse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
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
    """Meanings of the names of roles.

    Attributes:
        known: meanings by name.
        dropped: names whose messages are left out.
        given: names of `--roles`, by spelling; their messages are counted.
    """

    known: Mapping[str, Role]
    dropped: frozenset[str] = frozenset()
    given: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def with_given(cls, given: Iterable[tuple[str, Meaning]]) -> "RoleNames":
        """The known names with others, or with other meanings, in any case (`--roles`)."""
        as_written = dict(given)
        in_lower_case = {name.lower(): meaning for name, meaning in as_written.items()}
        meanings: dict[str, Meaning] = {**ROLES, **in_lower_case, **as_written}
        dropped = frozenset(name for name, meaning in meanings.items() if meaning == "drop")
        spellings = {spelling: name for name in as_written for spelling in (name.lower(), name)}
        return cls({name: cast(Role, role) for name, role in meanings.items() if role != "drop"}, dropped, spellings)

    def meaning(self, name: str) -> Meaning | None:
        """Meaning of a role's name, without regard to case unless it is known as written."""
        for spelling in (name, name.strip().lower()):
            if spelling in self.dropped:
                return "drop"
            if spelling in self.known:
                return self.known[spelling]
        return None

    def notes(self, name: str) -> list[str]:
        """Name of the count of a message's role, if `--roles` gives it."""
        found = (self.given[spelling] for spelling in (name, name.strip().lower()) if spelling in self.given)
        return [f"{GIVEN_ROLES}{as_given}" for as_given in found][:1]


GIVEN_ROLES = "given_roles."
"""Prefix of the names of counts of messages of the roles that `--roles` names."""
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
