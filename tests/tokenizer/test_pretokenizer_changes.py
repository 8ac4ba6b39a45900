"""init_tokenizer.py --extend_pretokenizer on LLaMA-3's, Qwen's and SmolLM's kinds of tokenizer."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import orjson
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from colossal_llama.export.gguf_vocabulary import read_vocabulary
from colossal_llama.model.expansion.new_tokens import read_new_tokens
from colossal_llama.tokenizer import batch_encoder
from colossal_llama.tokenizer.encoding import TextEncoder
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.tokenizer.pretokenizer import definition_of, extended_scripts, words_of
from colossal_llama.utils.errors import UserError
from tests.support.made_data import make_llama3, make_qwen
from tests.support.script_texts import HINDI, THAI, THAI_WORDS, WORDS
from tests.support.tokenizer_scripts import expand

_SCRIPTS = "Thai,Devanagari"
_OF_THE_SCRIPTS = regex.compile(r"[\p{Script=Thai}\p{Script=Devanagari}]")
_signs = st.sampled_from(["\u200d", "\u200c", "\u0301", "்", "་", "7", "1234", " ", "\n", "'s", "中", "，", "é", "بِ"])
_OTHER_TEXTS = (
    st.lists(st.text(st.characters(codec="utf-8"), max_size=4) | _signs, max_size=12)
    .map("".join)
    .map(lambda text: _OF_THE_SCRIPTS.sub("", text))
)
_TEXTS = st.lists(st.sampled_from(["ที่", "น้ำ", "हिन्दी", "में", "ั้น", "ि"]) | _signs | st.text(max_size=2), max_size=9).map(
    lambda parts: "".join(parts).encode("utf-8", "ignore").decode()
)


def _as_smollm(directory: Path) -> Path:
    make_qwen(directory)
    definition = json.loads((directory / "tokenizer.json").read_text("utf-8"))
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    definition |= {"normalizer": None, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, last]}}
    (directory / "tokenizer.json").write_text(json.dumps(definition), "utf-8")
    config = json.loads((directory / "tokenizer_config.json").read_text("utf-8"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "GPT2Tokenizer"}), "utf-8")
    return directory


def _pieces(directory: Path) -> Path:
    """Every word of the texts that occurs twice, and the parts of a word that begin with a mark."""
    words = [word.strip() for word in regex.findall(r"[\p{L}\p{M}]+", THAI + HINDI)]
    often = sorted({word for word in words if words.count(word) > 1 and len(word) < 12})
    inner = ["ที่", "น้ำ", "ั้น", "้าว", "ห้อง", "ियों", *THAI_WORDS.split(" ")]
    path = directory / "pieces.jsonl"
    path.write_text("".join(json.dumps({"piece": piece}) + "\n" for piece in dict.fromkeys(often + inner)), "utf-8")
    return path


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    return _pieces(tmp_path_factory.mktemp("pieces"))


@pytest.fixture(scope="module", params=["llama3", "qwen", "smollm"])
def source(request, tmp_path_factory):
    made = tmp_path_factory.mktemp(request.param) / "source"
    kinds = {"llama3": lambda directory: make_llama3(directory, "<|end_of_text|>"), "qwen": make_qwen}
    return kinds.get(request.param, _as_smollm)(made)


@pytest.fixture(scope="module")
def target(project_root, source, pieces, tmp_path_factory):
    directory = tmp_path_factory.mktemp("target") / "tokenizer"
    run = expand(project_root, source, directory, pieces, "--extend_pretokenizer", _SCRIPTS)
    assert run.returncode == 0, run.stderr
    return directory


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module")
def both(source, target):
    """The source's fast tokenizer, and the result as the tokenizers library alone reads it."""
    return load_tokenizer(source).backend_tokenizer, Tokenizer.from_file(str(target / "tokenizer.json"))


def test_a_text_without_the_scripts_keeps_its_ids(both):
    @settings(max_examples=300, deadline=None)
    @given(text=_OTHER_TEXTS)
    def check(text):
        old, new = both
        assert _encode(new, text) == _encode(old, text)

    check()


