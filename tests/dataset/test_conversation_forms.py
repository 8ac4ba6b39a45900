"""Forms of public fine-tuning data: the same conversation is read from each, or one is refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.dataset.conversation import Message
from colossal_llama.dataset.records import conversation_of
from colossal_llama.inference.prompts import prompt_messages
from colossal_llama.readers.record import RecordError

HI, HELLO, BYE, GOODBYE = (
    Message("human", "Hi"),
    Message("assistant", "Hello"),
    Message("human", "Bye"),
    Message("assistant", "Goodbye"),
)
ONE, TWO = (HI, HELLO), (HI, HELLO, BYE, GOODBYE)
SUM = (Message("human", "Add\n\n1 2"), Message("assistant", "3"))
SYSTEM = Message("system", "Be kind.")
TEXTS = ["Hi", "Hello", "Bye", "Goodbye"]


def listed(role="role", content="content", names=("user", "assistant"), texts=TEXTS) -> list[dict]:
    return [{role: names[number % 2], content: text} for number, text in enumerate(texts)]


def parts(*texts) -> list[dict]:
    return [{"type": "text", "text": text} for text in texts]


MOSS = {
    "conversation_id": 1,
    "meta_instruction": "Be kind.\n",
    "num_turns": 2,
    "chat": {
        "turn_2": {"Human": "<|Human|>: Bye<eoh>\n", "MOSS": "<|MOSS|>: Goodbye<eom>\n"},
        "turn_1": {
            "Human": "<|Human|>: Hi<eoh>\n",
            "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n",
            "Commands": "<|Commands|>: None<eoc>\n",
            "Tool Responses": "<|Results|>: None<eor>\n",
            "MOSS": "<|MOSS|>: Hello<eom>\n",
        },
    },
}
TREE = {
    "message_tree_id": "t",
    "prompt": {
        "text": "Hi",
        "role": "prompter",
        "replies": [
            {"text": "Worse", "role": "assistant", "rank": 1, "replies": []},
            {
                "text": "Hello",
                "role": "assistant",
                "rank": 0,
                "replies": [
                    {
                        "text": "Bye",
                        "role": "prompter",
                        "rank": None,
                        "replies": [{"text": "Goodbye", "role": "assistant"}],
                    }
                ],
            },
        ],
    },
}
FORMS = [
    ({"id": "x_0", "conversations": listed("from", "value", ("human", "gpt"))}, TWO),
    ({"id": "x_0", "conversations": listed("from", "value", ("user", "chatgpt"))}, TWO),
    ({"conversations": listed("from", "value", ("human", "bing"))}, TWO),
    ({"conversations": listed("from", "value", ("human", "bard"))}, TWO),
    ({"conversations": [{"from": "system", "value": "Be kind."}, *listed("from", "value")]}, (SYSTEM, *TWO)),
    ({"conversations": listed("from", "value", ("Human", "ASSISTANT "))}, TWO),
    ({"messages": [{"role": "user", "content": parts("H", "i")}, {"role": "assistant", "content": "Hello"}]}, ONE),
    ({"messages": [{"role": "system", "content": parts("Be kind.")}, *listed()]}, (SYSTEM, *TWO)),
    ({"conversation": listed(), "model": "m", "turn": 2}, TWO),
    ({"dialogue": listed("speaker", "text")}, TWO),
    ({"messages": json.dumps(listed())}, TWO),
    ({"items": listed("from", "value"), "messages": None}, TWO),
    ({"conversation": [{"human": "Hi", "assistant": "Hello"}, {"human": "Bye", "assistant": "Goodbye"}]}, TWO),
    ({"conversation": [{"input": "Hi", "output": "Hello"}, {"input": "Bye", "output": "Goodbye"}]}, TWO),
    ({"conversations": [{"question": "Hi", "answer": "Hello"}]}, ONE),
    ({"data": TEXTS, "id": "0"}, TWO),
    ({"conversations": TEXTS[:2], "source": "stackexchange"}, ONE),
    ({"instruction": "Bye", "input": "", "output": "Goodbye", "history": [["Hi", "Hello"]]}, TWO),
    ({"instruction": "Bye", "output": "Goodbye", "history": listed()[:2]}, TWO),
    ({"prompt": "Bye", "response": "Goodbye", "history": [["Hi", "Hello"]], "system": "Be kind."}, (SYSTEM, *TWO)),
    ({"prompt": "Hi", "completion": "Hello"}, ONE),
    ({"prompt": "Hi", "response": "Hello"}, ONE),
    ({"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello"}]}, ONE),
    ({"prompt": listed()[:3], "completion": listed()[3:]}, (HI, HELLO._replace(is_trained=False), BYE, GOODBYE)),
    ({"question": "Hi", "answer": "Hello"}, ONE),
    ({"Question": "Hi", "ANSWER": "Hello"}, ONE),
    ({"id": "f", "system_prompt": "Be kind.", "question": "Hi", "response": "Hello"}, (SYSTEM, *ONE)),
    ({"query": "Hi", "response": "Hello", "type": "a"}, ONE),
    ({"kind": "a", "input": "Hi", "target": "Hello"}, ONE),
    ({"input": "Hi", "output": "Hello"}, ONE),
    ({"inputs": "Hi", "targets": "Hello"}, ONE),
    ({"problem": "Hi", "solution": "Hello"}, ONE),
    ({"problem": "Hi", "solution": "So Hello", "answer": "Hello"}, (HI, Message("assistant", "So Hello"))),
    ({"problem": "Hi", "solution": "So 42.", "answer": 42}, (HI, Message("assistant", "So 42."))),
    ({"instruction": "Hi", "context": "", "response": "Hello", "category": "open_qa"}, ONE),
    ({"instruction": "Add", "context": "1 2", "response": "3"}, SUM),
    ({"instruction": "Add", "input": "1 2", "response": "3"}, SUM),
    ({"question": "Add", "context": "1 2", "answer": "3"}, SUM),
    ({"id": 1, "context": "1 2", "question": "Add", "answers": {"text": ["3"], "answer_start": [4]}}, SUM),
    ({"question": "Hi", "answer": "Hello", "answers": ["a", "b"]}, ONE),
    ({"system": "Be kind.", "user": "Hi", "assistant": "Hello"}, (SYSTEM, *ONE)),
    ({"prompt": "Hi", "completion": "Hello", "user": "u1"}, ONE),
    ({"prompt": None, "completion": None, "conversation": listed(), "history": None}, TWO),
    ({"prompt": "Hi", "completion": "Hello", "conversation": [], "data": {"a": 1}, "turns": 1}, ONE),
    (MOSS, (SYSTEM, *TWO)),
    (TREE, TWO),
    ({"topic": "t", "input": "[|Human|] Hi\n[|AI|] Hello\n[|Human|] Bye\n[|AI|] Goodbye\n[|Human|] "}, TWO),
    ({"input": "Be kind.\n[|Human|] Hi\n[|AI|] Hello"}, (SYSTEM, *ONE)),
    ({"text": "### Human: Hi### Assistant: Hello### Human: Bye### Assistant: Goodbye"}, TWO),
]  # fmt: skip


@pytest.mark.parametrize(("record", "messages"), FORMS)
def test_every_form_is_read(record, messages):
    assert conversation_of(record).messages == messages


@pytest.mark.parametrize(("record", "messages"), FORMS)
def test_every_form_is_a_prompt_with_its_last_answer_or_without(record, messages):
    wanted = [message._replace(is_trained=True) for message in messages[:-1]]
    assert [message._replace(is_trained=True) for message in prompt_messages(record)] == wanted


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "Hi"},
        {"question": "Hi"},
        {"prompt": "Hi", "id": 3},
        {"input": "Hi", "kind": "a"},
        {"prompt": [{"role": "user", "content": "Hi"}]},
        {"messages": [{"role": "user", "content": parts("Hi")}]},
        {"conversation": [{"role": "user", "content": "Hi"}], "prompt": "Hi"},
    ],
)
def test_a_prompt_needs_no_answer(record):
    assert prompt_messages(record) == [HI]


@pytest.mark.parametrize(
    ("record", "reason", "said"),
    [
        ({"prompt": "Hi"}, "missing_field", '"prompt" has no answer'),
        ({"prompt": "Hi", "completion": ""}, "empty_message", "message 2"),
        ({"prompt": "Hi", "completion": None}, "null_field", '"completion" is null'),
        ({"question": "", "answer": "Hello"}, "empty_message", "message 1"),
        ({"question": "Hi", "answer": 42}, "wrong_type", '"answer" is a number'),
        ({"question": "Hi", "answers": {"text": []}}, "no_answer", "has no answer in its context"),
        ({"question": "Hi", "answers": {"text": [4]}}, "wrong_type", "lists what is no string"),
        ({"question": "Hi", "answers": ["A", "B"]}, "missing_field", '"question" has no answer'),
        ({"question": "Hi", "answer": ["Hello", "Hi"]}, "wrong_type", "message 1 is a string"),
        ({"question": "Hi", "prompt": "Other", "answer": "Hello"}, "unknown_form", '"prompt" and "question" may be'),
        ({"question": "Hi", "answer": "Hello", "response": "Other"}, "unknown_form", '"response" and "answer" may be'),
        ({"question": "Hi", "answer": "Hello", "conversation": listed()}, "unknown_form", "several conversations"),
        ({"data": listed(), "conversation": listed()}, "unknown_form", "several conversations"),
        ({"prompt": "Hi", "chosen": "Hello", "rejected": "No"}, "unsupported_chosen", "preferences"),
        ({"question": "Hi", "context": {"a": 1}, "answer": "x"}, "wrong_type", '"context" is an object'),
        ({"question": "Hi", "answer": "Hello", "history": "Bye"}, "wrong_type", '"history" is a string'),
        ({"question": "Hi", "answer": "Hello", "history": [["Bye"]]}, "wrong_type", "exchange 1 has 1 texts"),
        ({"question": "Hi", "answer": "Hello", "history": [["Bye", 3]]}, "wrong_type", "text 2 of exchange 1"),
        ({"data": ["Hi", {"a": 1}]}, "wrong_type", 'text 2 of "data" is an object'),
        ({"data": [["Hi", "Hello"], "Bye"]}, "wrong_type", "exchange 2 is a string"),
        ({"data": [{"question": "Hi", "answer": "Hello"}, {"a": 1}]}, "missing_field", "exchange 2 is no question"),
        ({"data": [{"question": "Hi", "answer": "Hello", "train": False}]}, "no_trained_answer", "every answer"),
        ({"messages": "[{'role': 'user'}]"}, "wrong_type", '"messages" is a string'),
        ({"chat": {"turn_1": "Hi"}}, "wrong_type", '"turn_1" of "chat" is a string'),
        ({"chat": {"turn_1": {"Human": "Hi", "Commands": "Search(x)"}}}, "unsupported_tools", '"Commands" of "turn_1"'),
        ({"prompt": {"text": "Hi", "role": "prompter", "replies": ["x"]}}, "wrong_type", '"replies"'),
        ({"message_id": "a", "text": "Hi", "role": "prompter"}, "single_message", "is one message"),
        ({"text": "Hi", "": [{"a": 1}]}, "missing_field", "but"),
    ],
)  # fmt: skip
def test_what_is_no_form_or_several_is_refused_by_name(record, reason, said):
    with pytest.raises(RecordError) as raised:
        conversation_of(record)
    assert raised.value.reason == reason
    assert said in str(raised.value)


def test_what_is_not_read_of_a_form_is_noted():
    notes = conversation_of({"problem": "Hi", "solution": "So Hello", "answer": "Hello", "level": 5}).notes
    assert sorted(notes) == ["unread_keys.answer", "unread_keys.level"]
    assert "cut_turns.other_replies" in conversation_of(TREE).notes
    asked = {"question": "Hi", "answers": {"text": ["Hello", "Hi", "Hello"], "answer_start": [1, 2, 1]}}
    assert conversation_of(asked).notes == ("cut_turns.other_answers",)
    notes = conversation_of({"instruction": "Hi", "output": "Hello", "question": "Other"}).notes
    assert notes == ("unread_keys.question",)
    trained = conversation_of(
        {"data": [{"input": "Hi", "output": "Hello", "loss": 0}, {"input": "Bye", "output": "x"}]}
    )
    assert [message.is_trained for message in trained.messages] == [True, False, True, True]


def test_parts_other_than_text_are_refused_by_their_type():
    for kind in ("image_url", "input_audio", "file", "tool_use"):
        with pytest.raises(RecordError, match=f"part 2 of message 1 is of type '{kind}'") as raised:
            conversation_of(
                {"messages": [{"role": "user", "content": [*parts("Hi"), {"type": kind, kind: "x"}]}, *listed()[1:]]}
            )
        assert raised.value.reason == "unsupported_part"
    for part, reason in (
        (["Hi"], "wrong_type"),
        ({"text": "Hi"}, "missing_field"),
        ({"type": "text"}, "missing_field"),
        ({"type": "text", "text": 3}, "wrong_type"),
        ({"type": "text", "text": "Hi", "train": True}, "unsupported_part_flag"),
        ({"type": "text", "text": "Hi", "image_url": {"url": "x"}}, "unsupported_image_url"),
    ):
        with pytest.raises(RecordError) as raised:
            conversation_of({"messages": [{"role": "user", "content": [part]}, *listed()[1:]]})
        assert raised.value.reason == reason
    texts = {"messages": [{"role": "user", "content": ["H", *parts("i")]}, *listed()[1:]]}
    assert conversation_of(texts).messages == TWO
    fields = {"type": "text", "text": "Hi", "image_url": None, "cache_control": {"type": "ephemeral"}}
    noted = conversation_of({"messages": [{"role": "user", "content": [fields]}, *listed()[1:]]})
    assert noted.messages == TWO
    assert noted.notes == ("unread_keys.cache_control",)


def test_published_sharegpt_follows_the_rules_of_turns():
    odd = [("gpt", "Continue"), ("human", "Hi"), ("gpt", "Hello"), ("gpt", "Hello?"), ("human", "Bye")]
    record = {"id": "a_1", "conversations": [{"from": role, "value": text} for role, text in odd]}
    conversation = conversation_of(record)
    assert [message.content for message in conversation.messages] == ["Continue", "Hi", "Hello", "Hello?"]
    assert sorted(conversation.notes) == [
        "cut_turns.question_without_an_answer",
        "documents_cut.question_without_an_answer",
        "odd_turns.answer_without_a_question",
        "odd_turns.same_role_again",
        "unread_keys.id",
    ]
    record["conversations"][2]["value"] = ""
    with pytest.raises(RecordError) as raised:
        conversation_of(record)
    assert raised.value.reason == "empty_message"


@pytest.mark.parametrize(
    ("record", "columns", "messages"),
    [
        ({"ask": "Hi", "reply": "Hello"}, ("ask", "reply"), ONE),
        ({"problem": "Hi", "solution": "Hello", "answer": "42"}, ("problem", "solution"), ONE),
        ({"problem": "Hi", "solution": "So", "answer": "Hello"}, (None, "answer"), ONE),
        ({"question": "Hi", "prompt": "x", "response": "Hello"}, ("question", None), ONE),
        ({"ask": "Hi", "response": "Hello"}, ("ask", None), ONE),
        ({"messages": listed(), "instruction": "Hi", "output": "Hello"}, ("instruction", "output"), ONE),
        ({"input": "Add", "context": "1 2", "target": "3"}, ("input", "target"), SUM),
        ({"output": "Hi", "input": "Hello"}, ("output", "input"), ONE),
        ({"ask": "Bye", "reply": "Goodbye", "history": [["Hi", "Hello"]]}, ("ask", "reply"), TWO),
    ],
)
def test_columns_of_question_and_answer_may_be_named(record, columns, messages):
    assert conversation_of(record, columns=columns).messages == messages


@pytest.mark.parametrize(
    ("record", "columns", "said"),
    [
        ({"ask": "Hi"}, ("ask", "reply"), '"reply" of --target_field is missing'),
        ({"ask": "Hi"}, ("ask", None), "no column is known as the answer: name it by --target_field"),
        ({"reply": "Hi"}, (None, "reply"), "no column is known as the question: name it by --source_field"),
        ({"ask": "Hi", "answer": "a", "output": "b"}, ("ask", None), "may be the answer"),
        ({"ask": "Hi", "reply": None}, ("ask", "reply"), '"reply" is null'),
    ],
)
def test_named_columns_that_are_not_there_are_said(record, columns, said):
    with pytest.raises(RecordError, match=said):
        conversation_of(record, columns=columns)


KEYS = st.sampled_from(
    ["messages", "conversation", "data", "chat", "prompt", "instruction", "output", "completion", "question", "answer",
     "input", "context", "history", "text", "system", "human", "assistant", "meta_instruction", ""]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", "Hi", "[", "[|Human|] a [|AI|] b", "gpt"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            KEYS | st.sampled_from(["role", "content", "from", "value", "type", "replies", "rank", "turn_1", "Human"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)  # fmt: skip


@given(record=st.dictionaries(KEYS, VALUES, max_size=5))
@settings(max_examples=300, deadline=None)
def test_any_record_is_read_or_refused_with_a_reason(record):
    for read in (conversation_of, prompt_messages):
        reason = None
        try:
            read(record)
        except RecordError as error:
            reason = error.reason
        assert reason is None or reason.replace("_", "").isalpha()
