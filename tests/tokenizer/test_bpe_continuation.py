"""Words follow their scripts: the space before them, shared letters, joiners, marks."""

import json
import shutil
import unicodedata

import pytest
import regex
from tokenizers import pre_tokenizers

from colossal_llama.tokenizer.expansion.pieces import Piece
from colossal_llama.tokenizer.expansion.reachability import verify_reachability
from colossal_llama.tokenizer.expansion.source import open_source
from colossal_llama.tokenizer.learn_pieces import extend
from colossal_llama.tokenizer.learning.bpe_continuation import (
    LearningLimits,
    count_words,
    default_min_frequency,
    learn_pieces,
    word_pattern,
)
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.tokenizer.pretokenizer import words_of
from colossal_llama.tokenizer.script_names import scripts_of_languages
from tests.support.made_data import make_mistral, make_qwen
from tests.support.small_languages import WORDS, made_text


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
    pieces = learn_pieces({word: 50, f" {word}": 50}, tokenizer, LearningLimits(1000, 2, 12)).saved_tokens
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


def words(*texts, frequency=30):
    return dict.fromkeys(texts, frequency)


@pytest.mark.parametrize(
    ("script", "word"), [("Devanagari", " कृष्णमूर्ति"), ("Thai", "ที่นั่นเป็น"), ("Tibetan", "བསྒྲུབས"), ("Myanmar", "မြန်မာ")]
)
def test_a_letter_counts_as_one_character_with_its_marks(made_data, script, word):
    tokenizer = load_tokenizer(made_data / "tokenizers" / "llama2")
    letters = len(regex.findall(r"\X", word))
    assert letters < len(word)
    longest = learn_pieces(words(word), tokenizer, LearningLimits(1000, 2, letters)).saved_tokens
    assert word in longest
    shorter = learn_pieces(words(word), tokenizer, LearningLimits(1000, 2, letters - 1))
    assert word not in shorter.saved_tokens
    assert shorter.left_out["longer than --max_piece_length"] >= 1


def test_a_piece_has_its_length_in_characters_where_a_character_is_several_tokens(made_data):
    """Thai letters are three bytes each to a byte-level vocabulary without Thai."""
    tokenizer = load_tokenizer(made_data / "tokenizers" / "llama3-base")
    texts = words("กลองมาก", "กลองสาย", "กลางคน", "คนมาก", "มากคน", "สายลม", "ลมกลอง", "กลองลม", "คนสาย", "มากลม")
    assert "กลองมาก" in learn_pieces(texts, tokenizer, LearningLimits(1000, 2, 7)).saved_tokens


def test_no_piece_goes_from_a_mark_into_the_next_letter_where_it_need_not(made_data):
    texts = words(" कि", " बि", " किताब", " मिताली", " पिताजी", " तिथि", "किता", "गीता", " सीता")
    found = {}
    for family in ("llama2", "llama3-base"):
        tokenizer = load_tokenizer(made_data / "tokenizers" / family)
        learned = learn_pieces(texts, tokenizer, LearningLimits(1000, 2, 8))
        found[family] = [piece for piece in learned.saved_tokens if regex.match(r"\p{M}+\P{M}", piece)]
        assert any(regex.match(r"\p{M}+\P{M}", piece) for piece in found[family]) == (family == "llama3-base")
        assert (learned.left_out.get("from a mark into the next letter", 0) > 0) == (family == "llama2")
    backend = tokenizer.backend_tokenizer
    assert all(words_of(backend, f"क{piece}")[-1] == piece for piece in found["llama3-base"])  # nothing better there


def test_words_that_the_pre_tokenizer_cuts_are_counted(made_data):
    texts = {" हिन्दी": 30, " जल": 50, "ไทยที่": 5, " the": 15}
    llama3 = load_tokenizer(made_data / "tokenizers" / "llama3-base")
    cut = learn_pieces(texts, llama3, LearningLimits(1000, 20, 8)).cut_words
    assert (cut.different, cut.frequent, cut.occurrences) == (2, (" हिन्दी",), 35)
    assert cut.share == pytest.approx(0.35)
    assert cut.scripts == ("Devanagari", "Thai")
    llama2 = load_tokenizer(made_data / "tokenizers" / "llama2")
    assert learn_pieces(texts, llama2, LearningLimits(1000, 20, 8)).cut_words.occurrences == 0


