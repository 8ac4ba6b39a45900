"""Records: common formats are read alike, and what is wrong with a bad record is named."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.dataset.conversation import Message
from colossal_llama.dataset.records import (
    DEFAULT_CATEGORY,
    Document,
    RecordError,
    conversation_of,
    document_of,
    parse_row,
)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"source": "", "target": "x"', "broken_json"),
        (b'{"source": "", "target": "\\ud800", "category": "c"}', "broken_json"),
        (b'{"source": "", "target": "\xff", "category": "c"}', "wrong_encoding"),
        ('{"source": "", "target": "x", "category": "c"}'.encode("utf-16"), "wrong_encoding"),
        (b"[1, 2]", "not_an_object"),
        (b"3", "not_an_object"),
        (b'{"source": "", "category": "c"}', "missing_field"),
        (b'{"source": null, "target": "x", "category": "c"}', "null_field"),
        (b'{"source": "", "target": 3, "category": "c"}', "wrong_type"),
        (b'{"source": "", "target": "x", "category": ["c"]}', "wrong_type"),
        (b'{"source": "x", "target": "", "category": "c"}', "empty_target"),
        (b'{"source": "", "target": "x", "category": ""}', "empty_category"),
    ],
)
def test_bad_documents_are_named(line, reason):
    with pytest.raises(RecordError) as raised:
        document_of(parse_row(line))
    assert raised.value.reason == reason


def test_a_good_document_is_taken_as_it_is():
    line = '{"source": "", "target": "你好 <s>", "category": "c", "id": 7}'.encode()
    assert document_of(parse_row(line)) == Document("", "你好 <s>", "c")


HELLO = (Message("human", "Hi"), Message("assistant", "Hello"))


@pytest.mark.parametrize(
    ("record", "messages"),
    [
        ({"messages": [{"from": "human", "content": "Hi"}, {"from": "assistant", "content": "Hello"}]}, HELLO),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, HELLO),
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}, HELLO),
        ({"instruction": "Hi", "input": "", "output": "Hello"}, HELLO),
        ({"instruction": "Hi", "output": "Hello"}, HELLO),
        ({"instruction": "Hi", "output": "Hello", "system": ""}, HELLO),
        (
            {"instruction": "Add", "input": "1 2", "output": "3"},
            (Message("human", "Add\n\n1 2"), Message("assistant", "3")),
        ),
        (
            {"messages": [{"role": "system", "content": "S"}, {"role": "assistant", "content": "Hello"}]},
            (Message("system", "S"), HELLO[1]),
        ),
        ({"instruction": "Hi", "output": "Hello", "system": "S"}, (Message("system", "S"), *HELLO)),
    ],
)
def test_conversations_are_taken_as_people_have_them(record, messages):
    assert conversation_of(record).messages == messages
    assert conversation_of({**record, "category": "c"}).category == "c"
    assert conversation_of(record).category == DEFAULT_CATEGORY


GOOD = {"from": "human", "content": "Hi"}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"text": "x"}, "missing_field"),
        ({}, "missing_field"),
        ({"messages": "x"}, "wrong_type"),
        ({"messages": ["x"]}, "wrong_type"),
        ({"messages": []}, "no_assistant_message"),
        ({"messages": [GOOD]}, "no_assistant_message"),
        ({"messages": [GOOD, {"from": "bot", "content": "x"}]}, "unknown_role"),
        ({"messages": [GOOD, {"from": "assistant", "content": ""}]}, "empty_message"),
        ({"messages": [GOOD, {"from": "assistant", "content": None}]}, "null_field"),
        ({"messages": [GOOD, {"from": "assistant"}]}, "missing_field"),
        ({"messages": [GOOD, {"content": "x"}]}, "missing_field"),
        ({"messages": [GOOD, {"from": "assistant", "role": "user", "content": "x"}]}, "unknown_form"),
        ({"messages": [GOOD, {"from": "system", "content": "x"}, {"from": "gpt", "content": "y"}]}, "misplaced_system"),
        ({"instruction": "x", "output": ""}, "empty_message"),
        ({"instruction": "x", "output": 3}, "wrong_type"),
        ({"instruction": "x", "output": "y", "history": [["a", "b"]]}, "unknown_form"),
        ({"messages": [GOOD], "conversations": [GOOD]}, "unknown_form"),
        ({"messages": [GOOD, {"from": "gpt", "content": "x"}], "category": 3}, "wrong_type"),
    ],
)
def test_bad_conversations_are_named(record, reason):
    with pytest.raises(RecordError) as raised:
        conversation_of(record)
    assert raised.value.reason == reason


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.sampled_from(["human", "assistant", "system"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["from", "role", "content", "value", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = st.sampled_from(["messages", "conversations", "instruction", "input", "output", "system", "category", "source"])


@given(record=st.dictionaries(NAMES | st.just("target"), JSON, max_size=5))
@settings(max_examples=150, deadline=None)
def test_any_record_is_either_checked_or_refused_with_a_reason(record):
    for check in (document_of, conversation_of):
        reason = None
        try:
            check(record)
        except RecordError as error:
            reason = error.reason
        assert reason is None or reason.replace("_", "").isalpha()
