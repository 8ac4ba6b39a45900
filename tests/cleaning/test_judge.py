"""Rules about single documents: batched figures are those counted plainly; verdicts name limits."""

import base64
import math
import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from colossal_llama.cleaning.rule_settings import PRESETS, read_rules
from colossal_llama.cleaning.rules.judge import DOCUMENT_RULES, judge, judge_texts, measure
from colossal_llama.cleaning.text_batch import make_batch
from tests.support.plain_rules import figures

RULES = read_rules("web")
PIECES = st.sampled_from(
    ["the cat", " sat on", " and", "\n", "\n\n", " ", "\t", "- item", "* ", "-\n", "•one", "..", "...", "....", "…",
     "……", "。", "。。。", "。”", ".)", "?**", "你好", "世界，", "的", "ー", "カタ", "々", "二〇一三", "2024", "٣",
     "ไทย", "ภาษา", "မြန်မာ", "#", "##", "|", ".", "'", "’", "//", "😀", "\u200d", "\u200b", "\ufeff", "\u3000", "\x00",
     "\ud800", "é", "한국어", "क्षि", "x", "x x x ", "\r\n", "\u2028", "THE", "Of", "\ue000"]
)  # fmt: skip
PIECED = st.builds("".join, st.lists(PIECES, max_size=30))
REPETITIVE = st.builds(
    lambda parts, times: "".join(parts) * times, st.lists(PIECES, min_size=1, max_size=6), st.integers(1, 30)
)
TEXTS = st.one_of(
    PIECED, REPETITIVE, st.text(max_size=60), st.text("ab \n", max_size=80), st.text("中文 \n", max_size=80)
)


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXTS, max_size=6))
@example([])
@example([""])
@example(["", "\n", " "])
@example(["a..\nb...\n中。。\n。。。"])
@example(["a", "a", "a a a"])
def test_figures_of_a_batch_are_those_of_its_texts_counted_plainly(texts):
    measured = measure(make_batch(texts), RULES)
    for index, text in enumerate(texts):
        plain = figures(text, RULES)
        assert plain.keys() == measured.keys()
        for name, figure in plain.items():
            assert measured[name][index] == pytest.approx(figure, nan_ok=True, rel=1e-12), (name, text)


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, max_size=6), st.sampled_from(PRESETS))
def test_a_verdict_is_the_first_limit_that_the_measured_figures_break(texts, preset):
    rules = read_rules(preset, changes=["length.min_words=0", "length.min_characters=0"])
    measured = measure(make_batch(texts), rules)
    for index, verdict in enumerate(judge(make_batch(texts), rules)):
        broken = [
            (rule, float(measured[f"{rule}.{key[4:]}"][index]), f"{key} {limit}")
            for rule in DOCUMENT_RULES
            if rules[rule].on
            for key, limit in rules[rule].values.items()
            if key.startswith(("min_", "max_"))
            and (
                measured[f"{rule}.{key[4:]}"][index] < limit
                if key.startswith("min_")
                else measured[f"{rule}.{key[4:]}"][index] > limit
            )
        ]
        assert (verdict and (verdict.reason, verdict.figure, verdict.limit)) == (broken[0] if broken else None)


def test_every_limit_has_a_figure_and_every_figure_a_limit():
    names = set(measure(make_batch(["a"]), RULES))
    limits = {
        f"{rule}.{key[4:]}" for rule in DOCUMENT_RULES for key in RULES[rule].values if key.startswith(("min_", "max_"))
    }
    assert limits == names


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=8), st.integers(1, 7))
def test_verdicts_do_not_depend_on_the_batch(texts, cut):
    together = judge(make_batch(texts), RULES)
    assert together == [*judge(make_batch(texts[:cut]), RULES), *judge(make_batch(texts[cut:]), RULES)]


