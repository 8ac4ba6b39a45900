"""Rules in effect: presets, files, switches and single changes, and everything that is wrong."""

import re

import pytest

from colossal_llama.cleaning.rule_settings import PRESETS, RuleSettings, read_rules
from colossal_llama.utils.errors import UserError
from tests.support.rules_table import DOCUMENT, documented_table, rules_table


def problems(*args, **options) -> list[str]:
    with pytest.raises(UserError) as raised:
        read_rules(*args, **options)
    return raised.value.problems


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_prints_what_it_reads_back(preset, tmp_path):
    settings = read_rules(preset)
    file = tmp_path / "rules.yaml"
    file.write_text(settings.as_yaml(), encoding="utf-8")
    for other in PRESETS:
        again = read_rules(other, file)
        assert again.rules == settings.rules
        assert again.as_yaml().partition("\n")[2] == settings.as_yaml().partition("\n")[2]


def test_presets_differ_and_unknown_ones_are_refused():
    assert len({read_rules(preset).as_yaml() for preset in PRESETS}) == len(PRESETS)
    assert problems("boks") == ["'boks' is no preset: did you mean 'books'?"]


def test_what_comes_later_wins(tmp_path):
    file = tmp_path / "rules.yaml"
    file.write_text("length: {on: false, min_words: 7}\nhan: true\nstop_words:\n  words: [le, l'été, 'no']\n")
    settings = read_rules("books", file, on=["length"], changes=["length.min_characters = 3"])
    assert settings["length"].on
    assert settings["length"].values["min_words"] == 7
    assert settings["length"].values["min_characters"] == 3
    assert settings["length"].values["max_words"] == read_rules("books")["length"].values["max_words"]
    assert settings["han"].on
    assert settings["stop_words"].values["words"] == ["le", "l'été", "no"]


def test_all_is_every_rule_and_a_name_wins_over_it():
    def switched_on(settings: RuleSettings) -> set[str]:
        return {name for name, rule in settings.rules.items() if rule.on}

    assert switched_on(read_rules(off=["all"])) == set()
    assert switched_on(read_rules(off=["all"], on=["length", "han"])) == {"length", "han"}
    assert switched_on(read_rules(on=["all"])) == set(read_rules().rules)
    assert "han" not in switched_on(read_rules(on=["all"], off=["han"]))


def test_values_are_texts_lists_switches_and_numbers():
    settings = read_rules(
        on=["stop_words"],
        changes=[
            "stop_words.words=[ja, nein]",
            "normalization.remove_controls=false",
            "length.max_words=1e6",
            "symbols.max_hash_signs=2",
            "normalization.unicode_form=NFKC",
        ],
    )
    assert settings["stop_words"].values["words"] == ["ja", "nein"]
    assert settings["normalization"].values["remove_controls"] is False
    assert settings["length"].values["max_words"] == 1_000_000
    assert settings["symbols"].values["max_hash_signs"] == 2
    assert settings["normalization"].values["unicode_form"] == "NFKC"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("length", "write NAME.KEY=VALUE"),
        ("length=3", "write NAME.KEY=VALUE"),
        ("lengths.min_words=3", "there is no rule of this name: did you mean 'length'?"),
        ("length.min_wrds=3", "length has no value 'min_wrds': did you mean 'min_words'?"),
        ("length.min_words=few", "length.min_words: 'few' is not a number"),
        ("length.min_words=nan", "is not a number"),
        ("length.min_words=-3", "is negative or infinite"),
        ("length.min_words=1e999", "is negative or infinite"),
        ("length.min_words=[1, 2]", "is no single value"),
        ("length.min_words=", "is not a number"),
        ("length.on=yes", "'yes' is neither true nor false"),
        ("letters.min_letter_share=60", "60 is more than the whole: give a share between 0 and 1 (60% is 0.6)"),
        ("ngram_repetition.max_top_2_gram=20", "20 is more than the whole"),
        ("line_ends.max_list_lines=1.5", "1.5 is more than the whole"),
        ("near_duplicates.min_similarity=0.3", "0.3 is not between 0.5 and 1"),
        ("near_duplicates.min_similarity=80", "80 is not between 0.5 and 1"),
        ("length.min_words=200000", "min_words 200000 is more than max_words 100000"),
        ("han.min_han_share=0.5", "has no effect: han is off; add --on han"),
        ("normalization.unicode_form=NFX", "is none of NFC, NFKC"),
    ],
)
def test_a_change_that_cannot_be_meant_is_named(change, problem):
    assert any(problem in found for found in problems(changes=[change]))


def test_all_problems_are_reported_at_once(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("longness: {on: true}\nlength: {min_words: few}\nhan: 3\n")
    found = problems("web", file, ["digits", "colours"], ["digits"], ["x.y=1"])
    assert len(found) == 6
    assert all(re.match(rf"{re.escape(str(file))}: ", problem) for problem in found[:3])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"- length", "holds no mapping"),
        (b"length: {on: true", "cannot be read: while parsing"),
        (b"length: {}\nlength: {}", "cannot be read: the key 'length' is there twice"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"#" * (1 << 21), "larger than 1 MB"),
        (b"length: [on]", "['on'] is no mapping"),
    ],
)
def test_a_file_that_is_none_of_rules_is_named(content, problem, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    assert any(problem in found for found in problems(file=file))


def test_a_file_that_is_not_there_or_says_nothing(tmp_path):
    assert "No such file" in problems(file=tmp_path / "none.yaml")[0]
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert read_rules(file=tmp_path / "empty.yaml").rules == read_rules().rules


def test_the_documented_thresholds_are_those_in_effect():
    assert documented_table() == rules_table(), "python -m tests.support.rules_table --write"


def test_every_rule_is_explained():
    text = DOCUMENT.read_text(encoding="utf-8")
    explained = text.partition("## Every rule and its figure")[2]
    assert [name for name in read_rules().rules if f"`{name}`" not in explained] == []
