"""A corpus is read without byte order marks; blocks of long documents are the document."""

import codecs
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.readers.fields import FieldOptions
from colossal_llama.tokenizer.corpus import find_files, read_texts, split_into_blocks
from colossal_llama.utils.errors import UserError


def test_a_byte_order_mark_is_no_text_and_files_of_other_kinds_are_named(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_bytes(codecs.BOM_UTF8 + b'{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "b.pdf").touch()
    files = find_files([tmp_path])
    assert [text.text for text in read_texts(files)] == ["one", "two"]
    assert f"files that are not read: 1 (.pdf 1): {tmp_path.name}/b.pdf" in capsys.readouterr().out


def test_a_file_that_is_given_twice_is_read_once(tmp_path):
    (tmp_path / "en").mkdir()
    (tmp_path / "en" / "a.txt").write_text("one")
    for paths in ([tmp_path, tmp_path / "en"], [tmp_path / "en" / "a.txt", tmp_path], [tmp_path, tmp_path]):
        assert [text.text for text in read_texts(find_files(paths))] == ["one"]


SAMPLES = {
    "lines": [{"text": f"line {number} " * 9} for number in range(40)],
    "long": [{"source": "s", "target": f"word{number} " * 400, "category": "c"} for number in range(5)],
    "talk": [{"messages": [{"from": "human", "content": "Q"}, {"from": "assistant", "content": f"{number}"}]}
             for number in range(40)],
}  # fmt: skip
SHA256 = {  # of versions that read nothing but .jsonl, .jsonl.gz, .txt and .md
    (1.0, None): "53793945340939fc51b4476468b85b2bdbde33156d0703a235ea2688fea08d65",
    (0.3, None): "dd2a482a6f8fb2ceaf543ef332b26b0b1420459bc4e48230c460fe149152704b",
    (0.3, 200): "198380344e1fa051e8592e02be47bb48ecebeb6255e42412a0853b5d9f736c0a",
}


@pytest.mark.parametrize(("share", "block_characters"), SHA256)
def test_samples_are_those_of_earlier_versions(share, block_characters, tmp_path):
    for name, records in SAMPLES.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n\r\n" for record in records))
    (tmp_path / "plain.md").write_text("".join(f"# {number}\r\n" for number in range(30_000)))
    texts = read_texts(find_files([tmp_path]), share, 7, block_characters)
    content = "".join(f"{text.text}\0{text.category}\0{Path(text.location).name}\0" for text in texts)
    digest = hashlib.sha256(content.replace(tmp_path.name, "corpus").encode()).hexdigest()
    assert digest == SHA256[share, block_characters]


def test_columns_that_are_chosen_are_said_and_conversations_are_texts(tmp_path, capsys):
    records = [{"text": "one", "content": "x"}, {"prompt": "Q", "completion": "A"}, {"body": "two", "category": ""}]
    (tmp_path / "a.json").write_text(json.dumps(records))
    assert [text.text for text in read_texts(find_files([tmp_path]))] == ["one", "Q\nA", "two"]
    assert f'{tmp_path.name}/a.json: "text", not "content" is read' in capsys.readouterr().out
    fields = FieldOptions(text_field="body", category_from="all")
    with pytest.raises(UserError, match=r'a\.json, record 1: "body" is missing: the record has "text", "content"'):
        list(read_texts(find_files([tmp_path]), fields=fields))


@given(st.text("ab \n"), st.integers(1, 9))
def test_blocks_are_the_text(text, length):
    blocks = list(split_into_blocks(text, length))
    assert "".join(blocks) == text
    assert all(len(block) <= length for block in blocks)
    assert all(block[-1] in " \n" or not set(block) & set(" \n") for block in blocks[:-1])
