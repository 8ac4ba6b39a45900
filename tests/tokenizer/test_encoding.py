"""Added tokens are matched in a text, control tokens are not."""

import pickle

from colossal_llama.tokenizer.encoding import TextEncoder
from colossal_llama.tokenizer.loading import load_tokenizer


def test_a_token_added_as_text_is_found_in_texts_and_a_control_token_is_not(any_data):
    tokenizer = load_tokenizer(any_data / "tokenizers" / "llama2")
    tokenizer.add_tokens(["<word>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<control>"]})
    word, control = tokenizer.convert_tokens_to_ids(["<word>", "<control>"])
    encoder = TextEncoder(tokenizer)
    for copy in (encoder, pickle.loads(pickle.dumps(encoder))):
        for encode in (copy.encode_beginning, copy.encode_continuation):
            (ids,) = encode(["a<word>b<control></s>c"])
            assert ids.count(word) == 1
            assert not {control, tokenizer.eos_token_id} & set(ids)
    assert encoder.encode_beginning(["a<word>b"])[0] == tokenizer.encode("a<word>b", add_special_tokens=False)


def test_unknown_words_have_the_unknown_token(toy):
    """Without it the model of a vocabulary of words cannot encode a text at all."""
    encoder = TextEncoder(load_tokenizer(toy.model))
    assert encoder.encode_beginning(["w3 unheard <s>"]) == [[3, 0, 0, 0, 0]]
