r"""The pre-tokenizer of a tokenizer: the words within which BPE merges, and its extension.

Pre-tokenizers of byte-level BPE find words by a regular expression in which a run of letters is
`\p{L}+`. Combining marks are no letters. LLaMA-3, GPT-2 and Qwen cut before or after each, so that
no token holds a word of Thai, Hindi, Tibetan, Burmese, Khmer or Tamil:

    ฉันกินข้าว    source: ฉ | ันก | ินข | ้าว    extended by Thai: ฉันกินข้าว

The extended expression lets marks and joiners that follow a letter of given scripts stay with it:
`\p{L}+` becomes `\p{L}+(?:(?<=[ก-ะ…])[\p{M}…]+\p{L}*)*`. Without a letter of these scripts the
look-behind never matches. The expression then means what it meant, whatever surrounds `\p{L}+`, and
such texts keep their ids. The scripts' letters are written out: names of scripts have another form
in each engine of regular expressions, and another extent in each version of Unicode.
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import regex
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

from colossal_llama.tokenizer.script_names import named_scripts
from colossal_llama.utils.errors import UserError

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The expression within the tokenizers library's ByteLevel (`use_regex`)."""

_ZERO_WIDTH_JOINERS = "\u200c\u200d"  # they show inside a word how letters join: Persian, Indic scripts
_MARKS_AFTER = rf"[\p{{M}}{_ZERO_WIDTH_JOINERS}]"
_EXTENSION = re.compile(r"\(\?:\(\?<=\[([^][\\]+)\]\)" + re.escape(_MARKS_AFTER) + r"\+\\p\{L\}\*\)\*")
# A run of letters outside a character class; classes and other escapes are passed over whole.
_LETTERS = regex.compile(r"(?<run>\\p\{L\}\+\+?)|\\.|(?<class>\[\^?\]?(?:\\.|(?&class)|[^][\\])*\])|.", regex.DOTALL)
_PROBED_LETTERS = 8
_NO_SCRIPTS = {"Zyyy", "Zinh", "Zzzz"}  # of several, inherited, or newer than fontTools' table


@dataclass(frozen=True)
class Extension:
    """A pre-tokenizer in which marks stay with letters of more scripts.

    Attributes:
        pre_tokenizer: the extended one; None where nothing changes.
        scripts: the scripts for which it is another one than before.
        notes: for each other script the reason why it changes nothing.
    """

    pre_tokenizer: PreTokenizer | None
    scripts: tuple[str, ...]
    notes: tuple[str, ...]


