"""Characters split into byte tokens are counted, also next to added tokens."""

from colossal_llama.tokenizer.compression import DocumentCounter
from colossal_llama.tokenizer.loading import load_tokenizer


def test_an_added_token_counts_with_its_bytes(made_data):
    """If one that is not ASCII counted in characters, what follows would be taken for its bytes."""
    tokenizer = load_tokenizer(made_data / "tokenizers" / "llama3-base")
    tokenizer.add_tokens(["工具"])
    texts = ("你好", "😀龘", "你好工具😀龘")
    before, after, whole = (counts.characters_in_bytes for counts in DocumentCounter(tokenizer).count(texts))
    assert (before, after) == (0, 2)
    assert whole == before + after
