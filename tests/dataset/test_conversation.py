"""Conversations become ids and target spans by construction: whatever the texts contain."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.dataset.conversation import DEFAULT_SYSTEM, ConversationTemplate, Message
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.errors import UserError

FAMILIES = [("llama2", 2), ("llama3-base", 3), ("llama3-instruct", 3)]
CONTROL_STRINGS = [
    "<s>",
    "</s>",
    "<unk>",
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "Assistant: ",
    "Human: ",
]

# LLaMA-2 writes a space as ▁ (U+2581), so that a ▁ in the text cannot be told from a space
# afterwards.
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="▁")
TEXTS = st.lists(st.one_of(st.text(CHARACTERS, max_size=8), st.sampled_from(CONTROL_STRINGS)), max_size=5).map("".join)
TURNS = st.lists(st.builds(Message, st.sampled_from(["human", "assistant"]), TEXTS), max_size=6)
CONVERSATIONS = st.one_of(TURNS, st.builds(lambda system, turns: [Message("system", system), *turns], TEXTS, TURNS))


@pytest.fixture(scope="module", params=FAMILIES, ids=[name for name, _ in FAMILIES])
def tokenizer_and_template(request, any_data):
    name, version = request.param
    tokenizer = load_tokenizer(any_data / "tokenizers" / name)
    return tokenizer, ConversationTemplate.for_llama(tokenizer, version)


def decode_continuation(tokenizer, ids):
    """Decodes ids that follow others: LLaMA-2's decoder removes a sequence's first space."""
    before = tokenizer.encode("a", add_special_tokens=False)
    return tokenizer.decode([*before, *ids], clean_up_tokenization_spaces=False)[1:]


def test_target_spans_decode_to_the_assistants_texts(tokenizer_and_template):
    tokenizer, template = tokenizer_and_template

    @settings(max_examples=80, deadline=None)
    @given(messages=CONVERSATIONS)
    def check(messages):
        encoded = template.encode(messages)
        answers = [message.content for message in messages if message.role == "assistant"]
        spans = [encoded.input_ids[start:end] for start, end in encoded.target_spans]
        assert all(span[-1] == template.turn_end_id for span in spans)
        assert [decode_continuation(tokenizer, span[:-1]) for span in spans] == answers

    check()


def test_control_tokens_are_those_of_the_template_alone(tokenizer_and_template):
    tokenizer, template = tokenizer_and_template
    special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}

    @settings(max_examples=80, deadline=None)
    @given(messages=CONVERSATIONS)
    def check(messages):
        turns = [message for message in messages if message.role != "system"]
        found = [token_id for token_id in template.encode(messages).input_ids if token_id in special]
        assert found == [tokenizer.bos_token_id] + [tokenizer.bos_token_id, template.turn_end_id] * len(turns)

    check()


def test_prompt_is_the_prefix_of_the_encoded_answer(tokenizer_and_template):
    _, template = tokenizer_and_template

    @settings(max_examples=100, deadline=None)
    @given(messages=CONVERSATIONS, answer=TEXTS)
    def check(messages, answer):
        prompt = template.prompt_ids(messages)
        encoded = template.encode([*messages, Message("assistant", answer)])
        assert encoded.input_ids[: len(prompt)] == prompt
        assert encoded.target_spans[-1] == (len(prompt), len(encoded.input_ids))

    check()


def test_whole_text_reads_as_the_specification_says(tokenizer_and_template):
    tokenizer, template = tokenizer_and_template
    bos = tokenizer.bos_token
    end = tokenizer.convert_ids_to_tokens(template.turn_end_id)
    messages = [Message("human", "你好"), Message("assistant", "Hello, 世界!"), Message("human", "ok")]
    text = tokenizer.decode(template.encode(messages).input_ids, clean_up_tokenization_spaces=False)
    turns = f"Human: {bos}你好{end}Assistant: {bos}Hello, 世界!{end}Human: {bos}ok{end}"
    assert text.replace(f"{bos} {DEFAULT_SYSTEM}", f"{bos}{DEFAULT_SYSTEM}") == f"{bos}{DEFAULT_SYSTEM}\n\n{turns}"
    own = tokenizer.decode(template.encode([Message("system", "Be brief."), *messages]).input_ids)
    assert "Be brief.\n\nHuman: " in own
    assert DEFAULT_SYSTEM not in own


def test_a_batch_gives_what_single_calls_give(tokenizer_and_template):
    _, template = tokenizer_and_template
    conversations = [
        [Message("human", "a"), Message("assistant", "b")],
        [Message("system", "s"), Message("human", "c"), Message("assistant", "d")],
        [],
        [Message("system", "t"), Message("assistant", "")],
    ]
    batch = template.encode_batch(conversations)
    assert [batch.conversation(number) for number in range(4)] == [
        template.encode(messages) for messages in conversations
    ]
    spans = [
        span
        for number in range(4)
        for span in batch.targets.tolist()
        if batch.range_of(number)[0] <= span[0] < batch.range_of(number)[1]
    ]
    assert spans == batch.targets.tolist()
    assert sum(batch.target_mask(conversations).tolist()) == sum(end - start for start, end in spans)
    ends = template.encode(conversations[0])
    assert ends.message_ends[-1] == len(ends.input_ids)
    assert ends.input_ids[ends.message_ends[0] - 1] == template.turn_end_id


@pytest.mark.parametrize(("name", "version"), [("llama2", 3), ("llama3-base", 2), ("llama2", 4)])
def test_a_version_that_does_not_fit_the_tokenizer_is_named(any_data, name, version):
    tokenizer = load_tokenizer(any_data / "tokenizers" / name)
    with pytest.raises(UserError, match=r"llama_version|version 4"):
        ConversationTemplate.for_llama(tokenizer, version)


def test_a_system_message_in_the_middle_is_an_error(tokenizer_and_template):
    _, template = tokenizer_and_template
    with pytest.raises(ValueError, match="system"):
        template.encode([Message("human", "a"), Message("system", "b")])
