"""The batch encoder gives exactly the ids of the plain one; tokens' bytes are their text's."""

import pickle

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.tokenizer import batch_encoder
from colossal_llama.tokenizer.batch_encoder import BatchEncoder
from tests.support.texts import TEXTS


@pytest.fixture(scope="module")
def fast(plain):
    return BatchEncoder(plain)


def expected(plain, texts, beginnings) -> list[list[int]]:
    encode = {True: plain.encode_beginning, False: plain.encode_continuation}
    return [encode[beginning]([text])[0] for text, beginning in zip(texts, beginnings, strict=True)]


def in_lists(encoded) -> list[list[int]]:
    ids, lengths = encoded
    assert ids.dtype == np.int32
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])] if len(lengths) else []


def test_any_texts(plain, fast):
    @settings(max_examples=200, deadline=None)
    @given(batch=st.lists(st.tuples(TEXTS.map("".join), st.booleans()), max_size=6))
    def check(batch):
        texts, beginnings = [text for text, _ in batch], [beginning for _, beginning in batch]
        assert in_lists(fast.encode(texts, beginnings)) == expected(plain, texts, beginnings)
        assert fast.encode_continuation(texts) == plain.encode_continuation(texts)

    check()


def test_a_text_of_all_characters_that_could_mark_a_cut(plain, fast):
    text = "".join(map(chr, range(0xE000, 0xF900))) + " and words"
    assert in_lists(fast.encode([text], [True])) == expected(plain, [text], [True])


def test_texts_also_in_a_copy_for_a_worker(any_data, plain, fast):
    lines = []
    for path in sorted((any_data / "pretrain").rglob("*-000.jsonl")):
        with path.open("rb") as file:
            lines += [file.readline() for _ in range(60)]
    texts = [orjson.loads(line)["target"] for line in lines]
    beginnings = [index % 3 > 0 for index in range(len(texts))]
    copy = pickle.loads(pickle.dumps(fast))
    assert in_lists(copy.encode(texts, beginnings)) == expected(plain, texts, beginnings)


def test_long_texts_are_cut_into_blocks_without_a_difference(monkeypatch, any_data, plain, fast):
    monkeypatch.setattr(batch_encoder, "BLOCK_CHARACTERS", 300)
    monkeypatch.setattr(batch_encoder, "JOINED_CHARACTERS", 50)
    monkeypatch.setattr(batch_encoder, "MAX_CACHED_WORDS", 200)
    with (any_data / "pretrain" / "zh_docs" / "zh_docs-000.jsonl").open("rb") as file:
        texts = [orjson.loads(file.readline())["target"] for _ in range(10)]
    texts += ["a" * 5000, " " * 3000, "", "=-" * 2000 + "\n" * 900]
    beginnings = [True, False] * (len(texts) // 2)
    assert in_lists(fast.encode(texts, beginnings)) == expected(plain, texts, beginnings)


def test_every_boundary_may_be_cut(monkeypatch, tokenizer, plain, fast):
    """Texts cut at every position where that is allowed, down to single characters."""
    monkeypatch.setattr(batch_encoder, "BLOCK_CHARACTERS", 1)
    signs = st.sampled_from(
        ["'s", "'S", "\u017f", " ", "  ", "\n", "\r\n", "\t", "\x1c", "\x85", "\u3000", "!", "，", "。", "7", "1234"]
    )
    words = st.sampled_from(["a", "Bc", "don't", "中", "文字", "é", "\u0301", "़"]) | signs

    @settings(max_examples=300, deadline=None)
    @given(text=st.lists(words, max_size=16).map("".join))
    def check(text):
        assert in_lists(fast.encode([text, text], [True, False])) == expected(plain, [text, text], [True, False])

    check()


def test_both_families_are_recognized(tokenizer, fast):
    assert (fast._word_encoder is not None) == ("llama2" in tokenizer.name_or_path)
    assert fast._cuts_pre_tokens == ("llama3" in tokenizer.name_or_path)