PROSE = (
    "A river carries stones from the mountains to the plain, and the plain becomes higher with every flood. "
    "Whoever builds a house there has to know where the water stood a hundred years ago. "
    "The oldest farms lie on small hills, which look like nothing until the meadows around them are a lake. "
    "Maps of that time show each of these hills with the name of the family that lived on it.\n"
)
CHINESE = (
    "河水把山上的石头带到平原，每次洪水之后平原都会高出一些。想在那里盖房子的人，应当知道一百年前的水位在哪里。"
    "最古老的农庄都建在小土丘上，平时看不出什么，等到四周的草地变成湖泊才显得重要。当时的地图上标着每一座土丘，以及住户的姓氏。"
    "后来修了堤坝，人们渐渐忘记了这些事，新的村落便沿着低处铺开。\n"
)


LANGUAGES = {
    "Korean": "강은 산에서 돌을 실어 평야로 나르고, 홍수가 날 때마다 평야는 조금씩 높아진다. 농가는 언덕 위에 있다.",
    "Japanese": "川は山から石を運び、洪水のたびに平野は少しずつ高くなる。最も古い農家は小さな丘の上にある。",
    "Thai": "แม่น้ำพัดพาหินจากภูเขาลงสู่ที่ราบ และที่ราบก็สูงขึ้นเล็กน้อยทุกครั้งที่เกิดน้ำท่วม",
    "Russian": "Река несёт камни с гор на равнину, и с каждым паводком равнина становится выше.",
    "Arabic": "يحمل النهر الحجارة من الجبال إلى السهل، ويرتفع السهل قليلا مع كل فيضان. فأين وصل الماء؟",
    "Hindi": "नदी पहाड़ों से पत्थर लाकर मैदान में छोड़ती है, और हर बाढ़ के साथ मैदान थोड़ा ऊँचा हो जाता है।",
    "Malayalam": "നദി മലകളിൽ നിന്ന് കല്ലുകൾ സമതലത്തിലേക്ക് കൊണ്ടുവരുന്നു, ഓരോ വെള്ളപ്പൊക്കത്തിലും സമതലം അല്പം ഉയരുന്നു.",
    "Finnish": "Joki kuljettaa kiviä vuorilta tasangolle, ja tasanko kohoaa jokaisen tulvan myötä.",
    "Burmese": "မြစ်သည် တောင်များမှ ကျောက်တုံးများကို လွင်ပြင်သို့ သယ်ဆောင်လာပြီး ရေကြီးတိုင်း လွင်ပြင်သည် မြင့်တက်လာသည်။",
    "Tibetan": "གཙང་པོས་རི་ནས་རྡོ་ཐང་ལ་འཁྱེར་ཡོང་། ཆུ་ལོག་རེ་རེ་ལ་ཐང་དེ་ཅུང་ཟད་མཐོ་རུ་འགྲོ།",
    "Armenian": "Գետը լեռներից քարեր է բերում հարթավայր, և հարթավայրը յուրաքանչյուր հեղեղից հետո բարձրանում է։",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_prose_of_every_kind_of_script_passes_but_for_its_length(language):
    rules = read_rules("web", changes=["length.min_words=5", "length.min_characters=20"])
    assert judge(make_batch([LANGUAGES[language]]), rules) == [None]


def test_figures_do_not_depend_on_the_place_in_a_large_batch():
    filler = " ".join(map(str, range(30_000)))
    texts = [filler, PROSE * 2, CHINESE * 3 + PROSE]
    together, alone = measure(make_batch(texts), RULES), [measure(make_batch([text]), RULES) for text in texts[1:]]
    for name, figures_together in together.items():
        assert figures_together[1:].tolist() == pytest.approx([one[name][0] for one in alone], nan_ok=True)


def test_many_texts_are_judged_as_in_one_batch(monkeypatch):
    texts = [PROSE, "too short", PROSE * 2, "", CHINESE, CHINESE * 2, "#" * 100]
    verdicts = judge(make_batch(texts), RULES)
    for characters in (1, 500, 1 << 20):
        monkeypatch.setattr("colossal_llama.cleaning.rules.judge._BATCH_CHARACTERS", characters)
        assert judge_texts(iter(texts), RULES) == verdicts
    assert judge_texts([], RULES) == []


@pytest.mark.parametrize("text", [PROSE, CHINESE])
def test_prose_of_both_kinds_passes_every_preset(text):
    for preset in PRESETS:
        assert judge(make_batch([text]), read_rules(preset)) == [None]


@pytest.mark.parametrize(
    ("text", "rule", "limit"),
    [
        ("Too short.", "length", "min_words 50"),
        ("太短了。", "length", "min_characters 75"),
        (PROSE + "12 " * 300, "letters", "min_letter_share 0.5"),
        (
            PROSE + " ".join(f"www.example.com/page/{n}/{n * n}" for n in range(40)) + ".",
            "word_length",
            "max_mean_word_length",
        ),
        (PROSE + "12345 " * 30, "digits", "max_digit_share 0.25"),
        (PROSE + "□■□ " * 30, "symbols", "max_symbol_share"),
        (PROSE + "# # # " * 8, "symbols", "max_hash_signs"),
        (CHINESE + "# # # " * 8, "symbols", "max_hash_signs"),
        (PROSE.replace(" ", "... ", 20), "symbols", "max_ellipses"),
        (CHINESE.replace("的", "……").replace("，", "……").replace("。", "……"), "symbols", "max_ellipses"),
        (PROSE.replace(" ", ""), "length", "min_words"),
        (PROSE.replace(",", "\n").replace(".", "\n"), "line_ends", "min_terminal_lines"),
        ("".join(f"{line}…\n" for line in PROSE.split(". ")), "line_ends", "max_ellipsis_lines"),
        (PROSE * 2, "line_repetition", "max_duplicate_lines"),
        (CHINESE * 2, "line_repetition", "max_duplicate_lines"),
        (PROSE.strip() * 2, "ngram_repetition", "max_duplicate_5_grams"),
        (CHINESE.strip() * 2, "ngram_repetition", "max_duplicate_5_grams"),
        (PROSE.strip() + " buy cheap watches" * 20 + ".", "ngram_repetition", "max_top_2_gram"),
        (CHINESE.strip() + "点击购买廉价手表" * 20 + "。", "ngram_repetition", "max_top_2_gram"),
    ],
)
def test_a_text_is_dropped_by_the_rule_that_is_meant(text, rule, limit):
    (verdict,) = judge(make_batch([text]), read_rules("web", changes=["line_length.max_short_lines=1"]))
    assert verdict is not None
    assert verdict.reason == rule
    assert str(verdict.limit).startswith(limit)


def test_rules_that_are_off_or_have_other_limits_decide_otherwise():
    texts = [PROSE * 2, "Too short."]
    rules = read_rules("web", off=["line_repetition", "ngram_repetition"], changes=["length.min_words=2"])
    assert [judge(make_batch(texts), rules)[0], judge(make_batch(texts), read_rules(off=["all"]))[1]] == [None, None]
    (verdict,) = judge(make_batch([PROSE]), read_rules(on=["han"]))
    assert verdict is not None
    assert (verdict.reason, verdict.figure, verdict.limit) == ("han", 0.0, "min_han_share 0.3")
    french = PROSE.replace("the ", "le ").replace("The ", "Le ").replace("and ", "et ")
    assert judge(make_batch([french]), read_rules(on=["stop_words"], changes=["stop_words.words=[le, et]"])) == [None]


def test_the_longest_of_equally_frequent_ngrams_counts():
    batch = make_batch(["aa bb. ccc ddd. aa bb. aa bb. ccc ddd. ccc ddd."])
    assert measure(batch, RULES)["ngram_repetition.top_2_gram"] == pytest.approx([18 / 30])
    often = read_rules(changes=["ngram_repetition.top_occurrences=4"])
    assert measure(batch, often)["ngram_repetition.top_2_gram"] == [0]


def test_words_are_joined_by_single_marks_and_syntax_alone_is_no_line():
    measured = measure(make_batch(["don't 3.14 e-mail https://example.com/a.b?c=d x，y (z)"]), RULES)
    assert measured["length.words"] == [8]
    code = make_batch(["```\nfirst()\n```\n\n```\nsecond()\n```\n}\n}\n"])
    assert measure(code, RULES)["line_repetition.duplicate_lines"] == [0]


def test_words_that_swap_letters_are_other_words():
    texts = ["ab c ac b", "qb h. qh b. qc i. qi c. qd j. qj d."]
    assert measure(make_batch(texts), RULES)["ngram_repetition.duplicate_5_grams"].tolist() == [0, 0]
    once = read_rules(changes=["ngram_repetition.top_occurrences=2"])
    assert measure(make_batch(texts), once)["ngram_repetition.top_2_gram"].tolist() == [0, 0]


def test_duplicate_ngrams_cover_less_the_longer_they_are():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["a", "bb", "ccc"], 200)) for _ in range(5)]
    measured = measure(make_batch(texts), RULES)
    shares = [measured[f"ngram_repetition.duplicate_{n}_grams"] for n in range(5, 11)]
    assert all((longer <= shorter).all() for shorter, longer in pairwise(shares))
    assert not math.isnan(shares[0].sum())