def test_the_corpus_keeps_its_ids(both, any_data):
    for path in sorted((any_data / "pretrain").rglob("*-000.jsonl")):
        with path.open("rb") as file:
            texts = [orjson.loads(file.readline())["target"] for _ in range(20)]
        assert [_encode(both[1], text) for text in texts] == [_encode(both[0], text) for text in texts]


def test_texts_of_the_scripts_are_shorter_and_decode_to_themselves(both):
    old, new = both
    for text in (THAI, HINDI):
        assert len(_encode(new, text)) < 0.87 * len(_encode(old, text))
        assert new.decode(_encode(new, text)) == text
    assert words_of(new, "ฉันกินข้าวที่บ้าน हिन्दी") == ["ฉันกินข้าวที่บ้าน", " हिन्दी"]


def test_every_program_gives_the_same_ids(target, both):
    loaded = [AutoTokenizer.from_pretrained(target, use_fast=fast) for fast in (True, False)]
    loaded.append(load_tokenizer(target))
    assert not [name for name in ("vocab.json", "merges.txt") if (target / name).exists()]

    @settings(max_examples=100, deadline=None)
    @given(text=_TEXTS)
    def check(text):
        assert {tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for tokenizer in loaded} == {
            tuple(_encode(both[1], text))
        }

    check()


def test_long_texts_are_cut_where_no_token_is(monkeypatch, source, target):
    tokenizer = load_tokenizer(target)
    plain = TextEncoder(tokenizer)
    fast = batch_encoder.BatchEncoder(plain)
    assert fast._cuts_pre_tokens == ("llama3" in str(source))
    monkeypatch.setattr(batch_encoder, "BLOCK_CHARACTERS", 1)

    @settings(max_examples=300, deadline=None)
    @given(text=_TEXTS)
    def check(text):
        ids, ends = fast.encode([text, text], [True, False])
        starts = [0, *ends.cumsum().tolist()]
        assert [ids[a:b].tolist() for a, b in pairwise(starts)] == plain.encode_continuation([text, text])

    check()


def test_the_report_says_what_the_extension_changes(target, both):
    report = json.loads((target / "expansion_report.json").read_text("utf-8"))
    changes = report["extended_pretokenizer"]
    assert changes["scripts"] == ["Devanagari", "Thai"]
    assert changes["added_scripts"] == ["Thai", "Devanagari"]
    assert report["impossible"] == report["unreachable"] == 0
    assert changes["pieces"] == report["asked"]
    assert changes["piece_tokens_before"] > changes["pieces"]
    assert extended_scripts(definition_of(both[1])) == ("Devanagari", "Thai")
    assert changes["lost_old_tokens"] <= changes["old_tokens_beginning_with_a_mark"]


def test_a_second_script_and_the_same_again(project_root, target, both, tmp_path):
    pieces = tmp_path / "pieces.jsonl"
    pieces.write_text(json.dumps({"piece": "தமிழ்"}) + "\n", "utf-8")
    again = tmp_path / "again"
    run = expand(project_root, target, again, pieces, "--extend_pretokenizer", "thai,Taml")
    assert run.returncode == 0, run.stderr
    assert "keeps marks of Thai with their letters already" in run.stdout
    new = Tokenizer.from_file(str(again / "tokenizer.json"))
    assert len(_encode(new, "தமிழ்")) == 1
    assert _encode(new, THAI + HINDI) == _encode(both[1], THAI + HINDI)
    changes = json.loads((again / "expansion_report.json").read_text("utf-8"))["extended_pretokenizer"]
    assert changes["scripts"] == ["Devanagari", "Tamil", "Thai"]
    assert changes["added_scripts"] == ["Tamil"]


def test_without_the_option_an_extended_source_stays_extended(project_root, target, both, tmp_path):
    pieces = tmp_path / "pieces.jsonl"
    pieces.write_text(json.dumps({"piece": "ครึ่งหนึ่ง"}) + "\n", "utf-8")
    run = expand(project_root, target, tmp_path / "again", pieces)
    assert run.returncode == 0, run.stderr
    new = Tokenizer.from_file(str(tmp_path / "again" / "tokenizer.json"))
    assert len(_encode(new, "ครึ่งหนึ่ง")) == 1
    assert definition_of(new) == definition_of(both[1])
    changes = json.loads((tmp_path / "again" / "expansion_report.json").read_text("utf-8"))["extended_pretokenizer"]
    assert (changes["scripts"], changes["added_scripts"]) == (["Devanagari", "Thai"], [])


