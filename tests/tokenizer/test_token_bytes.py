"""The bytes of a text's tokens, one after the other, are the text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.tokenizer.encoding import TextEncoder
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.tokenizer.token_bytes import token_bytes

FRAGMENTS = ["  ", "    ", "\n", "\n\n", "\t", "aaaa", "the ", "ing", "==", "----", "中国", "人民", "，", "。", "▁",
             "<s>", "<0x0A>", "😀", "é", "\u0301", "\x00", "\r\n", "http://", "0000", "ﬁ", "\ue000"]  # fmt: skip


TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(FRAGMENTS), max_size=12
)


@pytest.fixture(scope="module", params=["llama2", "llama3-base"])
def tokenizer(request, any_data):
    return load_tokenizer(any_data / "tokenizers" / request.param)


@pytest.fixture(scope="module")
def plain(tokenizer):
    return TextEncoder(tokenizer)


def test_token_bytes_put_a_text_together_again(tokenizer, plain):
    definition = plain.definition()
    pieces = token_bytes(definition, len(tokenizer))

    @settings(max_examples=100, deadline=None)
    @given(text=TEXTS.map("".join).filter(lambda text: "▁" not in text))
    def check(text):
        ids = plain.encode_continuation([text])[0]
        assert b"".join(pieces[token_id] for token_id in ids) == text.encode()

    check()
    assert pieces[tokenizer.bos_token_id] == b""
