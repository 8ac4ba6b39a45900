"""Tests of the pre-tokenizer's words, and of its extension by scripts."""

from collections.abc import Callable

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

from colossal_llama.tokenizer.pretokenizer import definition_of, extended, extended_letters, extended_pattern, words_of
from colossal_llama.utils.errors import UserError

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_CL100K = (
    r"(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"
    r"\s+(?!\S)|\s"
)
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def _by(*steps: str | PreTokenizer, normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    as_steps = [pre_tokenizers.Split(Regex(step), "isolated") if isinstance(step, str) else step for step in steps]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(as_steps)  # type: ignore[assignment]
    if normalizer is not None:
        tokenizer.normalizer = normalizer  # type: ignore[assignment]
    return tokenizer


_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_KINDS: dict[str, Callable[[], Tokenizer]] = {
    "LLaMA-3": lambda: _by(_LLAMA3, _BYTES),
    "Qwen": lambda: _by(_LLAMA3.replace("{1,3}", ""), _BYTES, normalizer=normalizers.NFC()),
    "SmolLM2": lambda: _by(pre_tokenizers.Digits(individual_digits=True), _GPT2),
    "GPT-2": lambda: _by(_GPT2),
    "possessive": lambda: _by(_CL100K, _BYTES),
}
_EXTENDED = {
    name: (make(), extended(make(), ["Thai", "Devanagari", "Arabic"]).pre_tokenizer) for name, make in _KINDS.items()
}
_THE_SCRIPTS = regex.compile(r"[\p{Script=Thai}\p{Script=Devanagari}\p{Script=Arabic}]")
_texts = st.text(
    st.one_of(
        st.characters(codec="utf-8"),
        st.sampled_from(" \n\r\t'sT1٣.,-'、。\u200b\u200c\u200d\ufe0f\u0301\u064b\u0f71\u0e48\u093c\u3099é中กिクहབ"),
    ),
    max_size=40,
).map(lambda text: _THE_SCRIPTS.sub("", text))


def _with(tokenizer: Tokenizer, pre_tokenizer: PreTokenizer | None) -> Tokenizer:
    result = Tokenizer(tokenizer.model)
    result.normalizer = tokenizer.normalizer  # type: ignore[assignment]
    result.pre_tokenizer = pre_tokenizer  # type: ignore[assignment]
    return result


@pytest.mark.parametrize("kind", _KINDS)
@given(text=_texts)
def test_a_text_without_the_scripts_keeps_its_words(kind: str, text: str):
    tokenizer, pre_tokenizer = _EXTENDED[kind]
    assert words_of(_with(tokenizer, pre_tokenizer), text) == words_of(tokenizer, text)


@pytest.mark.parametrize("kind", _KINDS)
@given(text=_texts, others=st.lists(st.sampled_from(["ที่", "हिन्दी", "عَرَبِيّ", "म\u200dक"]), max_size=4))
def test_words_are_the_whole_text(kind: str, text: str, others: list[str]):
    tokenizer, pre_tokenizer = _EXTENDED[kind]
    text = text.join(["", *others])
    normal = text if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str(text)
    assert "".join(words_of(_with(tokenizer, pre_tokenizer), text)) == normal


@pytest.mark.parametrize("kind", _KINDS)
def test_marks_and_joiners_stay_with_letters_of_the_scripts_only(kind: str):
    tokenizer, pre_tokenizer = _EXTENDED[kind]
    new = _with(tokenizer, pre_tokenizer)
    for word in ("ฉันกินข้าว", "हिन्दी", "न\u200dक्\u200dष", "عَرَبِيّ", "می\u200cخواهم"):
        assert words_of(new, f"a {word} b") == ["a", f" {word}", " b"]
        assert len(words_of(tokenizer, word)) > 1
    for word in ("བོད་ཡིག", "မြန်မာ", "தமிழ்", "q\u0301\u0301a"):
        assert words_of(new, word) == words_of(tokenizer, word)


def test_digits_contractions_and_spaces_are_cut_as_before():
    _, pre_tokenizer = _EXTENDED["SmolLM2"]
    words = words_of(_with(_EXTENDED["SmolLM2"][0], pre_tokenizer), "it's ที่12 ้a  x")
    assert words == ["it", "'s", " ที่", "1", "2", " ้", "a", " ", " x"]


@pytest.mark.parametrize("kind", _KINDS)
def test_scripts_may_be_added_one_after_the_other(kind: str):
    tokenizer, at_once = _EXTENDED[kind]
    for script in ("Arabic", "Thai", "Devanagari"):
        tokenizer = _with(tokenizer, extended(tokenizer, [script]).pre_tokenizer)
    assert at_once is not None
    assert tokenizer.pre_tokenizer.__getstate__() == at_once.__getstate__()
    again = extended(tokenizer, ["Thai", "Arabic"])
    assert again.pre_tokenizer is None
    assert again.scripts == ()
    assert len(again.notes) == 2
    assert {"ก", "ह", "ع"} <= extended_letters(definition_of(tokenizer))
    assert "a" not in extended_letters(definition_of(tokenizer))


def test_letters_in_classes_are_left_as_they_are():
    letters = frozenset("ก")
    kept = r"[^\p{L}+]|[[a-z]&&[^\p{L}+]]|[]\p{L}+]|\\\[\p{L}*|\P{L}+|[\[\p{L}+]"
    assert extended_pattern(kept, letters) == kept
    assert extended_pattern(r"[a\]]\p{L}+|\p{L}++x", letters).count("(?<=[ก])") == 2


def test_what_changes_nothing_is_said():
    newer = _by(r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+", _BYTES)
    extension = extended(newer, ["Thai", "Georgian"])
    assert extension.pre_tokenizer is None
    assert "keeps marks of Thai" in extension.notes[0]
    assert "Georgian has no combining marks" in extension.notes[1]
    extension = extended(_KINDS["LLaMA-3"](), ["Georgian", "Thai"])
    assert extension.scripts == ("Thai",)
    assert len(extension.notes) == 1


def test_a_model_without_pre_tokenizer_is_one_word_and_needs_none():
    tokenizer = Tokenizer(models.BPE())
    assert words_of(tokenizer, " a b") == [" a b"]
    assert words_of(tokenizer, "") == []
    assert "keeps marks of Thai" in extended(tokenizer, ["Thai"]).notes[0]


def test_other_pre_tokenizers_are_refused():
    with_space = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    for other in (_by(r"[ \p{L}]\p{Ll}*|.", _BYTES), _by(with_space)):
        with pytest.raises(UserError, match="does not find words by"):
            extended(other, ["Thai"])
