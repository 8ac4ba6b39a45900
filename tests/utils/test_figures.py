"""Figures: labels are drawn as they are read, fonts are found by their characters."""

import pytest
from matplotlib import font_manager

from colossal_llama.utils import figures
from colossal_llama.utils.figures import distinct_labels, fonts_for, label_of


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("plain", "plain"),
        ("_hidden", " _hidden"),
        ("$x$", r"\$x\$"),
        ("a\nb\x00", "a·b·"),
        ("x" * 30, "x" * 30),
        ("x" * 31, "x" * 30 + "…"),
        ("字" * 16, "字" * 15 + "…"),
        ("", ""),
    ],
)
def test_labels(text, label):
    assert label_of(text) == label


def test_a_note_is_shortened_apart():
    assert label_of("x" * 40, "$") == "x" * 30 + r"… (\$)"


def test_long_names_with_the_same_beginning_are_told_apart():
    long = 40 * "a"
    first, short, second = distinct_labels([f"{long}-1", "b", f"{long}-2"])
    assert short == "b"
    assert (first[:4], second[:4]) == ("#1 a", "#3 a")


def test_fonts_are_added_until_all_characters_are_there(monkeypatch):
    fonts = [font_manager.FontEntry(fname=name, name=name) for name in ("Kana", "Hangul", "SimHei", "Last Resort")]
    characters = {"Kana": "あ诗", "Hangul": "한", "SimHei": "诗词", "Last Resort": "诗あ한"}
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*font_manager.fontManager.ttflist, *fonts])
    real = figures._characters

    def known(font: str) -> dict[int, int]:
        return dict.fromkeys(map(ord, characters[font]), 1) if font in characters else real(font)

    monkeypatch.setattr(figures, "_characters", known)
    assert fonts_for(["plain"]) == (["DejaVu Sans"], set())
    assert fonts_for(["诗词"]) == (["DejaVu Sans", "SimHei"], set())
    assert fonts_for(["a", "诗あ", "한"]) == (["DejaVu Sans", "SimHei", "Hangul", "Kana"], set())
    assert fonts_for(["诗\U0001f389"])[1] == {"\U0001f389"}
