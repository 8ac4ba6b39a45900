"""init_tokenizer.py on a LLaMA-3 tokenizer (the real one where it is), and on random byte-level BPE
vocabularies.
"""

import json
import shutil

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from colossal_llama.tokenizer.expansion.byte_level_bpe import expand_byte_level
from colossal_llama.tokenizer.expansion.pieces import Piece
from colossal_llama.tokenizer.expansion.reachability import verify_reachability
from tests.support.made_data import make_qwen
from tests.support.tokenizer_scripts import expand, ids_of

ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


def token_ends(tokens):
    """Byte positions at which tokens end: a byte-level token has a character for each byte."""
    ends, position = set(), 0
    for token in tokens:
        position += len(token)
        ends.add(position)
    return ends


@pytest.fixture(scope="module")
def source(any_data):
    return AutoTokenizer.from_pretrained(any_data / "tokenizers" / "llama3-instruct")


@pytest.fixture(scope="module")
def pieces_file(any_data):
    """The smaller file of pieces; its name says how many they are."""
    return min(any_data.glob("pieces_zh_*.jsonl"), key=lambda file: int(file.stem.rsplit("_", 1)[1]))


@pytest.fixture(scope="module")
def expanded(project_root, any_data, pieces_file, tmp_path_factory):
    target = tmp_path_factory.mktemp("expanded") / "tokenizer"
    directory = any_data / "tokenizers" / "llama3-instruct"
    run = expand(project_root, directory, target, pieces_file)
    assert run.returncode == 0, run.stderr
    return target, AutoTokenizer.from_pretrained(target)


@pytest.fixture(scope="module")
def pieces(pieces_file):
    lines = pieces_file.read_text("utf-8").splitlines()
    return [json.loads(line)["piece"].replace("▁", " ") for line in lines]


@pytest.fixture(scope="module")
def corpus(any_data):
    texts = []
    for path in sorted(any_data.glob("pretrain/*/*.jsonl")):
        texts += [json.loads(line)["target"][:10_000] for line in path.read_text("utf-8").splitlines()[:400:16]]
    return texts


def test_old_ids_stay_and_new_ones_follow_the_special_tokens(expanded, source):
    _, tokenizer = expanded
    old = source.get_vocab()
    new = tokenizer.get_vocab()
    assert {token: new[token] for token in old} == old
    assert sorted(new.values()) == list(range(len(new))) == list(range(len(tokenizer)))
    assert tokenizer.added_tokens_decoder == source.added_tokens_decoder
    assert tokenizer.special_tokens_map == source.special_tokens_map
    assert tokenizer.model_max_length == source.model_max_length


def test_every_piece_is_reachable_or_split_by_the_pre_tokenizer(expanded, source, pieces):
    """Alone, and inside longer words, where LLaMA-3's look-up of whole words does not help."""
    target, tokenizer = expanded
    report = json.loads((target / "expansion_report.json").read_text("utf-8"))
    impossible = {entry["piece"] for entry in report["impossible_pieces"]}
    pre_tokenize = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    assert all(len(pre_tokenize(piece)) > 1 for piece in impossible)
    names = {piece: pre_tokenize(piece)[0][0] for piece in pieces if piece not in impossible}
    vocabulary = tokenizer.get_vocab()
    id_of = {piece: vocabulary[name] for piece, name in names.items()}
    first_new_id = len(source)  # len() counts the whole vocabulary every time
    new = {piece: token_id for piece, token_id in id_of.items() if token_id >= first_new_id}
    assert len(new) == report["new"] > 0.75 * len(pieces)
    assert report["new"] + report["already_known"] + report["impossible"] == len(pieces)
    for contexts in ([("", ""), ("。", "\n")], [("，", "k"), ("k", "k"), ("。", "“")]):
        unreachable = new
        for before, after in contexts:
            found = ids_of(tokenizer, [before + piece + after for piece in unreachable])
            unreachable = {p: i for (p, i), ids in zip(unreachable.items(), found, strict=True) if i not in ids}
        assert unreachable == {}


def test_texts_are_decoded_and_keep_old_tokens_where_nothing_new_applies(expanded, source, corpus, tmp_path):
    _, tokenizer = expanded
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    old_ids, new_ids = ids_of(source, corpus), ids_of(tokenizer, corpus)
    assert ids_of(reloaded, corpus) == new_ids
    shorter = 0
    for text, old, new in zip(corpus, old_ids, new_ids, strict=True):
        assert tokenizer.decode(new, clean_up_tokenization_spaces=False) == text
        assert token_ends(tokenizer.convert_ids_to_tokens(new)) <= token_ends(source.convert_ids_to_tokens(old))
        shorter += len(new) < len(old)
    assert shorter > 100
    assert sum(map(len, new_ids)) < sum(map(len, old_ids))


