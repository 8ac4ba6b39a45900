"""Words include a space where their script is written with spaces."""

import pytest

from colossal_llama.tokenizer.learning.bpe_continuation import word_pattern


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
