"""The switch and the thresholds of every rule: presets, a file of the user, single changes.

`rules.yaml` holds all of them. The type of its values is the type that a change must have.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from colossal_llama.cleaning.duplicates.lsh import LOWEST_SIMILARITY
from colossal_llama.utils.errors import UserError, truncate_problems
from colossal_llama.utils.suggestion import did_you_mean
from colossal_llama.utils.yaml_text import parse_yaml

Preset = Literal["web", "books", "code-docs", "conversations"]
PRESETS: tuple[Preset, ...] = ("web", "books", "code-docs", "conversations")
ALL = "all"
"""Name that stands for every rule in `--on` and `--off`."""
Value = bool | int | float | str | list[str]
_NUMBER = re.compile(r"[+-]?(\d[\d_]*(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.ASCII | re.I)
_NO_SHARES = ("max_hash_signs", "max_ellipses", "min_nats_per_byte", "max_nats_per_byte")
_LARGEST_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Rule:
    """Switch and values of a rule: `min_X` and `max_X` are the limits of its figure X."""

    on: bool
    values: dict[str, Any]


@dataclass(frozen=True)
class RuleSettings:
    """The rules in effect, by name, in the order of `rules.yaml`: `settings["length"].on`."""

    preset: str
    rules: dict[str, Rule]

    def __getitem__(self, name: str) -> Rule:
        return self.rules[name]

    def content(self) -> dict[str, dict[str, Any]]:
        """The rules for a manifest, equal for equal rules."""
        return {name: {"on": rule.on, **rule.values} for name, rule in self.rules.items()}

    def as_yaml(self) -> str:
        """The rules in the form that `--rules` reads."""
        lines = [f"# Rules in effect (preset {self.preset}). --rules FILE reads this form, in part or whole."]
        for name, rule in self.content().items():
            lines += ["", f"{name}:", *(f"  {key}: {_as_text(value)}" for key, value in rule.items())]
        return "\n".join(lines) + "\n"


def read_rules(
    preset: str = "web",
    file: Path | None = None,
    on: Sequence[str] = (),
    off: Sequence[str] = (),
    changes: Sequence[str] = (),
) -> RuleSettings:
    """Determines the rules in effect; what comes later here wins over what comes earlier.

    Args:
        preset: one of `PRESETS`.
        file: YAML of the user: `length: {on: true, min_words: 20}`.
        on: rules to switch on, or `all`. A rule's own name wins over `all`.
        off: rules to switch off, or `all`.
        changes: `NAME.KEY=VALUE`, as of `--set`.

    Raises:
        UserError: with everything that is wrong.
    """
    reader = _RuleReader(preset)
    if file is not None:
        reader.read_file(file)
    reader.switch(on, off)
    for change in changes:
        reader.change(change)
    reader.check_limits()
    if reader.problems:
        raise UserError(truncate_problems(reader.problems))
    rules = {name: Rule(values.pop("on"), values) for name, values in reader.rules.items()}
    return RuleSettings(preset, rules)


# --------------------------------------------------------------------------------------- the file


@cache
def _shipped() -> dict[str, Any]:
    content = parse_yaml(resources.files(__package__).joinpath("rules.yaml").read_text(encoding="utf-8"))
    rules = {name: {key: _typed(value) for key, value in values.items()} for name, values in content["rules"].items()}
    return {**content, "rules": rules}


def _typed(scalar: str | list[str]) -> Value:
    """The value that a scalar of `rules.yaml` stands for."""
    if scalar in ("true", "false"):
        return scalar == "true"
    if isinstance(scalar, str) and _NUMBER.fullmatch(scalar):
        return int(scalar) if re.fullmatch(r"[+-]?[\d_]+", scalar) else float(scalar)
    return scalar


def _as_text(value: Value) -> str:
    """YAML of a value, which `parse_yaml` reads back."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_quoted, value))}]"
    return _quoted(value) if isinstance(value, str) else str(value)


def _quoted(text: str) -> str:
    """A text that YAML reads as it is: bare letters, or in single quotes."""
    return text if text.isalpha() else "'" + text.replace("'", "''") + "'"


# ---------------------------------------------------------------------------------------- changes


