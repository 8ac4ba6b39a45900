"""Records: common formats are read alike, and what is wrong with a bad record is named."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.dataset.conversation import Message
from colossal_llama.dataset.records import (
    DEFAULT_CATEGORY,
    conversation_of,
)
from colossal_llama.dataset.role_names import RoleNames
from colossal_llama.readers import fields
from colossal_llama.readers.fields import Document, FieldOptions
from colossal_llama.readers.formats import Format
from colossal_llama.readers.listing import InputFile
from colossal_llama.readers.record import RecordError, parse_row
from colossal_llama.readers.unread_keys import MOST_COUNTED_KEYS, UNREAD_KEYS, bound_names


def document_of(record):
    return fields.document_of(record, InputFile(Path("a.jsonl"), "a.jsonl", 1, 0, Format(".jsonl")), FieldOptions())


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
        (b'{"source": "", "target": null, "category": "c"}', "null_field"),
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
        ({"instruction": "", "input": "Hi", "output": "Hello"}, HELLO),
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
        ({"messages": [GOOD, {"from": "gpt", "content": "x"}], "history": [["a", "b"]]}, "unknown_form"),
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


# ------------------------------------------------------------------ what is trained, rules of turns


def turn(role: str, content: str, **keys) -> dict:
    return {"role": role, "content": content, **keys}


def notes_of(record: dict) -> Counter:
    return Counter(conversation_of(record).notes)


SKIPPED = [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}, {"masked": True}, {"Train": "false"},
           {"train_on_turn": False}, {"loss_mask": 0}, {"is_masked": 1}, {"weight": 0, "train": None}]  # fmt: skip
TRAINED = [{"weight": 1}, {"train": True}, {"loss": 1.0}, {"masked": False}, {"weight": None}, {"tool_calls": []},
           {"reasoning_content": ""}, {"tools": "[]"}, {"train_on_inputs": False}]  # fmt: skip


@pytest.mark.parametrize("keys", SKIPPED)
def test_an_answer_that_is_not_to_be_trained_is_context(keys):
    record = {"messages": [turn("user", "a"), turn("assistant", "b", **keys), turn("user", "c"), turn("gpt", "d")]}
    assert [message.is_trained for message in conversation_of(record).messages] == [True, False, True, True]
    assert notes_of(record)["untrained_answers.marked_so"] == 1
    for rejected in ({"messages": record["messages"][:2]}, {"instruction": "a", "output": "b", **keys}):
        with pytest.raises(RecordError) as raised:
            conversation_of(rejected)
        assert raised.value.reason == "no_trained_answer"


@pytest.mark.parametrize("keys", TRAINED)
def test_a_key_that_asks_for_what_is_done_anyway_is_taken(keys):
    assert conversation_of({"messages": [turn("user", "a"), turn("assistant", "b", **keys)]}).messages[1].is_trained
    assert conversation_of({"instruction": "a", "output": "b", **keys}).messages[1].is_trained


CALL = [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"weight": 0.5}, "unsupported_weight"),
        ({"weight": "much"}, "unsupported_weight"),
        ({"weight": -1}, "unsupported_weight"),
        ({"loss_mask": [1, 0]}, "unsupported_weight"),
        ({"weight": 1, "train": False}, "unknown_form"),
        ({"train": True, "masked": True}, "unknown_form"),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 3, "train": False}]}, "unsupported_train_detail"),
        ({"tool_calls": CALL}, "unsupported_tool_calls"),
        ({"function_call": {"name": "weather"}}, "unsupported_function_call"),
        ({"toolCalls": CALL}, "unsupported_toolcalls"),
        ({"tools": CALL}, "unsupported_tools"),
        ({"functions": CALL}, "unsupported_functions"),
        ({"reasoning_content": "because"}, "unsupported_reasoning_content"),
        ({"reasoning": "because"}, "unsupported_reasoning"),
        ({"thinking": "because"}, "unsupported_thinking"),
        ({"images": ["a.png"]}, "unsupported_images"),
        ({"train_on_inputs": True}, "unsupported_train_on_inputs"),
    ],
)
def test_a_key_that_asks_for_what_is_not_supported_is_refused_by_name(keys, reason):
    for record in (
        {"messages": [turn("user", "a"), turn("assistant", "b", **keys)]},
        {"messages": [turn("user", "a"), turn("assistant", "b")], **keys},
        {"instruction": "a", "output": "b", **keys},
    ):
        with pytest.raises(RecordError) as raised:
            conversation_of(record)
        assert raised.value.reason == reason
        assert next(iter(keys)) in str(raised.value)


@pytest.mark.parametrize("name", ["loss_masked", "ignore_in_loss", "weights", "TrainThis", "mask-answer"])
def test_what_seems_to_be_a_flag_is_not_passed_over(name):
    for record in (
        {"messages": [turn("user", "a"), turn("assistant", "b", **{name: True})]},
        {"messages": [turn("user", "a"), turn("assistant", "b")], name: [1]},
    ):
        with pytest.raises(RecordError, match=name) as raised:
            conversation_of(record)
        assert raised.value.reason == "unknown_flag"
    fact = {"messages": [turn("user", "a"), turn("assistant", "b")], "training_set": "web", "mixture_weight": 0.3}
    assert notes_of(fact) == {"unread_keys.training_set": 1, "unread_keys.mixture_weight": 1}


def test_a_system_prompt_within_a_message_is_refused():
    with pytest.raises(RecordError, match="as the first message") as raised:
        conversation_of({"messages": [turn("user", "a", system_prompt="Be kind."), turn("assistant", "b")]})
    assert raised.value.reason == "unsupported_system"


def test_a_question_is_never_trained():
    assert conversation_of({"messages": [turn("user", "a", weight=0), turn("assistant", "b")]}).notes == ()
    with pytest.raises(RecordError, match="only the assistant's messages") as raised:
        conversation_of({"messages": [turn("user", "a", train=True), turn("assistant", "b")]})
    assert raised.value.reason == "trains_another_role"


@pytest.mark.parametrize(
    "name", ["system", "system_prompt", "systemPrompt", "system_message", "system_instruction", "developer", "System"]
)
def test_a_system_prompt_is_read_under_every_name(name):
    pirate = Message("system", "You are a pirate.")
    for record in (
        {"messages": [turn("user", "Hi"), turn("assistant", "Hello")]},
        {"instruction": "Hi", "output": "Hello"},
    ):
        assert conversation_of({**record, name: pirate.content}).messages == (pirate, *HELLO)
        assert conversation_of({**record, name: pirate.content}).notes == ()
        assert conversation_of({**record, name: ""}).messages == HELLO
        with pytest.raises(RecordError):
            conversation_of({**record, name: pirate.content, "preamble": "Other."})
    for role in ("system", "developer"):
        listed = [turn(role, pirate.content), turn("user", "Hi"), turn("assistant", "Hello")]
        assert conversation_of({"messages": listed}).messages == (pirate, *HELLO)


def test_an_instruction_beside_messages_is_in_one_of_them_or_refused():
    listed = [turn("user", "Translate: chat"), turn("assistant", "cat")]
    assert notes_of({"messages": listed, "instruction": "Translate"}) == {"unread_keys.instruction": 1}
    with pytest.raises(RecordError, match='name it "system"'):
        conversation_of({"messages": listed, "instruction": "Only one word."})


def test_keys_without_a_meaning_are_noted_by_name():
    listed = [turn("user", "a", id=1), turn("assistant", "b", id=2, name="Bob")]
    noted = {"unread_keys.id": 2, "unread_keys.name": 1, "unread_keys.lang": 1, "unread_keys.a?b": 1}
    assert notes_of({"messages": listed, "lang": "en", "a\x1bb": 1, "empty": None}) == noted
    assert Counter(document_of({"source": "", "target": "x", "category": "c", "id": 7}).notes) == {"unread_keys.id": 1}
    counts = Counter({f"{UNREAD_KEYS}{number}": 1 + (number < 9) for number in range(3 * MOST_COUNTED_KEYS)})
    for _ in range(2):
        bound_names(counts)
        assert counts.total() == 3 * MOST_COUNTED_KEYS + 9
        assert len(counts) == MOST_COUNTED_KEYS + 1
        assert counts[f"{UNREAD_KEYS}8"] == 2


H, A, S = turn("user", "q"), turn("assistant", "a"), turn("system", "s")


@pytest.mark.parametrize(
    ("listed", "kept", "notes"),
    [
        ([H, A, H, A], 4, {}),
        ([A, H, A], 3, {"odd_turns.answer_without_a_question": 1}),
        ([S, A], 2, {"odd_turns.answer_without_a_question": 1}),
        ([H, H, A, A], 4, {"odd_turns.same_role_again": 2}),
        ([H, A, H], 2, {"cut_turns.question_without_an_answer": 1, "documents_cut.question_without_an_answer": 1}),
        (
            [S, H, A, H, H],
            3,
            {
                "odd_turns.same_role_again": 1,
                "cut_turns.question_without_an_answer": 2,
                "documents_cut.question_without_an_answer": 1,
            },
        ),
    ],
)
def test_turns_that_do_not_alternate_follow_a_rule_and_are_noted(listed, kept, notes):
    conversation = conversation_of({"messages": listed})
    assert len(conversation.messages) == kept
    assert Counter(conversation.notes) == notes


BLANKS = [" ", "\n\t ", "\u3000", "\u200b", "\u200b" * 40, "\ufeff ", "\x00", "\u3164", "\u2800 \u2800", "\ufe0f"]


@pytest.mark.parametrize("blank", BLANKS)
def test_blank_messages_are_refused(blank):
    for listed in ([turn("user", blank), A], [H, turn("assistant", blank)], [turn("system", blank), H, A]):
        with pytest.raises(RecordError) as raised:
            conversation_of({"messages": listed})
        assert raised.value.reason == "blank_message"


def test_messages_are_numbered_as_they_are_in_the_file():
    for listed, message in (
        ([H, turn("assistant", " ")], "message 2 (from assistant)"),
        ([S, H, A], "message 1 is a system message: the record has a system prompt already"),
    ):
        with pytest.raises(RecordError) as raised:
            conversation_of({"messages": listed, "system": "You are a pirate."})
        assert message in str(raised.value)
    with pytest.raises(RecordError, match="the system prompt has nothing but blanks"):
        conversation_of({"messages": [H, A], "system": " "})


def test_roles_are_given_in_any_case():
    """A capital in --roles must not leave in what is to be dropped; names as written come first."""
    roles = RoleNames.with_given([("System", "drop"), ("AGENT", "assistant"), ("bot", "assistant"), ("Bot", "human")])
    said = [{"role": "system", "content": "S"}, {"role": "Bot", "content": "Q"}, {"role": "agent", "content": "A"}]
    conversation = conversation_of({"messages": [*said, {"role": "bot", "content": "B"}], "system": "P"}, roles)
    assert [message.role for message in conversation.messages] == ["human", "assistant", "assistant"]
    assert conversation.notes.count("dropped_messages.system") == 2