def words_of(tokenizer: Tokenizer, text: str) -> list[str]:
    """Returns the stretches of a text within which merges may happen: no token extends over two.

    They are those of the normalised text (Qwen's NFC). Added tokens count as text. A model without
    a pre-tokenizer (LLaMA-2, sentencepiece) merges across all of a text, spaces included: its one
    word is the text as it is. A Metaspace pre-tokenizer that does not split gives one word, too.

    Args:
        tokenizer: the tokenizer.
        text: any text.
    """
    if tokenizer.pre_tokenizer is None:
        return [text] if text else []
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    return [text[start:end] for _, (start, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def extended(tokenizer: Tokenizer, scripts: Sequence[str]) -> Extension:
    r"""Lets marks of scripts stay with their letters in a pre-tokenizer.

    Args:
        tokenizer: of the pre-tokenizer; it is not changed. It may have been extended before.
        scripts: names of Unicode scripts (`Thai`, `Devanagari`).

    Raises:
        UserError: the pre-tokenizer cuts such words in another way than by `\p{L}+`.
    """
    words = {script: _probe_words(script) for script in dict.fromkeys(scripts)}
    notes, missing = [], []
    for script, probes in words.items():
        if not probes:
            notes.append(f"{script} has no combining marks: no word of it is cut at one")
        elif all(_is_one_word(tokenizer, probe) for probe in probes):
            notes.append(f"the tokenizer keeps marks of {script} with their letters already")
        else:
            missing.append(script)
    if not missing:
        return Extension(None, (), tuple(notes))
    letters = frozenset().union(*map(_letters_of, missing))
    result = Tokenizer(tokenizer.model)
    result.normalizer = tokenizer.normalizer  # type: ignore[assignment]
    result.pre_tokenizer = _extended_pre_tokenizer(tokenizer.pre_tokenizer, letters)
    if uncut := [script for script in missing if not all(_is_one_word(result, probe) for probe in words[script])]:
        raise UserError(
            f"--extend_pretokenizer {','.join(uncut)}: this tokenizer's pre-tokenizer does not find words by "
            r"\p{L}+ alone, or puts a space before them (add_prefix_space), and would still cut them at marks; use a "
            "tokenizer with the pre-tokenizer of LLaMA-3, GPT-2 or Qwen, or leave the option out"
        )
    return Extension(result.pre_tokenizer, tuple(missing), tuple(notes))


def definition_of(tokenizer: Tokenizer) -> dict | None:
    """Returns a tokenizer's pre-tokenizer as tokenizer.json describes it."""
    return None if tokenizer.pre_tokenizer is None else json.loads(tokenizer.pre_tokenizer.__getstate__())


def extended_letters(definition: dict | None) -> frozenset[str]:
    """Returns the letters with which marks stay by an extension; empty without one.

    Args:
        definition: of a pre-tokenizer (`definition_of`).
    """
    found = (letters for pattern in _patterns(definition) for letters in _EXTENSION.findall(pattern))
    return frozenset().union(*map(_characters, found))


def extended_scripts(definition: dict | None) -> tuple[str, ...]:
    """Returns the names of the scripts of `extended_letters`."""
    if not (letters := extended_letters(definition)):
        return ()
    from fontTools.unicodedata import script  # takes 40 ms

    return named_scripts(sorted(set(map(script, letters)) - _NO_SCRIPTS))


def without_extension(definition: dict | None) -> dict | None:
    """Copies a pre-tokenizer's definition; extended expressions are what they were before."""
    if not extended_letters(definition):
        return definition
    assert definition is not None
    plain = [
        {**step, "pattern": {"Regex": _EXTENSION.sub("", step["pattern"]["Regex"])}} if "pattern" in step else step
        for step in _steps(definition)
    ]
    return {**definition, "pretokenizers": plain}


def extended_pattern(pattern: str, letters: frozenset[str]) -> str:
    r"""Lets marks stay with letters in an expression; one that is extended gets more letters.

    Args:
        pattern: the expression, in which runs of letters are found by `\p{L}+`.
        letters: of the scripts.
    """
    letters = letters.union(*map(_characters, _EXTENSION.findall(pattern)))
    extension = f"(?:(?<=[{_ranges(letters)}]){_MARKS_AFTER}+\\p{{L}}*)*"
    plain = _EXTENSION.sub("", pattern)
    return _LETTERS.sub(lambda found: found[0] + extension if found["run"] else found[0], plain)


def _extended_pre_tokenizer(pre_tokenizer: PreTokenizer, letters: frozenset[str]) -> PreTokenizer:
    steps = [
        part for step in _steps(json.loads(pre_tokenizer.__getstate__())) for part in _extended_step(step, letters)
    ]
    result = pre_tokenizers.Sequence([])
    result.__setstate__(json.dumps({"type": "Sequence", "pretokenizers": steps}).encode())
    return result


def _extended_step(step: dict, letters: frozenset[str]) -> Iterator[dict]:
    """Yields a step with extended expressions; ByteLevel's own becomes a step before it."""
    if step["type"] == "Split" and "Regex" in step["pattern"]:
        yield {**step, "pattern": {"Regex": extended_pattern(step["pattern"]["Regex"], letters)}}
    elif step["type"] == "ByteLevel" and step["use_regex"] and not step["add_prefix_space"]:
        pattern = {"Regex": extended_pattern(GPT2_PATTERN, letters)}
        yield {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
        yield {**step, "use_regex": False}
    else:
        yield step


def _steps(definition: dict) -> Iterator[dict]:
    """Yields the steps of a pre-tokenizer, nested ones in a row."""
    if definition.get("type") == "Sequence":
        for step in definition["pretokenizers"]:
            yield from _steps(step)
    else:
        yield definition


def _patterns(definition: dict | None) -> list[str]:
    steps = _steps(definition) if definition else ()
    return [step["pattern"].get("Regex", "") for step in steps if isinstance(step.get("pattern"), dict)]


def _is_one_word(tokenizer: Tokenizer, word: str) -> bool:
    return len(words_of(tokenizer, word)) == 1


@lru_cache
def _probe_words(script: str) -> list[str]:
    """Returns words of a letter, a mark, and a letter for each mark of a script.

    The tokenizers library knows an older version of Unicode than the package regex. What it takes
    for neither a letter nor a mark is in no word.
    """
    letters = _known_as("L", sorted(_letters_of(script)))
    letters = letters[:: max(1, len(letters) // _PROBED_LETTERS)]
    marks = _known_as("M", _characters_like(rf"[\p{{M}}&&\p{{Script_Extensions={script}}}]"))
    return [letter + mark + letter for mark in marks for letter in letters]


def _known_as(category: str, characters: Sequence[str]) -> list[str]:
    """Returns those characters that the tokenizers library counts in a general category."""
    others = pre_tokenizers.Split(Regex(rf"\P{{{category}}}"), "removed")
    return [character for text, _ in others.pre_tokenize_str("".join(characters)) for character in text]


@lru_cache
def _letters_of(script: str) -> frozenset[str]:
    return frozenset(_characters_like(rf"[\p{{L}}&&\p{{Script={script}}}]"))


def _characters_like(character_class: str) -> list[str]:
    return regex.findall(character_class, _all_characters(), regex.V1)


@lru_cache
def _all_characters() -> str:
    return "".join(chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code <= 0xDFFF)


def _ranges(letters: frozenset[str]) -> str:
    """Writes letters as the inside of a character class: `ก-ะา-ำ`."""
    codes = sorted(map(ord, letters))
    runs = [[code for _, code in run] for _, run in groupby(enumerate(codes), lambda pair: pair[1] - pair[0])]
    return "".join(chr(run[0]) + ("-" if len(run) > 2 else "") + "".join(map(chr, run[1:][-1:])) for run in runs)


def _characters(ranges: str) -> frozenset[str]:
    """Reads what `_ranges` writes."""
    found = re.findall(r"(.)-(.)|(.)", ranges, re.DOTALL)
    return frozenset(
        chr(code) for first, last, alone in found for code in range(ord(first or alone), ord(last or alone) + 1)
    )
