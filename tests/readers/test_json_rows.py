"""JSON files of every shape give their records in bounded memory; what is none is named."""

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.readers.json_rows import split_values
from colossal_llama.readers.line_reader import LongLine
from tests.support.read_back import read_back, written

TEXTS = st.text(st.sampled_from('ab"\\{}[],:\n é'), max_size=12)
VALUES = st.recursive(
    TEXTS | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def _blocks(content: bytes, size: int) -> list[bytes]:
    return [content[start : start + size] for start in range(0, len(content), size)]


@given(values=st.lists(VALUES, max_size=5), indent=st.none() | st.integers(0, 2), size=st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_arrays_are_split_into_their_elements_however_they_are_cut(values, indent, size):
    for ascii_alone in (True, False):
        content = json.dumps(values, indent=indent, ensure_ascii=ascii_alone).encode()
        found = list(split_values(_blocks(content, size), 1000))
        assert [json.loads(value) for value, _ in found] == values
        assert all(is_element for _, is_element in found)


@given(values=st.lists(st.dictionaries(TEXTS, VALUES, max_size=3), max_size=4), size=st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_objects_and_arrays_one_after_another_are_split(values, size):
    content = " \n".join(json.dumps(value, indent=1) for value in values) + json.dumps(values)
    found = list(split_values(_blocks(content.encode(), size), 1000))
    assert [json.loads(value) for value, _ in found] == [*values, *values]


@given(values=st.lists(VALUES, min_size=1, max_size=4), size=st.integers(1, 9), bound=st.integers(0, 30))
@settings(max_examples=100, deadline=None)
def test_a_value_beyond_the_bound_is_passed_over_and_measured(values, size, bound):
    texts = [json.dumps(value).encode() for value in values]
    found = [value for value, _ in split_values(_blocks(b"[" + b",".join(texts) + b"]", size), bound)]
    assert [len(value) for value in found] == [len(text) for text in texts]
    for value, text in zip(found, texts, strict=True):
        assert isinstance(value, LongLine) is (len(text) > bound)


def test_memory_does_not_grow_with_the_array_or_with_a_value():
    record = json.dumps({"text": "x" * 1000}).encode()
    for blocks in (
        (b"[" if not n else b"," + b",".join([record] * 100) for n in range(300)),  # 30 MB of records
        (b'[{"text": "' if not n else b"x" * (1 << 16) for n in range(500)),  # 32 MB of one
    ):
        tracemalloc.start()
        with pytest.raises(Exception, match="it ends inside"):
            for _ in split_values(blocks, 1 << 20):
                pass
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()


RECORD = {"text": "A", "category": "c"}


@pytest.mark.parametrize(
    "content",
    [
        json.dumps([RECORD, RECORD]),
        json.dumps([RECORD, RECORD], indent=4),
        f"{json.dumps(RECORD)}\n{json.dumps(RECORD)}\n",
        f"\n\n{json.dumps(RECORD)}\r\n\r\n{json.dumps(RECORD)}",
        f"{json.dumps(RECORD, indent=2)}\n{json.dumps(RECORD, indent=2)}",
        f"{json.dumps([RECORD])}\n{json.dumps([RECORD])}",
        f"\ufeff[{json.dumps(RECORD)},\n{json.dumps(RECORD)},\n]\n",
        f"\ufeff{json.dumps(RECORD)}\n{json.dumps(RECORD)}",
    ],
)
def test_every_shape_of_two_records_is_read(tmp_path, content):
    assert read_back(written(tmp_path, "a.json", content.encode())) == ([RECORD, RECORD], [])


def test_one_object_is_a_record(tmp_path):
    for record in (
        RECORD,
        {"text": "A" * 50, "tags": [{"name": "x"}]},
        {"messages": [{"role": "user", "content": "x" * 99}, {"role": "assistant", "content": "y"}]},
        {"conversations": [{"from": "human", "value": "x" * 99}, {"from": "gpt", "value": "y"}]},
    ):
        for indent in (None, 2):
            content = json.dumps(record, indent=indent).encode()
            assert read_back(written(tmp_path, "a.json", content)) == ([record], [])


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        ({"data": [RECORD, RECORD]}, "jq -c '.\"data\"[]'"),
        ({"version": "1.0", "rows": [RECORD] * 3}, "jq -c '.\"rows\"[]'"),
        ({"1": RECORD, "2": RECORD}, "jq -c '.[]'"),
        ({"text": {"0": "A", "1": "B"}, "category": {"0": "A", "1": "B"}}, 'orient="records"'),
        ({"text": ["A", "B"], "category": ["c", "c"]}, 'orient="records"'),
        ({"text": "x" * 3000}, "raise --max_line_mb"),
    ],
)
def test_an_object_around_the_records_is_refused_with_what_to_do(tmp_path, content, remedy):
    for indent in (None, 1):
        path = written(tmp_path, "a.json", json.dumps(content, indent=indent).encode())
        records, (problem,) = read_back(path, max_bytes=2000)
        assert records == []
        assert problem.startswith("a.json, record 1: unusable_file: ")
        assert remedy in problem


@pytest.mark.parametrize(
    ("content", "count", "expected"),
    [
        (b'["A", 1, null, {"text": "B"}]', 1, ["record 1: not_an_object", "record 2: not_an", "record 3: not_an"]),
        (b'[{"text": NaN}, {"text": "B"}]', 1, ["record 1: broken_json"]),
        (b'[{"text": "A"}, {"text": "B', 1, ["record 2: damaged_file: ", "it ends inside record 2, at byte 27"]),
        (b'[{"text": "A"}, ', 1, ["record 2: damaged_file: ", "inside the array, after record 1"]),
        (b'[{"text": "A"}]]', 1, ["record 2: damaged_file: ", "']' at byte 15 closes nothing"]),
        (b'[{"text": "A"}] and so on', 1, ["record 2: damaged_file: ", "it is no JSON: at byte 16"]),
        (b"<!DOCTYPE html>", 0, ["record 1: unusable_file: ", "it is no JSON: at byte 0 there is b'<!DOCTYPE html>'"]),
        (b'{"text": "A"}\n{"text": \n{"text": "B"}', 2, ["a.json:2: broken_json"]),
        (b"[" * 9999, 0, ["it ends inside record 1"]),
        (b'[{"a":' * 2000 + b"1" + b"}]" * 2000, 0, ["record 1: broken_json"]),
    ],
)
def test_what_is_no_record_is_named_and_the_others_are_read(tmp_path, content, count, expected):
    records, refused = read_back(written(tmp_path, "a.json", content))
    assert len(records) == count
    for part in expected:
        assert part in "\n".join(refused)


def test_empty_files_have_no_records(tmp_path):
    for content in (b"", b" \n", b"[]", b"[\n]\n"):
        assert read_back(written(tmp_path, "a.json", content)) == ([], [])
