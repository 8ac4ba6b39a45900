"""Reads and checks the file of `--mixture`: what it asks for, before any data are known.

    categories:
      articles:  {group: informative}               in proportion of what there is
      questions: {group: functional, epochs: 2}
      english:   {group: replay, share: 25%}
      "*":       {}                                 all other categories of the data

Keys and values are taken as they are written: a category may be called `no`, `2024` or `null`.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from colossal_llama.dataset.mixture.amounts import parse_epochs, parse_share, parse_tokens, percent
from colossal_llama.utils.cli import existing_file
from colossal_llama.utils.errors import UserError, truncate_problems
from colossal_llama.utils.suggestion import did_you_mean
from colossal_llama.utils.yaml_text import object_with_unique_keys, parse_yaml

REST = "*"
"""Name of the entry for all categories that have none of their own."""
_AMOUNTS = {"share": parse_share, "tokens": parse_tokens, "epochs": parse_epochs}
_TOP_KEYS = ("categories", "groups", "rest", "late_from")
_LARGEST_FILE_BYTES = 1 << 24
_NOTHING = ("", "~", "null")


@dataclass(frozen=True)
class Amount:
    """Amount of a category or group: a share, tokens or epochs, or none of these.

    Attributes:
        share: of all tokens; with `late`, the share in the first bucket.
        tokens: number of tokens.
        epochs: number of times that every document is seen.
        late: share in the last bucket.
    """

    share: Fraction | None = None
    tokens: int | None = None
    epochs: Fraction | None = None
    late: Fraction | None = None

    @property
    def is_given(self) -> bool:
        """True when there is an amount; else the category takes its part of what is left."""
        return (self.share, self.tokens, self.epochs) != (None, None, None)

    def content(self) -> dict:
        """Normal form: equal for equal amounts, however they were written."""
        values = {
            "share": None if self.share is None else _share_text(self.share),
            "tokens": self.tokens,
            "epochs": None if self.epochs is None else str(self.epochs),
            "late": None if self.late is None else _share_text(self.late),
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Mixture:
    """Mixture that a file asks for.

    Attributes:
        categories: amount of each category that the file names; `REST` stands for all others.
        group_of: group of each category that has one.
        groups: amounts of the groups that have one.
        late_from: buckets that begin at this share of the run or later have the late shares; None:
            shares change linearly from the first bucket to the last.
    """

    categories: Mapping[str, Amount]
    group_of: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, Amount] = field(default_factory=dict)
    late_from: Fraction | None = None

    def content(self) -> dict:
        """The mixture for the manifest, which is equal for equal mixtures."""
        categories = {
            name: {**amount.content(), **({"group": self.group_of[name]} if name in self.group_of else {})}
            for name, amount in self.categories.items()
        }
        groups = {name: amount.content() for name, amount in self.groups.items()}
        late = {} if self.late_from is None else {"late_from": _share_text(self.late_from)}
        return {"categories": categories, **({"groups": groups} if groups else {}), **late}


def mixture_argument(text: str) -> Mixture:
    """Reads the file of `--mixture` (argparse `type=`).

    Raises:
        argparse.ArgumentTypeError: it cannot be read, with all that is wrong.
    """
    try:
        return read_mixture(existing_file(text))
    except UserError as error:
        raise argparse.ArgumentTypeError("\n  ".join(error.problems)) from None


def read_mixture(path: Path) -> Mixture:
    """Reads a mixture from a YAML or JSON file.

    Raises:
        UserError: with everything that is wrong in it.
    """
    try:
        content = _parsed(path)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error) or "it is nested too deeply"
        raise UserError(f"{path} cannot be read: {reason}") from None
    parser = _MixtureParser()
    mixture = parser.mixture(content)
    if parser.problems:
        raise UserError(truncate_problems([f"{path}: {problem}" for problem in parser.problems]))
    return mixture


# --------------------------------------------------------------------------------------- notation


def _parsed(path: Path) -> Any:
    """Content of the file: mappings, lists and texts.

    Raises:
        ValueError: it is neither YAML nor JSON, or has a key twice.
    """
    if path.stat().st_size > _LARGEST_FILE_BYTES:
        raise ValueError(f"it is larger than {_LARGEST_FILE_BYTES >> 20} MB, and no mixture")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".json":
        return json.loads(
            text, object_pairs_hook=object_with_unique_keys, parse_int=str, parse_float=str, parse_constant=str
        )
    try:
        return parse_yaml(text)
    except ValueError as error:
        hint = f"; write {REST!r} with its quotes" if "scanning an alias" in str(error) else ""
        raise ValueError(str(error) + hint) from None


# ----------------------------------------------------------------------------------------- checks


def _share_text(share: Fraction) -> str:
    return shown if Fraction((shown := percent(share))[:-1]) / 100 == share else str(share)


class _MixtureParser:
    """Turns the content of a file into a mixture and gathers what is wrong."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def mixture(self, content: Any) -> Mixture:
        """Parses the content of a whole file; `problems` gets a sentence for each error."""
        if not isinstance(content, dict):
            self.problems.append("it holds no mapping: begin with 'categories:', and a line for each category below")
            return Mixture({})
        if content and not content.keys() & set(_TOP_KEYS):
            self.problems.append("put the categories below a line 'categories:', indented")
            return Mixture({})
        self._refuse_unknown("", content, _TOP_KEYS)
        entries = dict(self._mapping("categories", content.get("categories", {})))
        if "rest" in content:
            if REST in entries:
                self.problems.append(f"rest and {REST!r} are the same: keep one of them")
            entries[REST] = content["rest"]
        if not entries and not self.problems:
            self.problems.append("it names no category: begin with 'categories:', and a line for each category below")
        categories, group_of = {}, {}
        for name, entry in entries.items():
            fields = dict(self._mapping(f"category {name!r}", entry))
            if (group := fields.pop("group", None)) is not None:
                group_of[name] = self._text(f"category {name!r}: group", group)
            categories[name] = self._amount(f"category {name!r}", fields, ("group",))
        groups = {
            name: self._amount(f"group {name!r}", self._mapping(f"group {name!r}", entry), ())
            for name, entry in self._mapping("groups", content.get("groups", {})).items()
        }
        mixture = Mixture(categories, group_of, groups, self._late_from(content))
        if not self.problems:
            self.problems += [*_group_problems(mixture), *_sum_problems(mixture), *_late_problems(mixture)]
        return mixture

    def _mapping(self, where: str, value: Any) -> dict:
        if isinstance(value, dict):
            return value
        if value is not None and value not in _NOTHING:
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            self.problems.append(f"{where}: {shown[:40]!r} is no mapping: write {{share: 25%}}, or {{}} for nothing")
        return {}

    def _text(self, where: str, value: Any) -> str:
        if isinstance(value, str) and value.strip():
            return value.strip()
        self.problems.append(f"{where} is no text")
        return ""

    def _refuse_unknown(self, where: str, fields: Mapping, known: tuple[str, ...]) -> None:
        for name in sorted(fields.keys() - set(known)):
            hint = did_you_mean(name, known) or f" (known: {', '.join(known)})"
            self.problems.append(f"{where}{name!r} is no key of a mixture{hint}")

    def _amount(self, where: str, fields: Mapping[str, Any], further: tuple[str, ...]) -> Amount:
        self._refuse_unknown(f"{where}: ", fields, (*_AMOUNTS, "late", *further))
        values: dict[str, Any] = {}
        for name, parse in {**_AMOUNTS, "late": parse_share}.items():
            if name in fields:
                try:
                    values[name] = parse(self._text(f"{where}: {name}", fields[name]) or "0")
                except ValueError as error:
                    self.problems.append(f"{where}: {name}: {error}")
        given = [name for name in _AMOUNTS if name in fields]
        if len(given) > 1:
            self.problems.append(f"{where} has {' and '.join(given)}: keep one of them")
        if "late" in fields and not given:
            self.problems.append(f"{where} has late, the share in the last bucket, and no share, tokens or epochs")
        return Amount(**values)

    def _late_from(self, content: Mapping[str, Any]) -> Fraction | None:
        if "late_from" not in content:
            return None
        try:
            late_from = parse_share(self._text("late_from", content["late_from"]) or "50%")
        except ValueError as error:
            self.problems.append(f"late_from: {error}")
            return None
        if not 0 < late_from < 1:
            self.problems.append("late_from is the share of the run after which late begins: between 0% and 100%")
        return late_from


