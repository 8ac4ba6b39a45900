"""Normalisation of texts: one form for what reads the same, and nothing that cannot be read.

The steps, in their order: Unicode form, controls, full-width latin, traditional to simplified,
white space. Normalising a text again changes nothing; the conversion to simplified characters is
OpenCC's, whose phrases promise that of real texts only.
"""

import re
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast

import regex

from colossal_llama.cleaning.rule_settings import RuleSettings
from colossal_llama.utils.errors import UserError

UNICODE_FORMS = ("NFC", "NFKC", "none")
WHITE_SPACE = ("runs", "lines", "none")

# What no reader sees: C0 and C1 controls but white space, soft hyphens, zero-width and
# bidirectional marks, byte order marks, halves of surrogate pairs, and noncharacters.
_CONTROLS = (
    "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufdd0-\ufdef\ufeff\ufff9-\ufffb\ufffe\uffff\U000e0001"
)
# These belong to words or pictures: joiners in Arabic and Indian scripts and between emoji, tags
# in flags. Elsewhere they are invisible, and break words.
_JOINERS = "\u200c\u200d"
_TAGS = "\U000e0020-\U000e007f"
_FULL_WIDTH = "\uff10-\uff19\uff21-\uff3a\uff41-\uff5a"
_SPACES = "\xa0\u1680\u2000-\u200a\u202f\u205f\u3000"
_LINE_ENDS = "\v\f\r\x85\u2028\u2029"

_SUSPECT = re.compile(f"[{_CONTROLS}{_JOINERS}{_TAGS}{_FULL_WIDTH}{_SPACES}{_LINE_ENDS}]")
_ASCII_SUSPECTS = bytes(code for code in range(128) if _SUSPECT.match(chr(code)))

_JOINING = "".join(
    rf"\p{{Script={script}}}"
    for script in (
        *("Arabic", "Syriac", "Mongolian", "Nko", "Devanagari", "Bengali", "Gurmukhi", "Gujarati", "Oriya"),
        *("Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala", "Myanmar", "Khmer", "Tibetan"),
    )
)
_REMOVED = regex.compile(
    # A terminal's colours and cursor moves, as a whole.
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b\n]*(?:\x07|\x1b\\)|\x9b[0-?]*[ -/]*[@-~]"
    rf"|[{_CONTROLS}]+"
    rf"|(?<![{_JOINING}\p{{Extended_Pictographic}}\p{{Emoji_Modifier}}\ufe0f\u20e3{_TAGS}])[{_JOINERS}]+"
    rf"|(?<!\U0001f3f4[{_TAGS}]*)[{_TAGS}]+"
)
_FULL_WIDTH_RUN = re.compile(f"[{_FULL_WIDTH}]+(?:[＆＋－．／：＠＿][{_FULL_WIDTH}]+)*")
_TO_ASCII = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_CONTROL = re.compile(f"[{_CONTROLS}{_JOINERS}{_TAGS}]")
_OTHER_SPACE = re.compile(f"[{_SPACES}]")
# Two spaces or more behind a character: those of an indentation are behind a line's end.
_RUN_OF_SPACES = re.compile(r"  (?<=\S  ) *")
_RUN_WITH_TAB = re.compile(r"(?<=\S)(?: +\t[ \t]*|\t[ \t]+)")
_WIDE_INDENTATION = re.compile("(?:(?<=\n)|\\A)\u3000[\u3000 \t]*")


@dataclass(frozen=True)
class NormalizationSettings:
    """Steps of normalisation, each on its own switch.

    Attributes:
        on: off changes no text.
        unicode_form: NFC composes letters and marks and keeps what is seen. NFKC makes plain
            characters of variants, too, such as Chinese punctuation marks, fractions and circled
            numbers. `none` keeps code points as they are.
        remove_controls: control characters, terminal sequences, zero-width and bidirectional marks.
        full_width_latin: full-width letters and digits become ASCII, with the marks between them.
        white_space: `lines` makes all line ends newlines and all spaces plain ones; it removes
            spaces at ends of lines, and blank lines beyond one. `runs` makes one space of several
            within a line, too, and removes ideographic indentation. `none` keeps it.
        traditional_to_simplified: by OpenCC, an optional package.
    """

    on: bool = True
    unicode_form: str = "NFC"
    remove_controls: bool = True
    full_width_latin: bool = True
    white_space: str = "lines"
    traditional_to_simplified: bool = False

    def __post_init__(self) -> None:
        problems = [
            f"normalization.{name} is {value!r}: choose one of {', '.join(allowed)}"
            for name, value, allowed in (
                ("unicode_form", self.unicode_form, UNICODE_FORMS),
                ("white_space", self.white_space, WHITE_SPACE),
            )
            if value not in allowed
        ]
        if problems:
            raise UserError(problems)


