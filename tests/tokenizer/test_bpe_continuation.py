"""Words follow their scripts: the space before them, shared letters, joiners, marks."""

import pytest

from colossal_llama.tokenizer.expansion.pieces import Piece
from colossal_llama.tokenizer.expansion.source import open_source
from colossal_llama.tokenizer.learning.bpe_continuation import LearningLimits, learn_pieces, word_pattern
from colossal_llama.tokenizer.loading import load_tokenizer


@pytest.mark.parametrize(
    ("scripts", "words"),
    [
        (["Han"], ["学习"]),
        (["han"], ["学习"]),
        (["Hani"], ["学习"]),
        (["Latin"], [" or"]),
        (["Han", "Latin"], [" 学习", " or"]),
    ],
)
def test_words_take_a_space_along_where_their_script_is_written_with_spaces(scripts, words):
    assert word_pattern(scripts).findall(" 学习 or") == words


@pytest.mark.parametrize(
    ("scripts", "text", "words"),
    [
        (["Katakana"], "スーパーを、テレビ・ﾊﾟｰﾃｨｰ", ["スーパー", "テレビ", "ﾊﾟｰﾃｨｰ"]),
        (["Hiragana"], "らーめんとカー", ["らーめんと", "ー"]),
        (["Han", "Hiragana", "Katakana"], "コンピューターを使う。時々", ["コンピューターを使う", "時々"]),
        (["Han"], "〆切、佐々木が", ["〆切", "佐々木"]),
        (["Arabic"], "می\u200cخواهم کتـاب\u200c.", ["می\u200cخواهم", " کتـاب"]),
        (["Devanagari"], "क्\u200dष हिन्दी है। a", ["क्\u200dष", " हिन्दी", " है", "।"]),
        (["Bengali"], "র\u200d্যাব আছে॥", ["র\u200d্যাব", " আছে", "॥"]),
        (["Cyrillic"], "при\u0301вет мир", ["при\u0301вет", " мир"]),
        (
            ["any"],
            "می\u200cخواهم क्\u200dष। スーパー a👩\u200d💻b",
            ["می\u200cخواهم", " क्\u200dष", " スーパー", " a", "b"],
        ),
    ],
)
def test_letters_that_scripts_share_and_joiners_belong_to_words(scripts, text, words):
    assert word_pattern(scripts).findall(text) == words


@pytest.mark.parametrize("family", ["llama2", "llama3-base"])
@pytest.mark.parametrize(
    "word", ["スーパーマーケット", "می\u200cخواهم", "हिन्दी", "क्\u200dष"], ids=["katakana", "persian", "hindi", "zwj"]
)
def test_learned_pieces_of_words_with_marks_and_joiners_can_be_added(made_data, family, word):
    directory = made_data / "tokenizers" / family
    tokenizer = load_tokenizer(directory)
    pieces = learn_pieces({word: 50, f" {word}": 50}, tokenizer, LearningLimits(1000, 2, 12))
    expansion = open_source(directory).expand([Piece(piece, "") for piece in pieces])
    assert pieces
    assert expansion.impossible == []
    (ids,) = expansion.encoders[-1]([f"x {word}"])
    assert len(ids) < len(tokenizer.encode(f"x {word}", add_special_tokens=False))
    if family == "llama2":  # LLaMA-3 splits at marks and joiners
        assert len(ids) == 1 + len(tokenizer.encode("x", add_special_tokens=False))


@pytest.mark.parametrize("scripts", [[], ["Klingon"], ["Han}|.{"], [""], ["Han]"]])
def test_what_is_no_script_is_refused(scripts):
    with pytest.raises(ValueError, match="script"):
        word_pattern(scripts)
