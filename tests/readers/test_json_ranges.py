"""Ranges of .json files have the records of the file, each once, wherever they begin."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from colossal_llama.readers.file_range import FileRange
from colossal_llama.readers.formats import Format
from colossal_llama.readers.json_ranges import range_entries
from colossal_llama.readers.listing import InputFile
from colossal_llama.readers.record import BadRow
from colossal_llama.readers.rows import DamagedFileError, read_rows, row_places, scanned_range

HOSTILE = st.text(alphabet='"\\{}[],:\n x\u00e9\u4e2d\x1e', max_size=20)
VALUES = st.recursive(
    HOSTILE | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HOSTILE, inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.lists(st.dictionaries(HOSTILE, VALUES, max_size=4), max_size=8)
ODD = st.text(alphabet='"\\{}[], 1a\n\ufeff', max_size=60)


def file_of(path, text: bytes) -> InputFile:
    path.write_bytes(text)
    return InputFile(path, path.name, len(text), 0, Format(".json"))


def ranges_of(file: InputFile, size: int) -> list[FileRange]:
    cuts = [*range(0, file.size_bytes, size), file.size_bytes]
    ranges = [FileRange(file, start, end) for start, end in pairwise(cuts)]
    entries = range_entries([scanned_range(part) for part in ranges])
    return [replace(part, entry=entry) for part, entry in zip(ranges, entries, strict=True)]


def read(ranges, max_bytes: int = 1 << 20) -> tuple[list, str]:
    """Rows of ranges, and what is wrong behind them."""
    rows, problem = [], ""
    for part in ranges:
        try:
            rows += [row for _, row in read_rows(part, max_bytes)]
        except DamagedFileError as error:
            problem += str(error)
    return rows, problem


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("json") / "a.json"


@settings(max_examples=150, deadline=None)
@given(records=RECORDS, size=st.integers(1, 40), indent=st.sampled_from([None, 1]), is_ascii=st.booleans())
@example(records=[{"a": "\\" * 50 + '"'}, {"b": 1}], size=1, indent=None, is_ascii=False)
def test_ranges_of_an_array_have_its_elements(path, records, size, indent, is_ascii):
    text = json.dumps(records, ensure_ascii=is_ascii, indent=indent).encode()
    if not records:
        text = b"[ ]"
    file = file_of(path, text)
    ranges = ranges_of(file, size)
    assert all(isinstance(part.entry, tuple) for part in ranges), "it is divided"
    assert read(ranges) == read([FileRange(file)])
    assert [json.loads(row) for row in read(ranges)[0]] == records


@settings(max_examples=500, deadline=None)
@given(text=ODD, size=st.integers(1, 30))
@example(text='[{"a": \\"x"}, {"b": "y\\"}]', size=5)
@example(text='[{"a": 1} \\"{"b": 2}, \\"]', size=3)
@example(text="[12345, 678, true]", size=4)
@example(text='{"a": 1}\n{"b": "]["}\n\n{"c": 2}', size=7)
@example(text='{"a": 1} {"b": 2}', size=5)
@example(text="[{}]]", size=2)
@example(text='["{", "[", {}]', size=2)
def test_any_text_is_read_in_ranges_as_it_is_as_a_whole(path, text, size):
    if not text:
        return
    file = file_of(path, text.encode())
    assert read(ranges_of(file, size)) == read([FileRange(file)])


@settings(max_examples=50, deadline=None)
@given(records=st.lists(st.fixed_dictionaries({"text": HOSTILE}), min_size=1, max_size=9), size=st.integers(1, 40))
def test_an_object_a_line_is_divided_by_lines(path, records, size):
    text = "".join(json.dumps(record) + "\n" for record in [{"text": "first"}, *records]).encode()
    file = file_of(path, text)
    ranges = ranges_of(file, max(size, 20))
    assert {part.entry for part in ranges} == {"lines"}
    assert read(ranges) == read([FileRange(file)])


def test_long_elements_are_named_once_and_places_count_from_the_file_s_beginning(tmp_path):
    records = [{"n": number, "text": "x" * (5_000 if number == 3 else 50)} for number in range(40)]
    file = file_of(tmp_path / "a.json", json.dumps(records).encode())
    ranges = ranges_of(file, 300)
    rows, problem = read(ranges, 1_000)
    assert (len(rows), problem) == (40, "")
    assert [number for number, row in enumerate(rows) if not isinstance(row, bytes)] == [3]
    places = [
        place for part in ranges for place in row_places(part, [number for number, _ in read_rows(part, 1_000)] or [])
    ]
    assert places == [f"{file.path}, record {number}" for number in range(1, 41)]
    assert not isinstance(rows[3], BadRow)
