"""CSV files: quotes, separators, encoding; bad rows are named by line, the others are read."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.readers.csv_rows import csv_rows
from tests.support.read_back import read_back, written

CELLS = st.text(st.sampled_from('ab,;"\n\r\t é|'), max_size=8).filter(lambda text: "\r" not in text.replace("\r\n", ""))


@given(
    rows=st.lists(st.tuples(CELLS, CELLS), max_size=5),
    separator=st.sampled_from(",;\t|"),
    end=st.sampled_from(["\n", "\r\n"]),
    mark=st.sampled_from(["", "\ufeff"]),
)
@settings(max_examples=200, deadline=None)
def test_what_python_writes_is_read(rows, separator, end, mark):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("text", "category"), *rows])
    content = (mark + text.getvalue()).encode()
    seen = []
    found = list(csv_rows(io.BufferedReader(io.BytesIO(content)), 1000, seen.append))
    assert [tuple(row.values()) for _, row in found] == rows
    assert all(list(row) == ["text", "category"] for _, row in found)
    assert b"".join(seen) == content
    lines = content.decode().replace("\r\n", "\n").split("\n")
    assert [lines[number][:1] for number, _ in found] == ['"'] * len(rows)


@pytest.mark.parametrize(
    ("content", "records", "expected"),
    [
        ("text;category\nA, B;c\n", [{"text": "A, B", "category": "c"}], []),
        ("sep=;\ntext;category\nA;c\n", [{"text": "A", "category": "c"}], []),
        ("\n\ntext,category\n\nA,c\n", [{"text": "A", "category": "c"}], []),
        ("text\nA\nB, C\n", [{"text": "A"}], ["a.csv:3: wrong_number_of_cells: the row has 2 cells, and the header 1"]),
        ('text,n\n"A\nB",1\nC\nD,2', [{"text": "A\nB", "n": "1"}, {"text": "D", "n": "2"}], ["a.csv:4: wrong_number"]),
        ('text,n\nA,1\n"B,2\nC,3\n', [{"text": "A", "n": "1"}], ["damaged_file: ", "begins in line 3 has no end"]),
        ('text,n\n"say \\"A\\"",1\nB,2', [{"text": "B", "n": "2"}], ["a.csv:2: broken_csv", "is written twice"]),
        ("text,n\nA\0B,1\nC,2", [{"text": "C", "n": "2"}], ["a.csv:2: binary_content"]),
        ("text,text\nA,B\n", [], ["unusable_file: ", "its header names 'text' twice"]),
        ("text,n\rA,1\r", [], ["unusable_file: ", "carriage return without a line feed"]),
        ("text,n\n", [], []),
        ("", [], []),
    ],
)
def test_good_rows_are_read_and_bad_ones_are_named(tmp_path, content, records, expected):
    found, refused = read_back(written(tmp_path, "a.csv", content.encode()))
    assert found == records
    assert bool(refused) is bool(expected)
    for part in expected:
        assert part in "\n".join(refused)


def test_other_encodings_are_named_by_line(tmp_path):
    records, (problem,) = read_back(written(tmp_path, "a.csv", b"text,n\ncaf\xe9,1\nB,2\n"))
    assert records == [{"text": "B", "n": "2"}]
    assert problem.startswith("a.csv:2: wrong_encoding: byte 0xe9 at position 3 is not UTF-8")


def test_tabs_separate_the_cells_of_tsv(tmp_path):
    assert read_back(written(tmp_path, "a.tsv", b"text,\tn\nA, B\t1\n")) == ([{"text,": "A, B", "n": "1"}], [])


def test_a_missing_quote_does_not_fill_the_memory(tmp_path):
    path = written(tmp_path, "a.csv", b'text,n\nA,1\n"' + b"B,2\n" * 100_000)
    records, (problem,) = read_back(path, max_bytes=10_000)
    assert records == [{"text": "A", "n": "1"}]
    assert "line 3 is longer than --max_line_mb: is its closing quote missing?" in problem
    records, (problem,) = read_back(written(tmp_path, "b.csv", b"text,n\n" + b"B" * 100_000), max_bytes=10_000)
    assert (records, "the line has" in problem) == ([], True)
    records, (problem,) = read_back(written(tmp_path, "c.csv", b"B" * 100_000 + b"\n1\n"), max_bytes=10_000)
    assert (records, "line 1: the line has" in problem) == ([], True)


@pytest.mark.parametrize(
    ("long", "lost"),
    [
        (b"B" * 20_000 + b",2", []),
        (b'"a\n' + b"B" * 20_000 + b'",2', []),
        (
            b'"' + b"B" * 20_000 + b"\nmore\n" + b"C" * 20_000 + b'\nend",2',
            ["a.csv:4: line_too_long: 3 lines that end"],
        ),
        (b'"x ""y"" ' + b"B" * 20_000 + b'",2', []),
    ],
)
def test_rows_after_a_line_that_is_too_long_are_read(tmp_path, long, lost):
    path = written(tmp_path, "a.csv", b"text,n\nA,1\n" + long + b'\n"C\nc",3\nD,4\nE\n')
    records, (problem, *others) = read_back(path, max_bytes=10_000)
    assert records == [{"text": "A", "n": "1"}, {"text": "C\nc", "n": "3"}, {"text": "D", "n": "4"}]
    assert problem.startswith("a.csv:3: line_too_long: the line has")
    assert [other[: len(start)] for other, start in zip(others[:-1], lost, strict=True)] == lost
    last = path.read_bytes().count(b"\n")
    assert others[-1].startswith(f"a.csv:{last}: wrong_number_of_cells")
