"""A corpus is read without byte order marks; blocks of long documents are the document."""

import codecs

from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.tokenizer.corpus import find_files, read_texts, split_into_blocks


def test_a_byte_order_mark_is_no_text_and_files_of_other_kinds_are_named(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_bytes(codecs.BOM_UTF8 + b'{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "b.parquet").touch()
    files = find_files([tmp_path])
    assert [text.text for text in read_texts(files)] == ["one", "two"]
    message = f"left out: 1 files of formats that only preparation reads, the first of them {tmp_path / 'b.parquet'}"
    assert message in capsys.readouterr().out


@given(st.text("ab \n"), st.integers(1, 9))
def test_blocks_are_the_text(text, length):
    blocks = list(split_into_blocks(text, length))
    assert "".join(blocks) == text
    assert all(len(block) <= length for block in blocks)
    assert all(block[-1] in " \n" or not set(block) & set(" \n") for block in blocks[:-1])
