"""The bytes of a text's tokens, one after the other, are the text."""

from hypothesis import given, settings

from colossal_llama.tokenizer.token_bytes import token_bytes
from tests.support.texts import TEXTS


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
