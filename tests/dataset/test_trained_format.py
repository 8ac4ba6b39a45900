"""The template that a trained model carries: transformers makes our ids of it, whatever is said."""

import json
import random
import shutil

import jinja2
import pytest
from transformers import AutoTokenizer

from colossal_llama.dataset.chat_template import ChatTemplate, own_template
from colossal_llama.dataset.conversation import DEFAULT_SYSTEM, LABELS, ConversationTemplate, Message
from colossal_llama.dataset.trained_format import (
    builtin_version,
    set_trained_template,
    template_name,
    trained_format,
    trained_template,
)
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.transformers_version import is_transformers_5

NAMES = {"human": "user", "assistant": "assistant", "system": "system"}
VERSIONS = {"llama2": 2, "llama3-base": 3, "llama3-instruct": 3}
WORDS = ["Hi", " ", "  x", "\n", "\n\n", "\t", "\r\n", "▁", "你好", "𠀀", "👨‍👩‍👧", "é", "'s", "...", "12345", "\u3000"]
WORDS += ["<", "s>", "</", "[INST]", "Human: ", "Assistant:", "{{ x }}", "{% if %}", "\\n", '"', "_"]


def listed(messages) -> list[dict]:
    return [{"role": NAMES[message.role], "content": message.content} for message in messages]


def conversations(count: int, seed: int = 0):
    """Random conversations of odd texts; some have a system message, some end with a question."""
    numbers = random.Random(seed)

    def text() -> str:
        ranges = [(32, 127), (0xA0, 0x3000), (0x4E00, 0x9FFF), (0x1F300, 0x1F600)]
        pieces = [numbers.choice(WORDS) for _ in range(numbers.randrange(6))]
        pieces += [chr(numbers.randrange(*numbers.choice(ranges))) for _ in range(numbers.randrange(3))]
        numbers.shuffle(pieces)
        return "".join(pieces)

    made = 0
    while made < count:
        messages = [Message("system", text())] if numbers.random() < 0.5 else []
        for _ in range(numbers.randrange(1, 5)):
            messages += [Message("human", text()), Message("assistant", text())]
        if numbers.random() < 0.5:
            messages.pop()
        if not any(token in message.content for message in messages for token in ("<s>", "</s>")):
            made += 1
            yield messages


@pytest.fixture(scope="module", params=VERSIONS)
def family(request, any_data):
    """A tokenizer, the built-in format, and the format as a model is saved with it."""
    tokenizer = load_tokenizer(any_data / "tokenizers" / request.param)
    template = ConversationTemplate.for_llama(tokenizer, VERSIONS[request.param])
    return tokenizer, template, trained_format(template.describe(), tokenizer)


def prompt_ids(tokenizer, messages, source=None) -> list[int]:
    return tokenizer.apply_chat_template(
        messages, chat_template=source, add_generation_prompt=True, tokenize=True, return_dict=False
    )


def test_transformers_makes_our_ids_of_every_conversation(family):
    tokenizer, template, saved = family
    assert saved.is_exact
    assert saved.turn_end_id == template.turn_end_id
    for messages in conversations(300):
        assert prompt_ids(tokenizer, listed(messages), saved.template) == template.prompt_ids(messages), messages


def test_the_marks_enclose_the_answers(family):
    tokenizer, template, saved = family
    for messages in conversations(100, seed=1):
        encoded = template.encode(messages)
        theirs = tokenizer.apply_chat_template(
            listed(messages), chat_template=saved.template, return_assistant_tokens_mask=True, return_dict=True
        )
        assert theirs["input_ids"] == encoded.input_ids
        in_answer = {position for span in encoded.target_spans for position in range(*span)}
        marked = {position for position, mask in enumerate(theirs["assistant_masks"]) if mask}
        assert marked <= in_answer
        if all(ord(character) < 128 for message in messages for character in message.content):
            assert marked == in_answer  # of several byte tokens of one character transformers marks the first alone


def test_our_own_reader_of_templates_takes_it(family):
    tokenizer, template, saved = family
    jinja = ChatTemplate(tokenizer, saved.template, "the saved one", "2025-01-31")
    assert jinja.turn_end_id == template.turn_end_id
    quoted = [Message("human", f"What is {tokenizer.bos_token}?"), Message("assistant", "A </s> or <|eot_id|>")]
    for messages in [quoted, *conversations(50, seed=2)]:
        assert jinja.prompt_ids(messages) == template.prompt_ids(messages)


@pytest.mark.skipif(is_transformers_5(), reason="transformers 5 has no slow tokenizer of LLaMA-2")
def test_the_slow_tokenizer_agrees(any_data):
    directory = any_data / "tokenizers" / "llama2"
    tokenizer = load_tokenizer(directory)
    template = ConversationTemplate.for_llama(tokenizer, 2)
    source = trained_format(template.describe(), tokenizer).template
    slow = AutoTokenizer.from_pretrained(directory, use_fast=False)
    for messages in conversations(50, seed=3):
        assert prompt_ids(slow, listed(messages), source) == template.prompt_ids(messages)


