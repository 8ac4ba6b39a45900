"""Normalisation: what is invisible or a variant goes, all else stays, and twice is as once."""

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.cleaning.normalization import NormalizationSettings, normalize, require_packages
from colossal_llama.utils.errors import UserError


def normalized(text, **settings) -> str:
    return normalize(text, NormalizationSettings(**settings))[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cafe\u0301 \u212b", "café Å"),
        ("\u6f22\ufa1a", "漢祥"),  # a compatibility ideograph
        ("½ ① ２ ，“好”！…", "½ ① 2 ，“好”！…"),
    ],
)
def test_nfc_composes_and_keeps_what_is_seen(text, expected):
    assert normalized(text) == expected


def test_nfkc_makes_variants_plain():
    assert normalized("½①ﬁ，！\xa0ｶ", unicode_form="NFKC") == "1⁄21fi,! カ"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\ufeffa\u200bb\xadc\x00d\x7f\x9f\u2060e", "abcde"),
        ("\x1b[1;31mred\x1b[0m \x1b]0;title\x07ok", "red ok"),
        ("price\u202e321\u202c", "price321"),
        ("half \ud83d of a pair", "half of a pair"),
        ("密\u200d码 pass\u200cword", "密码 password"),
        (
            "می\u200cخواهم क्\u200dष 👩\u200d👩\u200d👧 ❤\ufe0f\u200d🔥 👍🏽\u200d",
            "می\u200cخواهم क्\u200dष 👩\u200d👩\u200d👧 ❤\ufe0f\u200d🔥 👍🏽\u200d",
        ),
        ("🏴\U000e0067\U000e0062\U000e007f hidden\U000e0067\U000e0062", "🏴\U000e0067\U000e0062\U000e007f hidden"),
        ("tab\tnew\nline", "tab\tnew\nline"),
        ("葛\U000e0100 and \ue000", "葛\U000e0100 and \ue000"),  # variants of ideographs, private use
    ],
)
def test_controls_go_and_joiners_of_words_and_emoji_stay(text, expected):
    assert normalized(text, white_space="runs") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ＡＢＣ，１２３（第４章）", "ABC，123（第4章）"),
        ("ｕｓｅｒ＠ｍａｉｌ．ｃｏｍ", "user@mail.com"),
        ("１２：３０；３．１４。Ａ、Ｂ", "12:30；3.14。A、B"),
        ("Ａ\u0301", "Á"),
    ],
)
def test_full_width_letters_and_digits_become_ascii_and_chinese_marks_stay(text, expected):
    assert normalized(text) == expected


def test_white_space_of_lines_keeps_indentation_and_columns():
    text = "\n\n  def f():\r\n\treturn  1 \t\r\r\n\n\n\n\u3000\u3000段落\xa0a\u2028b\f"
    assert normalized(text) == "  def f():\n\treturn  1\n\n  段落 a\nb"


def test_runs_of_white_space_become_one_space_or_tab():
    text = "\u3000\u3000段落\n    code  a   b\n\tx \t  y\t\tz\n\u3000 \u3000段\u3000落"
    assert normalized(text, white_space="runs") == "段落\n    code a b\n\tx\ty\tz\n段 落"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"on": False}, "\x00Ａ\r\n"),
        ({"unicode_form": "none"}, "e\u0301"),
        ({"remove_controls": False}, "a\x00b\u200bc"),
        ({"full_width_latin": False}, "ＡＢ"),
        ({"white_space": "none"}, "\r\n  a \u3000\n\n\n\n"),
        ({}, "後來"),
    ],
)
def test_each_step_has_its_switch(settings, text):
    assert normalize(text, NormalizationSettings(**settings)) == (text, {})


def test_steps_are_counted_with_the_characters_they_remove():
    text = "\ufeffＡ\ufeff e\u0301  b \n"
    result, changes = normalize(text, NormalizationSettings(white_space="runs"))
    assert result == "A é b"
    assert changes == {
        "unicode_form": (1, 1),
        "controls": (1, 2),
        "full_width_latin": (1, 0),
        "white_space": (1, 3),
    }


def test_traditional_becomes_simplified():
    pytest.importorskip("opencc")
    settings = NormalizationSettings(traditional_to_simplified=True)
    require_packages(settings)
    assert normalize("後來，乾隆皇帝的頭髮乾了", settings) == (
        "后来，乾隆皇帝的头发干了",
        {"traditional_to_simplified": (1, 0)},
    )


def test_an_absent_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "opencc", None)
    from colossal_llama.cleaning import normalization

    normalization._opencc.cache_clear()
    require_packages(NormalizationSettings())
    with pytest.raises(UserError, match="pip install OpenCC"):
        require_packages(NormalizationSettings(traditional_to_simplified=True))


def test_wrong_settings_are_refused_all_at_once():
    with pytest.raises(UserError) as error:
        NormalizationSettings(unicode_form="NFD", white_space="all")
    assert "NFC, NFKC, none" in str(error.value)
    assert "runs, lines, none" in str(error.value)


# Characters that steps remove, map, compose or depend on, and some that nothing touches.
_DRAWN = st.text(
    alphabet=st.one_of(
        st.sampled_from(
            "ab1 \t\n\r\v\f\x00\x1b[0m]\x07\x85\x9b\xa0\xad\u0301\u0308\u0327\u200b\u200c\u200d\u2028\u3000\ufe0f\ufeff"
            "Ａｚ１．：＠，中文後乾\ufa1a\uac00\u1100\u1161\u0645\u06cc\u0915\u094d👩🏽🔥🏴\U000e0067\U000e007f™½¨ﬁ\ud800"
        ),
        st.characters(),
    )
)
_SETTINGS = st.builds(
    NormalizationSettings,
    unicode_form=st.sampled_from(["NFC", "NFKC", "none"]),
    remove_controls=st.booleans(),
    full_width_latin=st.booleans(),
    white_space=st.sampled_from(["runs", "lines", "none"]),
)


@given(_DRAWN, _SETTINGS)
def test_normalising_again_changes_nothing(text, settings):
    once, changes = normalize(text, settings)
    assert normalize(once, settings) == (once, {})
    assert sum(removed for _, removed in changes.values()) == len(text) - len(once)
    assert bool(changes) or once == text
    if settings.unicode_form != "none":
        assert unicodedata.is_normalized(settings.unicode_form, once)


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S"])))
def test_what_can_be_seen_stays(text):
    """Letters, digits, marks and symbols in NFC come out as they went in, but full-width latin."""
    text = unicodedata.normalize("NFC", text)
    assert normalized(text, full_width_latin=False) == text


@given(_DRAWN)
def test_lines_stay_apart_and_keep_their_words(text):
    """White space is all that its step changes."""
    result = normalized(text, unicode_form="none", remove_controls=False, full_width_latin=False)
    assert result.split() == text.split()


def test_real_texts_keep_their_words(shared_data):
    import orjson

    for path in sorted((shared_data / "pretrain").glob("*/*-000.jsonl")):
        for line in path.read_bytes().splitlines()[:200]:
            text = orjson.loads(line)["target"]
            once = normalized(text, white_space="runs")
            assert normalized(once, white_space="runs") == once
            assert "".join(once.split()) == "".join(normalized(text, white_space="none").split())