def _group_problems(mixture: Mixture) -> Iterator[str]:
    members = set(mixture.group_of.values())
    for name, amount in mixture.groups.items():
        if name not in members:
            yield f"group {name!r}: no category is in it{did_you_mean(name, members)}"
        if not amount.is_given:
            yield f"group {name!r} has no share, tokens or epochs: give it one, or leave it out"
            continue
        for category, group in mixture.group_of.items():
            if group == name and mixture.categories[category].is_given:
                yield f"category {category!r} and its group {name!r} both have an amount: keep one of them"


def _sum_problems(mixture: Mixture) -> Iterator[str]:
    """Refuses shares that cannot add up, whatever the data are."""
    amounts = [*mixture.categories.values(), *mixture.groups.values()]
    is_open = any(
        not amount.is_given and mixture.group_of.get(name) not in mixture.groups
        for name, amount in mixture.categories.items()
    )
    has_numbers = any(amount.tokens or amount.epochs for amount in amounts)
    first, last = (
        sum((share(amount) for amount in amounts), start=Fraction(0)) for share in (_first_share, _last_share)
    )
    for total, which in ((first, "shares"), (last, "shares of the last bucket (late)")):
        if which != "shares" and last == first:
            return
        if total > 1 or (total == 1 and is_open and first == last):
            left = "" if total > 1 else ", and nothing is left for the categories that have no amount"
            yield f"the {which} add up to {percent(total)}{left}: give less"
        elif total < 1 and not is_open and not has_numbers:
            remedy = "give more, or leave one share out, which takes the rest"
            yield f"the {which} add up to {percent(total)}, not 100%: {remedy}"


def _first_share(amount: Amount) -> Fraction:
    return amount.share or Fraction(0)


def _last_share(amount: Amount) -> Fraction:
    return _first_share(amount) if amount.late is None else amount.late


def _late_problems(mixture: Mixture) -> Iterator[str]:
    amounts = [*mixture.categories.values(), *mixture.groups.values()]
    if mixture.late_from is not None and all(amount.late is None for amount in amounts):
        yield "late_from has no effect: no category or group has late, its share in the last bucket"