def test_words_of_many_scripts_become_tokens(project_root, source, tmp_path):
    words = [word for text in WORDS.values() for part in text.split(" ") for word in part.split("་") if word]
    pieces = tmp_path / "pieces.jsonl"
    pieces.write_text("".join(json.dumps({"piece": word}) + "\n" for word in words), "utf-8")
    run = expand(project_root, source, tmp_path / "t", pieces, "--extend_pretokenizer", ",".join(WORDS))
    assert run.returncode == 0, run.stderr
    new = Tokenizer.from_file(str(tmp_path / "t" / "tokenizer.json"))
    assert [len(_encode(new, word)) for word in words] == [1] * len(words)


def test_new_rows_begin_as_pieces_of_the_source(source, target):
    new_tokens = read_new_tokens(source, target)
    old = load_tokenizer(source).backend_tokenizer
    new = load_tokenizer(target).get_vocab()
    texts = {token_id: token for token, token_id in new.items()}
    for row, ids in enumerate(new_tokens.source_pieces, new_tokens.source_vocabulary):
        assert "".join(old.id_to_token(token_id) for token_id in ids) == texts[row]


def test_llama_cpp_is_not_given_an_extended_tokenizer(target):
    with pytest.raises(
        UserError, match=r"keeps combining marks with letters of Devanagari, Thai .*--extend_pretokenizer"
    ):
        read_vocabulary(load_tokenizer(target), 200_000)


def test_sentencepiece_needs_no_extension(project_root, made_data, pieces, tmp_path):
    source = made_data / "tokenizers" / "llama2"
    for name, options in (("plain", ()), ("extended", ("--extend_pretokenizer", "Thai"))):
        run = expand(project_root, source, tmp_path / name, pieces, *options)
        assert run.returncode == 0, run.stderr
    assert "--extend_pretokenizer changes nothing" in run.stdout
    names = sorted(path.name for path in (tmp_path / "plain").iterdir())
    for name in names:
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "extended" / name).read_bytes()


def test_a_misspelt_script_is_named_with_a_suggestion(project_root, made_data, pieces, tmp_path):
    source = made_data / "tokenizers" / "llama3-base"
    run = expand(project_root, source, tmp_path / "t", pieces, "--extend_pretokenizer", "Thia,Devnagari")
    assert run.returncode == 2
    assert "Thai" in run.stderr
    assert "Devanagari" in run.stderr
    assert not (tmp_path / "t").exists()


def test_a_pre_tokenizer_of_another_kind_is_refused(project_root, made_data, pieces, tmp_path):
    shutil.copytree(made_data / "tokenizers" / "llama3-base", tmp_path / "source")
    path = tmp_path / "source" / "tokenizer.json"
    definition = json.loads(path.read_text("utf-8"))
    definition["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"[\p{L}\p{N}]|\s|[^\p{L}\p{N}\s]"}
    path.write_text(json.dumps(definition), "utf-8")
    run = expand(project_root, tmp_path / "source", tmp_path / "t", pieces, "--extend_pretokenizer", "Thai")
    assert run.returncode == 2
    assert "does not find words by" in run.stderr
    assert "Traceback" not in run.stderr


def test_special_tokens_that_are_the_default_of_a_class_stay(project_root, pieces, tmp_path):
    source = _as_smollm(tmp_path / "source")
    path = source / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in ("unk_token", "bos_token")}))
    run = expand(project_root, source, tmp_path / "t", pieces, "--extend_pretokenizer", "Thai")
    assert run.returncode == 0, run.stderr
    old, new = (AutoTokenizer.from_pretrained(directory) for directory in (source, tmp_path / "t"))
    assert new.special_tokens_map == old.special_tokens_map
    assert new.model_input_names == ["input_ids", "attention_mask"]