class _RuleReader:
    """Applies changes to the rules of a preset, and gathers what is wrong."""

    def __init__(self, preset: str):
        self.problems: list[str] = []
        self.rules: dict[str, dict[str, Any]] = {name: dict(values) for name, values in _shipped()["rules"].items()}
        if preset in _shipped()["presets"]:
            self._apply(_shipped()["presets"][preset], f"preset {preset}: ")
        else:
            self.problems.append(f"{preset!r} is no preset{_suggestion(preset, PRESETS)}")

    def read_file(self, path: Path) -> None:
        """Applies a YAML file of the user."""
        try:
            if path.stat().st_size > _LARGEST_FILE_BYTES:
                raise ValueError(f"it is larger than {_LARGEST_FILE_BYTES >> 20} MB, and no file of rules")
            content = parse_yaml(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error) or "it is nested too deeply"
            self.problems.append(f"{path} cannot be read: {reason}")
            return
        if isinstance(content, dict):
            self._apply(content, f"{path}: ")
        elif content not in (None, ""):
            self.problems.append(f"{path} holds no mapping: write a line 'length:', and 'min_words: 20' indented below")

    def switch(self, on: Sequence[str], off: Sequence[str]) -> None:
        """Switches rules on and off."""
        for name in sorted(set(on) & set(off)):
            self.problems.append(f"--on {name} and --off {name} contradict each other: keep one of them")
        for names, is_on in ((on, True), (off, False)):
            if ALL in names:
                for values in self.rules.values():
                    values["on"] = is_on
        for names, is_on in ((on, True), (off, False)):
            for name in names:
                if name in self.rules:
                    self.rules[name]["on"] = is_on
                elif name != ALL:
                    self.problems.append(f"--{'on' if is_on else 'off'} {self._unknown(name)}")

    def change(self, text: str) -> None:
        """Applies `NAME.KEY=VALUE`."""
        match = re.fullmatch(r"\s*([^.=\s]+)\.([^.=\s]+)\s*=\s*(.*?)\s*", text, re.S)
        if match is None:
            self.problems.append(f"--set {text}: write NAME.KEY=VALUE, as in length.min_words=20")
            return
        name, key, value = match.groups()
        is_text = isinstance(self.rules.get(name, {}).get(key), str)
        try:
            # A text is meant as it stands, also [email] and #email#, unless it is in quotes.
            parsed = value if is_text and value[:1] not in ("'", '"') else parse_yaml(value) or ""
        except (ValueError, RecursionError):
            parsed = value
        self._apply({name: {key: parsed}}, "--set ")
        if key != "on" and name in self.rules and not self.rules[name]["on"]:
            self.problems.append(f"--set {text} has no effect: {name} is off; add --on {name}")

    def check_limits(self) -> None:
        """Refuses limits between which no figure lies."""
        for name, values in self.rules.items():
            for key, smallest in values.items():
                largest = values.get(f"max_{key.removeprefix('min_')}")
                if key.startswith("min_") and largest is not None and smallest > largest:
                    self.problems.append(
                        f"{name}: {key} {smallest} is more than {key.replace('min', 'max', 1)} {largest}"
                    )

    def _unknown(self, name: str) -> str:
        return f"{name}: there is no rule of this name{_suggestion(name, self.rules)}"

    def _apply(self, content: Mapping[str, Any], where: str) -> None:
        for name, entry in content.items():
            if name not in self.rules:
                self.problems.append(where + self._unknown(name))
            elif isinstance(entry, str) and entry in ("true", "false"):
                self.rules[name]["on"] = entry == "true"
            elif isinstance(entry, dict):
                self._change_values(name, entry, where)
            elif entry not in (None, ""):
                self.problems.append(f"{where}{name}: {_shortened(entry)} is no mapping: write {{on: true}}")

    def _change_values(self, name: str, entry: Mapping[str, Any], where: str) -> None:
        values = self.rules[name]
        for key, given in entry.items():
            if key not in values:
                self.problems.append(f"{where}{name} has no value {key!r}{_suggestion(key, values)}")
                continue
            try:
                values[key] = _converted(given, values[key], _shipped()["choices"].get(f"{name}.{key}"))
                _check_range(key, values[key], is_share=_is_share(key, _shipped()["rules"][name][key]))
            except ValueError as error:
                self.problems.append(f"{where}{name}.{key}: {error}")


def _suggestion(name: str, known: Iterable[str]) -> str:
    return did_you_mean(name, known) or f" (known: {', '.join(known)})"


def _shortened(given: Any) -> str:
    return repr(given if len(str(given)) <= 40 else str(given)[:40] + "…")


def _converted(given: Any, former: Value, choices: Sequence[str] | None) -> Value:
    """The value that a user's text stands for, of the former value's type.

    Raises:
        ValueError: it is of another type, or none of the choices.
    """
    if isinstance(former, list):
        texts = [given] if isinstance(given, str) and given else given
        if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
            return texts
        raise ValueError(f"{_shortened(given)} is no list of texts: write [one, two]")
    if not isinstance(given, str):
        raise ValueError(f"{_shortened(given)} is no single value; in a file, a text with brackets needs quotes")
    if isinstance(former, bool):
        if given.lower() not in ("true", "false"):
            raise ValueError(f"{given!r} is neither true nor false")
        return given.lower() == "true"
    if isinstance(former, str):
        if choices and given not in choices:
            raise ValueError(f"{given!r} is none of {', '.join(choices)}{did_you_mean(given, choices)}")
        return given
    if not _NUMBER.fullmatch(given):
        raise ValueError(f"{_shortened(given)} is not a number")
    number = float(given.replace("_", ""))
    return int(number) if number.is_integer() and isinstance(former, int) else number


def _is_share(key: str, shipped: Value) -> bool:
    """True for limits of shares, which are fractions; signs a word and losses may be more."""
    return key.startswith(("min_", "max_")) and isinstance(shipped, float) and key not in _NO_SHARES


def _check_range(key: str, value: Value, is_share: bool) -> None:
    """Refuses numbers that no figure has.

    Raises:
        ValueError: it is negative, infinite, a share of more than 1, or too low a similarity.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{value:g} is negative or infinite: give a number from 0 on")
    if key.endswith("_similarity") and not LOWEST_SIMILARITY <= value <= 1:
        raise ValueError(f"{value:g} is not between {LOWEST_SIMILARITY} and 1, as near duplicates are: 0.8 is usual")
    if is_share and value > 1:
        percent = f" ({value:g}% is {value / 100:g})" if value <= 100 else ""
        raise ValueError(f"{value:g} is more than the whole: give a share between 0 and 1{percent}")
