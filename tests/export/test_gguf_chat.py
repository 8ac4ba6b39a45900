"""BOS, the first space, chat template and stop tokens of a GGUF file."""

import jinja2
import pytest
from transformers import AutoTokenizer

from colossal_llama.export.gguf_chat import read_chat

TEMPLATE = """{{ bos_token }}{% for message in messages %}
{%- if message['role'] == 'assistant' -%}
  {%- generation -%} {{ message['content'] + eos_token }} {%+ endgeneration -%}
{% else %}{{ message['content'] }}{% endif %}{% endfor %}"""


@pytest.fixture
def llama2(made_llama2):
    return AutoTokenizer.from_pretrained(made_llama2)


def test_generation_marks_become_a_condition_with_the_same_white_space(llama2):
    llama2.chat_template = {"default": TEMPLATE, "tool_use": "{% generation %}x{% endgeneration %}"}
    templates = read_chat(llama2, []).templates
    assert templates["tool_use"] == "{% if true %}x{% endif %}"
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    expected = llama2.apply_chat_template(messages, chat_template=TEMPLATE, tokenize=False)
    plain = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(templates["default"])
    assert plain.render(messages=messages, bos_token="<s>", eos_token="</s>") == expected


def test_the_space_is_right_for_plain_prompts_or_for_chats(llama2):
    """LLaMA-2 puts a space before a text, and none behind a control token; GGUF has one switch."""
    plain = read_chat(llama2, [])
    assert plain.adds_space
    assert any("ChatML" in note for note in plain.notes)
    llama2.chat_template = TEMPLATE
    chat = read_chat(llama2, [])
    assert not chat.adds_space
    assert any("begin a plain prompt, which is no chat, with a space" in note for note in chat.notes)


def test_bos_is_added_unless_chats_begin_without_it(llama2):
    assert read_chat(llama2, []).adds_bos
    llama2.chat_template = TEMPLATE
    assert read_chat(llama2, []).adds_bos
    llama2.chat_template = TEMPLATE.replace("{{ bos_token }}", "")
    without = read_chat(llama2, [])
    assert not without.adds_bos
    assert any("chats begin without BOS" in note for note in without.notes)


def test_a_template_that_takes_no_single_question_is_kept(llama2):
    llama2.chat_template = "{{ raise_exception('no') }}"
    assert read_chat(llama2, []).adds_bos


def test_a_tokenizer_without_bos_has_none_added(made_data):
    tokenizer = AutoTokenizer.from_pretrained(made_data / "tokenizers" / "llama3-base")
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.bos_token = None
    assert not read_chat(tokenizer, []).adds_bos


def test_eos_comes_first_among_the_stop_tokens(llama2):
    assert read_chat(llama2, [7, llama2.eos_token_id, 9, 7]).stops == [llama2.eos_token_id, 7, 9]