def rubbish() -> dict[str, str]:
    """Kinds of pages that no corpus wants, made up."""
    rng = random.Random(1)
    words = [
        "apple",
        "river",
        "stone",
        "house",
        "garden",
        "market",
        "window",
        "paper",
        "winter",
        "bridge",
        "yellow",
        "engine",
        "doctor",
        "forest",
    ]
    han = "河山石头房子花园市场窗户纸张冬天桥梁黄色发动机医生森林银色纽扣旅行母亲广场"
    return {
        "menu": "\n".join(rng.choice(words).title() for _ in range(80)),
        "Chinese menu": "\n".join("".join(rng.sample(han, 3)) for _ in range(80)),
        "keywords": ", ".join(f"{rng.choice(words)} {rng.choice(words)}" for _ in range(300)),
        "Chinese keywords": "、".join("".join(rng.sample(han, 3)) for _ in range(200)),
        "spam": " ".join(f"Buy cheap {rng.choice(words)} online now!" for _ in range(60)),
        "Chinese spam": "".join(f"点击购买{rng.choice(han)}{rng.choice(han)}正品低价包邮！" for _ in range(60)),
        "base64": "\n".join(base64.b64encode(rng.randbytes(57)).decode() for _ in range(80)),
        "dump": "\n".join(" ".join(f"{byte:02x}" for byte in rng.randbytes(16)) + "." for _ in range(100)),
        "mojibake": (CHINESE * 2).encode().decode("latin-1"),
        "undecodable": (CHINESE * 4).encode("gbk").decode("utf-8", "replace"),
        "numbers": "\n".join(" ".join(str(rng.randrange(9999)) for _ in range(10)) for _ in range(80)),
        "log": "\n".join(
            f"2024-05-07 12:{rng.randrange(10, 60)}:07 INFO job {rng.randrange(9999)}." for _ in range(100)
        ),
        "snippets": "\n".join(" ".join(rng.choices(words, k=12)) + " ..." for _ in range(30)),
        "bullets": "\n".join("• " + " ".join(rng.choices(words, k=9)) + "." for _ in range(30)),
        "tags": " ".join(f"#{rng.choice(words)}{number}." for number in range(120)),
        "contents": "\n".join(f"{rng.choice(words).title()} {rng.choice(words)} ........ {n}" for n in range(60)),
    }


@pytest.mark.parametrize("kind", rubbish())
def test_rubbish_is_dropped_as_web_pages(kind):
    (verdict,) = judge(make_batch([rubbish()[kind]]), read_rules("web"))
    assert verdict is not None


@pytest.mark.parametrize("kind", sorted(rubbish().keys() - {"keywords", "Chinese keywords"}))
def test_rubbish_is_no_documentation_of_code(kind):
    (verdict,) = judge(make_batch([rubbish()[kind]]), read_rules("code-docs"))
    assert verdict is not None
