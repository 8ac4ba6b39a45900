"""Text files: one document each; empty, long and binary ones are counted or named."""

import pytest

from colossal_llama.readers.listing import find_input_files
from colossal_llama.readers.rows import FileRange, read_rows
from tests.support.data_files import COMPRESSIONS, compressed
from tests.support.read_back import read_back, written


@pytest.mark.parametrize("ending", COMPRESSIONS)
@pytest.mark.parametrize("kind", [".txt", ".md", ".MD"])
def test_a_file_is_a_document(tmp_path, kind, ending):
    text = "# Title\r\n\r\n{not: json}\n" + "你好 " * 5000
    path = written(tmp_path, f"a{kind}{ending.upper()}", compressed(f"\ufeff{text}".encode(), ending))
    assert read_back(path) == ([{"text": text}], [])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"th\xe9", "a.txt: wrong_encoding: byte 0xe9 at position 2"),
        (b"a\0b", "a.txt: binary_content: the byte at position 1 is 0"),
        (
            b"x" * 3000,
            "a.txt: line_too_long: the text has 0 MB, more than 0, and a text file is one document: split it",
        ),
    ],
)
def test_what_is_no_document_is_named(tmp_path, content, expected):
    records, (problem,) = read_back(written(tmp_path, "a.txt", content), max_bytes=2000)
    assert records == []
    assert problem.startswith(expected)


def test_an_empty_file_is_an_empty_line(tmp_path):
    for content in (b"", b" \r\n\n", b"\xef\xbb\xbf"):
        (file,) = find_input_files([written(tmp_path, "a.txt", content)])[0]
        assert [(number, row.strip()) for number, row in read_rows(FileRange(file), 1000)] == [(0, b"")]
