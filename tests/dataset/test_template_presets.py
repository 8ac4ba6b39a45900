"""Presets of chat templates: the text of the published ones, by name, for tokenizers that fit."""

import argparse
import random

import pytest

from colossal_llama.dataset.chat_template import ChatTemplate
from colossal_llama.dataset.conversation import Message
from colossal_llama.dataset.template_presets import PRESETS, chat_template_argument
from colossal_llama.dataset.template_renderer import ChatTemplateError
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.errors import UserError
from tests.dataset.test_trained_format import WORDS, listed

DAY = "2025-01-31"


def published_llama2(messages, for_prompt):
    """Meta's rule: the system prompt is part of the first question; texts are stripped."""
    system = ""
    if messages[0]["role"] == "system":
        system, messages = f"<<SYS>>\n{messages[0]['content']}\n<</SYS>>\n\n", messages[1:]
    written = ""
    for number, message in enumerate(messages):
        text = (system + message["content"] if number == 0 else message["content"]).strip()
        written += f"<s>[INST] {text} [/INST]" if message["role"] == "user" else f" {text} </s>"
    return written


def published_llama3(messages, for_prompt):
    turns = [f"<|start_header_id|>{m['role']}<|end_header_id|>\n\n{m['content'].strip()}<|eot_id|>" for m in messages]
    asked = "<|start_header_id|>assistant<|end_header_id|>\n\n" if for_prompt else ""
    return "<|begin_of_text|>" + "".join(turns) + asked


def published_chatml(messages, for_prompt):
    turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages]
    return "".join(turns) + ("<|im_start|>assistant\n" if for_prompt else "")


PUBLISHED = {"llama2-chat": published_llama2, "llama3-instruct": published_llama3, "chatml": published_chatml}


def conversation(numbers: random.Random) -> list[Message]:
    def text() -> str:
        return "".join(numbers.choice(WORDS) for _ in range(numbers.randrange(1, 6)))

    messages = [Message("system", text())] if numbers.random() < 0.5 else []
    for _ in range(numbers.randrange(1, 4)):
        messages += [Message("human", text()), Message("assistant", text())]
    return messages


def test_ids_are_those_of_the_published_template(preset):
    name, tokenizer = preset
    template, numbers = ChatTemplate.open(tokenizer, name, DAY), random.Random(0)
    for _ in range(100):
        messages = conversation(numbers)
        if any(token.content in m.content for m in messages for token in tokenizer.added_tokens_decoder.values()):
            continue
        for said, for_prompt in ((messages, False), (messages[:-1], True)):
            wanted = tokenizer(PUBLISHED[name](listed(said), for_prompt), add_special_tokens=False)["input_ids"]
            ids = template.prompt_ids(said) if for_prompt else template.encode(said).input_ids
            assert ids == wanted, said
        assert len(template.encode(messages).target_spans) == sum(m.role == "assistant" for m in messages)


def test_turns_end_with_the_formats_own_token(preset):
    name, tokenizer = preset
    ends = {"llama2-chat": "</s>", "llama3-instruct": "<|eot_id|>", "chatml": "<|im_end|>"}
    assert tokenizer.convert_ids_to_tokens(ChatTemplate.open(tokenizer, name, DAY).turn_end_id) == ends[name]


def test_llama2_chat_refuses_what_the_published_one_refuses(any_data):
    template = ChatTemplate.open(load_tokenizer(any_data / "tokenizers" / "llama2"), "llama2-chat", DAY)
    for roles in (["human", "human"], ["assistant", "human"], ["human", "system"], ["system", "assistant"]):
        with pytest.raises(ChatTemplateError, match="must alternate"):
            template.prompt_ids([Message(role, "x") for role in roles])


def test_a_tokenizer_of_another_family_is_refused(any_data):
    tokenizer = load_tokenizer(any_data / "tokenizers" / "llama2")
    for name in ("llama3-instruct", "chatml"):
        with pytest.raises(UserError, match=f"{name}: the tokenizer in .* has no control token"):
            ChatTemplate.open(tokenizer, name, DAY)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("chatlm", "did you mean chatml"),
        ("LLaMA-3-Instruct", "did you mean llama3-instruct"),
        ("llama2_chat", "did you mean llama2-chat"),
        ("tokeniser", "did you mean tokenizer"),
        ("zephyr", "'zephyr' is neither a file nor a known name"),
        ("absent/file", "absent/file does not exist"),
        ("absent.jinja", "absent.jinja does not exist"),
        (".", "is a directory"),
    ],
)
def test_wrong_names_are_answered_with_the_closest(given, said):
    with pytest.raises(argparse.ArgumentTypeError, match=said) as refusal:
        chat_template_argument(given)
    if "neither" in str(refusal.value):
        assert all(name in str(refusal.value) for name in PRESETS)


def test_a_path_still_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zephyr").write_text("x")
    (tmp_path / "chatml").write_text("x")
    assert chat_template_argument("zephyr") == "zephyr"
    assert chat_template_argument("./chatml") == "./chatml"  # a file, as opposed to the preset
    assert chat_template_argument("chatml") in PRESETS