def test_pieces_are_learned_in_the_normal_form_of_the_source(tmp_path):
    """NFC takes qa (U+0958) apart: a piece with it could never be produced."""
    directory = make_qwen(tmp_path / "qwen")
    texts = words(" \u0958\u0958\u0958", "cafe\u0301", "\uac00\uac00")
    learned = learn_pieces(texts, load_tokenizer(directory), LearningLimits(1000, 2, 8))
    assert all(unicodedata.is_normalized("NFC", piece) for piece in learned.saved_tokens)
    expansion = open_source(directory).expand([Piece(piece, "") for piece in learned.saved_tokens])
    assert expansion.impossible == []
    assert learned.saved_tokens


def test_pieces_that_the_source_has_as_whole_words_only_are_not_asked_for_again(made_data, tmp_path):
    """LLaMA-3 looks up whole words (`ignore_merges`): 데이트 is a token, no part of others."""
    directory = tmp_path / "whole"
    shutil.copytree(made_data / "tokenizers" / "llama3-base", directory)
    definition = json.loads((directory / "tokenizer.json").read_text("utf-8"))
    whole = {"데이트", "되었습니다", " 업데이트"}
    for word in whole:
        name = byte_level_name(word)
        definition["model"]["vocab"].setdefault(name, len(definition["model"]["vocab"]) + 40)
    (directory / "tokenizer.json").write_text(json.dumps(definition), "utf-8")
    texts = words(
        " 업데이트합니다", " 업데이트되었습니다", "데이트합니다", "데이트", "되었습니다", " 업데이트", "트합니다"
    )
    learned = learn_pieces(texts, load_tokenizer(directory), LearningLimits(1000, 2, 12))
    assert not whole & learned.saved_tokens.keys()
    assert learned.saved_tokens
    expansion = open_source(directory).expand([Piece(piece, "") for piece in learned.saved_tokens])
    assert not {byte_level_name(word) for word in whole} & set(expansion.intermediates)
    reachability = verify_reachability(expansion.piece_ids, expansion.encoders, expansion.encode_by_merges)
    assert reachability.unreachable == ()


def byte_level_name(text):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0]


@pytest.mark.parametrize(("characters", "least"), [(0, 2), (4_000, 2), (100_000, 2), (500_000, 10), (40_000_000, 20)])
def test_small_texts_need_fewer_occurrences(characters, least):
    assert default_min_frequency({"ab": characters // 2}) == least


@pytest.fixture(scope="module")
def sources(made_data, tmp_path_factory):
    """Directories of tokenizers of each kind, none of which knows the languages below."""
    work = tmp_path_factory.mktemp("sources")
    made = {family: made_data / "tokenizers" / family for family in ("llama2", "llama3-base")}
    return made | {"qwen": make_qwen(work / "qwen"), "mistral": make_mistral(work / "mistral")}


@pytest.mark.parametrize("language", WORDS)
@pytest.mark.parametrize(
    "family", ["llama2", "mistral", "llama3-base", "qwen", "llama3-base extended", "qwen extended"]
)
def test_every_learned_piece_is_reachable_and_a_new_text_is_shorter(sources, family, language):
    name, *extended = family.split()
    scripts = scripts_of_languages([language])
    source = open_source(sources[name], scripts if extended else ())
    tokenizer = load_tokenizer(sources[name])
    before = len(tokenizer.encode(made_text(language, 3, seed=1), add_special_tokens=False))
    extend(tokenizer, scripts if extended else ())
    counts = count_words([made_text(language, 6)], word_pattern(scripts))
    learned = learn_pieces(counts, tokenizer, LearningLimits(1000, 2, 8))
    expansion = source.expand([Piece(piece, "") for piece in learned.saved_tokens])
    assert len(expansion.pieces) == len(learned.saved_tokens) > 20
    check = verify_reachability(
        expansion.piece_ids, expansion.encoders, expansion.encode_by_merges, expansion.letters_before_marks
    )
    assert check.unreachable == ()
    after = len(expansion.encoders[-1]([made_text(language, 3, seed=1)])[0])
    cuts_marks = not extended and name in ("llama3-base", "qwen") and language not in ("am", "ka", "ko", "ja", "vi")
    assert after < (0.4 if cuts_marks else 0.3) * before
    assert (learned.cut_words.share > 0.5) == cuts_marks
    if cuts_marks:
        assert learned.cut_words.scripts == scripts
    else:
        assert not any(regex.match(r"[\p{M}\u200d]+\p{L}", piece) for piece in learned.saved_tokens)
