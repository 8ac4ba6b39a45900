"""Names of Unicode scripts and of the languages that are written in them.

A script may be given by its Unicode name (Devanagari) or its ISO 15924 code (Deva), a language by
its ISO 639 codes (hi, hin) or its English name (Hindi). Case, spaces, hyphens and underscores do
not count. The names of scripts are fontTools' copy of Unicode's table. The table of languages,
`languages.tsv`, is ours: ISO 639 codes, the scripts in which they are written today, names.
"""

import argparse
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from colossal_llama.utils.suggestion import did_you_mean

# Codes of ISO 15924 that are no scripts of Unicode: variants of one, or several together.
_COMBINED = {
    "Hans": "Han", "Hant": "Han", "Hanb": "Han,Bopomofo", "Jpan": "Han,Hiragana,Katakana", "Hrkt": "Hiragana,Katakana",
    "Kore": "Hangul,Han", "Aran": "Arabic", "Cyrs": "Cyrillic", "Geok": "Georgian", "Latf": "Latin", "Latg": "Latin",
    "Syre": "Syriac", "Syrj": "Syriac", "Syrn": "Syriac", "Katakana_Or_Hiragana": "Hiragana,Katakana",
}  # fmt: skip
_NO_SCRIPTS = {"common", "inherited", "unknown", "zyyy", "zinh", "zzzz"}
_LANGUAGES = Path(__file__).with_name("languages.tsv")


def named_scripts(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the Unicode names of scripts that are given by name or ISO 15924 code, each once.

    >>> named_scripts(["thai", "Deva", "Jpan"])
    ('Thai', 'Devanagari', 'Han', 'Hiragana', 'Katakana')

    Raises:
        ValueError: a name is not that of a script, or there is none; the message suggests one.
    """
    return _resolve(names, _scripts(), _not_a_script, "script")


def scripts_of_languages(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the Unicode names of the scripts in which languages are written, each once.

    A language is given by its ISO 639 code or its English name. A tag of BCP 47 may name the script
    (`sr-Latn`); its region has no effect (`pt-BR`).

    >>> scripts_of_languages(["hi", "Japanese", "sr-Latn"])
    ('Devanagari', 'Han', 'Hiragana', 'Katakana', 'Latin')

    Raises:
        ValueError: a name is not that of a language here, or there is none; the message suggests
            one.
    """
    return _resolve(map(_without_subtags, names), _languages(), _not_a_language, "language")


def language_codes(name: str) -> tuple[str, ...]:
    """Returns the ISO 639 codes of a language given by code or name; none for an unknown one."""
    folded = _folded(name)
    by_name: tuple[str, ...] = ()
    for codes, _, names in _language_table():
        if folded in codes:  # mon is Mongolian, though there is a language Mon
            return tuple(codes)
        if folded in map(_folded, names):
            by_name = tuple(codes)
    return by_name


def parse_scripts(text: str) -> tuple[str, ...]:
    """Parses names or codes of scripts, separated by commas (argparse `type=`)."""
    return _parse(text, named_scripts)


def parse_languages(text: str) -> tuple[str, ...]:
    """Parses codes or names of languages, separated by commas, as scripts (argparse `type=`)."""
    return _parse(text, scripts_of_languages)


def _parse(text: str, scripts_of: Callable[[Iterable[str]], tuple[str, ...]]) -> tuple[str, ...]:
    try:
        return scripts_of(part.strip() for part in text.split(",") if part.strip())
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def scripts_of_text(text: str) -> tuple[str, ...]:
    """Returns the names of the scripts of a text's letters, in their order."""
    from fontTools.unicodedata import script

    codes = dict.fromkeys(script(character) for character in text if character.isalpha())
    return tuple(name for code in codes for name in _scripts().get(_folded(code), ()))


def _resolve(
    names: Iterable[str], known: dict[str, tuple[str, ...]], complaint: Callable[[str], str], kind: str
) -> tuple[str, ...]:
    found: dict[str, None] = {}
    complaints = []
    for name in names:
        scripts = known.get(_folded(name)) or (_scripts().get(name[1:]) if name.startswith("=") else None)
        found.update(dict.fromkeys(scripts or ()))
        complaints += [] if scripts else [complaint(name)]
    if complaints:
        raise ValueError("; ".join(complaints))
    if not found:
        raise ValueError(f"no {kind} is named")
    return tuple(found)


def _folded(name: str) -> str:
    """Returns a name as names are compared (UAX #44, loose matching)."""
    return re.sub(r"[\s_'’-]", "", name).casefold()


def _without_subtags(tag: str) -> str:
    """Returns a tag's language, or `=` and its script where it names one."""
    language, *subtags = re.split("[-_]", tag.strip())
    if not subtags or _folded(tag) in _languages() or _folded(language) not in _languages():
        return tag
    return next((f"={_folded(part)}" for part in subtags if _folded(part) in _scripts()), language)


@cache
def _scripts() -> dict[str, tuple[str, ...]]:
    """Folded name or code → names of scripts."""
    from fontTools.unicodedata import Scripts  # takes 40 ms

    scripts = {_folded(key): (name,) for code, name in Scripts.NAMES.items() for key in (code, name)}
    scripts = {key: names for key, names in scripts.items() if key not in _NO_SCRIPTS}
    return scripts | {_folded(code): tuple(names.split(",")) for code, names in _COMBINED.items()}


@cache
def _languages() -> dict[str, tuple[str, ...]]:
    """Folded code or name → names of scripts."""
    by_code: dict[str, tuple[str, ...]] = {}
    by_name: dict[str, tuple[str, ...]] = {}
    for codes, scripts, names in _language_table():
        by_code |= dict.fromkeys(codes, tuple(scripts))
        by_name |= dict.fromkeys(map(_folded, names), tuple(scripts))
    return by_name | by_code  # mon is Mongolian, though there is a language Mon


def _language_table() -> list[list[list[str]]]:
    """Codes, scripts and names of each language."""
    lines = _LANGUAGES.read_text("utf-8").splitlines()[1:]
    return [[column.split(",") for column in line.split("\t")] for line in lines]


def _not_a_script(name: str) -> str:
    if _folded(name) in _NO_SCRIPTS:
        return f"{name} stands for the characters of no single script"
    if scripts := _languages().get(_folded(name)):
        return f"{name} is a language, not a Unicode script: did you mean {','.join(scripts)!r}?"
    return f"{name.strip() or repr(name)} is not a Unicode script{did_you_mean(name.strip(), _written_scripts())}"


def _not_a_language(name: str) -> str:
    if scripts := _scripts().get(_folded(name)):
        return f"{name} is a script, not a language: give --scripts {','.join(scripts)}"
    written = [name for _, _, names in _language_table() for name in names]
    suggestion = did_you_mean(name.strip(), written)
    return f"{name.strip() or repr(name)} is not a language known here{suggestion or ': give --scripts instead'}"


def _written_scripts() -> set[str]:
    return {name for names in _scripts().values() for name in names}