def normalization_of(rules: RuleSettings) -> NormalizationSettings:
    """Returns what the rule `normalization` says."""
    rule = rules["normalization"]
    return NormalizationSettings(on=rule.on, **rule.values)


def require_packages(settings: NormalizationSettings) -> None:
    """Raises `UserError` where a package that the settings need is not installed."""
    if settings.on and settings.traditional_to_simplified:
        _opencc()


def normalize(text: str, settings: NormalizationSettings) -> tuple[str, Mapping[str, tuple[int, int]]]:
    """Normalises a text.

    Returns:
        The text, and for each step that changed it: 1, and by how many characters it is shorter.
    """
    if not settings.on or not text:
        return text, {}
    changes: dict[str, tuple[int, int]] = {}
    suspects = _suspects(text)
    if suspects:
        text = _without_suspects(text, suspects, settings, changes)
    else:
        text = _step("unicode_form", text, _composed(text, settings.unicode_form), changes)
    if settings.traditional_to_simplified:
        text = _step("traditional_to_simplified", text, _simplified(text, settings.unicode_form), changes)
    if settings.white_space != "none":
        text = _step("white_space", text, _with_plain_space(text, settings.white_space, suspects), changes)
    return text, changes


def _step(name: str, before: str, after: str, changes: dict[str, tuple[int, int]]) -> str:
    """Notes a step that changed the text, and returns what it left."""
    if after != before:
        changes[name] = (1, changes.get(name, (1, 0))[1] + len(before) - len(after))
    return after


def _suspects(text: str) -> str:
    """The characters, each once, that a step other than the Unicode form may change."""
    if text.isascii() and len(text.encode().translate(None, _ASCII_SUSPECTS)) == len(text):
        return ""  # four times as fast as the pattern
    return "".join(set(_SUSPECT.findall(text)))


def _without_suspects(
    text: str, suspects: str, settings: NormalizationSettings, changes: dict[str, tuple[int, int]]
) -> str:
    """Composes, removes controls and maps full-width latin, until none gives the others work.

    A mark that followed a removed control or a full-width letter is composed with what is now
    before it. Each round removes or maps characters that no other step makes: it ends.
    """
    remove_controls = settings.remove_controls and _CONTROL.search(suspects)
    map_full_width = settings.full_width_latin and _FULL_WIDTH_RUN.search(suspects)
    before = None
    while text != before:
        before = text
        text = _step("unicode_form", text, _composed(text, settings.unicode_form), changes)
        if remove_controls:
            text = _step("controls", text, _REMOVED.sub("", text), changes)
        if map_full_width:
            text = _step("full_width_latin", text, _FULL_WIDTH_RUN.sub(_ascii, text), changes)
    return text


def _composed(text: str, form: str) -> str:
    return text if form == "none" else unicodedata.normalize(cast("Literal['NFC', 'NFKC']", form), text)


def _ascii(match: re.Match[str]) -> str:
    return match[0].translate(_TO_ASCII)


def _simplified(text: str, unicode_form: str) -> str:
    return _composed(_opencc().convert(text), unicode_form)


@cache
def _opencc() -> Any:
    try:
        import opencc
    except ModuleNotFoundError as error:
        if error.name != "opencc":
            raise
        raise UserError(
            "normalization.traditional_to_simplified needs the package OpenCC, which is not installed in "
            f"{sys.executable}: run 'python -m pip install OpenCC' there, or switch it off"
        ) from error
    return opencc.OpenCC("t2s")


def _with_plain_space(text: str, extent: str, suspects: str) -> str:
    if extent == "runs" and "\u3000" in suspects:
        text = _WIDE_INDENTATION.sub("", text)
    if _OTHER_SPACE.search(suspects):
        text = _OTHER_SPACE.sub(" ", text)
    text = text.replace("\r\n", "\n") if "\r" in suspects else text
    for line_end in set(suspects) & set(_LINE_ENDS):
        text = text.replace(line_end, "\n")
    if text[-1:].isspace() or " \n" in text or "\t\n" in text:
        text = "\n".join(map(str.rstrip, text.split("\n")))
    if extent == "runs":
        if "\t" in text:
            text = _RUN_WITH_TAB.sub("\t", text)
        if "  " in text:
            text = _RUN_OF_SPACES.sub(" ", text)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.strip("\n")