def test_offsets_point_at_the_pieces_text(expanded, source):
    _, tokenizer = expanded
    first_new_id = len(source)
    text = "The 意大利。，意大利的足球，越来越多的人，<|eot_id|>博物馆"
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    for token_id, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
        if token_id >= first_new_id or token_id == tokenizer.eos_token_id:
            assert tokenizer.decode([token_id]) == text[start:end]
    assert tokenizer.eos_token_id in encoding["input_ids"]
    assert sum(token_id >= first_new_id for token_id in encoding["input_ids"]) >= 3


def test_random_unicode_is_decoded_and_only_joins_old_tokens(expanded, source, pieces):
    _, tokenizer = expanded

    @settings(max_examples=150, deadline=None)
    @given(text=st.lists(st.one_of(ANY, st.sampled_from(pieces)), max_size=8).map("".join))
    def check(text):
        (new,), (old,) = ids_of(tokenizer, [text]), ids_of(source, [text])
        assert tokenizer.decode(new, clean_up_tokenization_spaces=False) == text
        assert token_ends(tokenizer.convert_ids_to_tokens(new)) <= token_ends(source.convert_ids_to_tokens(old))

    check()


def test_a_damaged_definition_is_one_message(project_root, made_data, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    shutil.copyfile(made_data / "tokenizers/llama3-base/tokenizer_config.json", source / "tokenizer_config.json")
    (source / "tokenizer.json").write_text('{"model": {"type": "WordPiece"}, "pre_tokenizer": null}')
    pieces = tmp_path / "pieces.jsonl"
    pieces.write_text('{"piece": "a piece"}\n')
    run = expand(project_root, source, tmp_path / "new", pieces)
    assert run.returncode == 2
    assert "WordPiece" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "new").exists()


def byte_level_definition(pairs):
    """A byte-level BPE with those of the given merges that are possible, and one control token."""
    vocabulary = {symbol: token_id for token_id, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    for left, right in pairs:
        if left in vocabulary and right in vocabulary and left + right not in vocabulary:
            vocabulary[left + right] = len(vocabulary)
            merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return json.loads(tokenizer.to_str())


PAIRS = st.lists(st.tuples(st.text("abĠ", min_size=1, max_size=3), st.text("abĠ", min_size=1, max_size=3)), max_size=10)
REQUESTED = st.lists(st.text("abé 1.", min_size=1, max_size=6).filter(str.strip), min_size=1, max_size=12, unique=True)
TEXTS = st.lists(st.text("abé 1.\n", max_size=20), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(pairs=PAIRS, requested=REQUESTED, texts=TEXTS)
def test_any_byte_level_vocabulary_is_expanded_without_unreachable_pieces(pairs, requested, texts):
    definition = byte_level_definition(pairs)
    source = Tokenizer.from_str(json.dumps(definition))
    expansion = expand_byte_level(definition, source, [Piece(text, "") for text in requested])
    reachability = verify_reachability(expansion.piece_ids, expansion.encoders, expansion.encode_by_merges)
    assert reachability.unreachable == ()
    assert len(expansion.pieces) + len(expansion.known) + len(expansion.impossible) == len(requested)
    expanded = Tokenizer.from_buffer(expansion.files["tokenizer.json"])
    assert expanded.token_to_id("<|end|>") == source.token_to_id("<|end|>")
    for text in texts:
        encoding = expanded.encode(text)
        assert expanded.decode(encoding.ids) == text
        assert token_ends(encoding.tokens) <= token_ends(source.encode(text).tokens)
        assert expanded.encode(f"{text}<|end|>").ids == [*encoding.ids, source.token_to_id("<|end|>")]


def test_vocabulary_and_merges_of_slow_tokenizers_agree(project_root, pieces_file, tmp_path):
    """Where the source has them; transformers 4's slow tokenizer encodes every piece alike."""
    make_qwen(tmp_path / "source")
    run = expand(project_root, tmp_path / "source", tmp_path / "target", pieces_file)
    assert run.returncode == 0, run.stderr
    model = json.loads((tmp_path / "target" / "tokenizer.json").read_text("utf-8"))["model"]
    assert json.loads((tmp_path / "target" / "vocab.json").read_text("utf-8")) == model["vocab"]
    header, *merges = (tmp_path / "target" / "merges.txt").read_text("utf-8").splitlines()
    assert header.startswith("#version")
    assert [line.split(" ") for line in merges] == model["merges"]
    assert len(merges) > len((tmp_path / "source" / "merges.txt").read_text("utf-8").splitlines())
    if transformers.__version__ < "5":
        fast, slow = (AutoTokenizer.from_pretrained(tmp_path / "target", use_fast=fast) for fast in (True, False))
        assert not slow.is_fast
        # Piece by piece: in running text the classes differ where new merges outrank their parts.
        pieces = [json.loads(line)["piece"] for line in pieces_file.read_text("utf-8").splitlines()[:500]]
        assert ids_of(slow, pieces) == ids_of(fast, pieces)
        assert max(max(ids) for ids in ids_of(slow, pieces)) >= len(AutoTokenizer.from_pretrained(tmp_path / "source"))


def test_files_that_the_source_lacks_are_not_made(expanded):
    assert not [name for name in ("vocab.json", "merges.txt") if (expanded[0] / name).exists()]
