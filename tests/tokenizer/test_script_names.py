"""Scripts and languages by every name that people give them; a suggestion for the misspelt ones."""

import pytest
import regex

from colossal_llama.tokenizer.script_names import named_scripts, scripts_of_languages


@pytest.mark.parametrize(
    ("names", "scripts"),
    [
        (["Devanagari"], ("Devanagari",)),
        (["devanagari", "DEVA", "Deva"], ("Devanagari",)),
        (["Hira", "kana"], ("Hiragana", "Katakana")),
        (["old persian", "Canadian-Aboriginal", "New_Tai_Lue"], ("Old_Persian", "Canadian_Aboriginal", "New_Tai_Lue")),
        (["Jpan", "Hans", "Kore"], ("Han", "Hiragana", "Katakana", "Hangul")),
    ],
)
def test_scripts_by_name_and_code(names, scripts):
    assert named_scripts(names) == scripts


@pytest.mark.parametrize(
    ("languages", "scripts"),
    [
        (["hi"], ("Devanagari",)),
        (["HIN"], ("Devanagari",)),
        (["hindi", "Marathi", "ne"], ("Devanagari",)),
        (["ja"], ("Han", "Hiragana", "Katakana")),
        (["ko", "th"], ("Hangul", "Thai")),
        (["sr"], ("Cyrillic", "Latin")),
        (["sr-Latn"], ("Latin",)),
        (["zh-Hant-TW", "pt_BR"], ("Han", "Latin")),
        (["my", "bur", "Burmese"], ("Myanmar",)),
        (["Serbo-Croatian", "N'Ko", "scottish gaelic"], ("Latin", "Cyrillic", "Nko")),
        (["mon"], ("Cyrillic", "Mongolian")),
        (["bo", "km", "ta", "am", "ka", "he", "ar"],
         ("Tibetan", "Khmer", "Tamil", "Ethiopic", "Georgian", "Hebrew", "Arabic")),
    ],
)  # fmt: skip
def test_languages_by_codes_names_and_tags(languages, scripts):
    assert scripts_of_languages(languages) == scripts
    for script in scripts:
        assert regex.compile(rf"\p{{Script={script}}}")


@pytest.mark.parametrize(
    ("names_of", "name", "message"),
    [
        (named_scripts, "Devangari", "Devangari is not a Unicode script: did you mean 'Devanagari'?"),
        (named_scripts, "cyrilic", "did you mean 'Cyrillic'?"),
        (named_scripts, "Hangeul", "did you mean 'Hangul'?"),
        (named_scripts, "Burmese", "Burmese is a language, not a Unicode script: did you mean 'Myanmar'?"),
        (named_scripts, "Klingon", "Klingon is not a Unicode script"),
        (named_scripts, "Zyyy", "of no single script"),
        (named_scripts, " ", "' ' is not a Unicode script"),
        (scripts_of_languages, "Hindhi", "Hindhi is not a language known here: did you mean 'Hindi'?"),
        (scripts_of_languages, "xq", "xq is not a language known here: give --scripts instead"),
        (scripts_of_languages, "Devanagari", "Devanagari is a script, not a language: give --scripts Devanagari"),
    ],
)
def test_what_is_not_known_gets_a_suggestion(names_of, name, message):
    with pytest.raises(ValueError, match=r"not a|single script") as error:
        names_of([name])
    assert message in str(error.value)


@pytest.mark.parametrize(("names_of", "kind"), [(named_scripts, "script"), (scripts_of_languages, "language")])
def test_all_unknown_names_are_said_at_once_and_none_is_an_error(names_of, kind):
    with pytest.raises(ValueError, match=f"no {kind} is named"):
        names_of([])
    with pytest.raises(ValueError, match=r"Foo is not a.*; Bar is not a"):
        names_of(["Foo", "Bar"])