@pytest.mark.parametrize("names", [("user", "assistant", "system"), ("human", "gpt", "developer")])
def test_roles_go_by_the_names_that_preparation_reads(family, names):
    tokenizer, template, saved = family
    user, assistant, system = names
    messages = [Message("system", "Be kind."), Message("human", "Hi"), Message("assistant", "Hello")]
    given = [{"role": system, "content": "Be kind."}, {"role": user, "content": "Hi"}]
    given += [{"role": assistant, "content": "Hello"}]
    assert prompt_ids(tokenizer, given, saved.template) == template.prompt_ids(messages)
    # Preparation takes two messages of one role in a row, and an answer without a question.
    odd = [Message("assistant", "Hello"), Message("human", "a"), Message("human", "b")]
    assert prompt_ids(tokenizer, listed(odd), saved.template) == template.prompt_ids(odd)


@pytest.mark.parametrize(
    ("roles", "content", "said"),
    [
        (["user", "system"], "x", "a system message may only come first"),
        (["system", "system", "user"], "x", "a system message may only come first"),
        (["user", "tool"], "x", "the roles are user and assistant"),
        (["user", "assistant"], None, "must be a string"),
        (["system", "user"], [{"type": "text", "text": "x"}], "must be a string"),
        (["user"], {"text": "x"}, "must be a string"),
    ],
)
def test_what_our_format_refuses_the_template_refuses(family, roles, content, said):
    tokenizer, _, saved = family
    with pytest.raises(jinja2.TemplateError, match=said):
        prompt_ids(tokenizer, [{"role": role, "content": content} for role in roles], saved.template)


def test_line_ends_and_indentation_do_not_matter(family):
    """Programs differ in trim_blocks and lstrip_blocks."""
    tokenizer, _, saved = family
    messages = listed(next(conversations(1, seed=4)))
    texts = set()
    for trim in (False, True):
        environment = jinja2.Environment(trim_blocks=trim, lstrip_blocks=trim, keep_trailing_newline=not trim)
        source = saved.template.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
        texts.add(environment.from_string(source).render(messages=messages, bos_token=tokenizer.bos_token))
    texts.add(tokenizer.apply_chat_template(messages, chat_template=saved.template, tokenize=False))
    assert len(texts) == 1


@pytest.mark.parametrize("setting", [{"legacy": True}, {"legacy": False, "add_prefix_space": False}])
def test_other_kinds_of_llama2_tokenizers(any_data, tmp_path, setting):
    """Without a space before the first word the template writes none; the older kind puts one
    before every message, which no template prevents, and which is therefore said.
    """
    shutil.copytree(any_data / "tokenizers" / "llama2", tmp_path / "llama2")
    path = tmp_path / "llama2" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    tokenizer = load_tokenizer(tmp_path / "llama2")
    template = ConversationTemplate.for_llama(tokenizer, 2)
    saved = trained_format(template.describe(), tokenizer)
    assert saved.is_exact == (not setting["legacy"])
    if saved.is_exact:
        for messages in conversations(50, seed=5):
            assert prompt_ids(tokenizer, listed(messages), saved.template) == template.prompt_ids(messages)


def test_a_template_is_trained_until_it_is_edited(family, tmp_path):
    tokenizer, template, saved = family
    tokenizer.save_pretrained(tmp_path / "before")
    copy = load_tokenizer(tmp_path / "before")
    copy.chat_template = {"default": "{{ messages }}", "rag": "{{ documents }}"}
    assert trained_template(copy) is None
    set_trained_template(copy, saved.template)
    assert own_template(copy) == copy.chat_template == saved.template
    copy.save_pretrained(tmp_path / "after", save_jinja_files=False)
    config = json.loads((tmp_path / "after" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["chat_template"] == saved.template
    again = load_tokenizer(tmp_path / "after")
    assert trained_template(again) == saved.template
    messages = next(conversations(1, seed=6))
    assert prompt_ids(again, listed(messages)) == template.prompt_ids(messages)
    again.chat_template += " "
    assert trained_template(again) is None


def test_other_templates_of_one_name_stay_beside_one_that_is_trained_on(family):
    tokenizer, _, saved = family
    tokenizer.chat_template = {"default": saved.template, "tool_use": "{{ tools }}"}
    set_trained_template(tokenizer, saved.template)
    assert set(tokenizer.chat_template) == {"default", "tool_use"}
    assert trained_template(tokenizer) == saved.template
    tokenizer.chat_template = None


def test_unknown_descriptions_give_no_template(family):
    tokenizer, template, saved = family
    known = template.describe()
    assert builtin_version(saved.template) == {"</s>": 2, "<|eot_id|>": 3}[known["turn_end"]]
    assert known["turn_end"] in template_name(saved.template)
    wrong = [{}, {"kind": "other", "turn_end_id": 2}, known | {"turn_end_id": "2"}, known | {"labels": {"human": "a"}}]
    wrong += [known | {"system": None}, {"kind": "jinja", "turn_end_id": 2}]
    assert [trained_format(description, tokenizer) for description in wrong] == [None] * len(wrong)
    assert known["system"] == DEFAULT_SYSTEM
    assert known["labels"] == LABELS
