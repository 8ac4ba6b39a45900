"""System prompts of formats: transformers makes our ids of the saved template, with any or none."""

import argparse
import random
import re

import jinja2
import pytest

from colossal_llama.dataset.chat_template import ChatTemplate
from colossal_llama.dataset.conversation import LABELS, TURN_END_TOKENS, ConversationTemplate, Message
from colossal_llama.dataset.system_prompt import DEFAULT_SYSTEM, given_system, system_text
from colossal_llama.dataset.template_presets import PRESETS
from colossal_llama.dataset.template_system import (
    SPACE,
    builtin_format,
    builtin_source,
    system_of,
    with_system,
    without_system,
)
from colossal_llama.dataset.trained_format import template_name, trained_format
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.errors import UserError
from tests.dataset.test_trained_format import WORDS, conversations, listed, prompt_ids

DAY = "2025-01-31"
VICUNA = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions."
)
SYSTEMS = [
    "",
    VICUNA,
    "你是一个有用的助手。",
    " begins with a space",
    "▁",
    "ends with a line\n",
    'a "quoted\\ word',
    "x {{ y }}",
]
SYSTEMS += [
    "{% if x %} {#- a -#} %}} {{{{%",
    "{% generation %}a{% endgeneration %}",
    "two\n\nlines\t ",
    '" + "',
    "- \x07 -",
]
FAMILIES = {"llama2": 2, "llama3-base": 3, "llama3-instruct": 3}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, any_data):
    return load_tokenizer(any_data / "tokenizers" / request.param), FAMILIES[request.param]


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_saved_builtin_format_has_the_system_prompt(family, system):
    tokenizer, version = family
    template = ConversationTemplate.for_llama(tokenizer, version, system=system)
    saved = trained_format(template.describe(), tokenizer)
    assert saved.is_exact
    known = builtin_format(saved.template)
    assert (known.version, known.system) == (version, system)
    for messages in conversations(40, seed=11):
        assert prompt_ids(tokenizer, listed(messages), saved.template) == template.prompt_ids(messages), messages
    question = [Message("human", "Hi")]
    text = tokenizer.apply_chat_template(
        listed(question), chat_template=saved.template, tokenize=False, add_generation_prompt=True
    )
    assert ("Human: " in text.split(tokenizer.bos_token)[1]) is True
    assert text.count(system) >= 1
    if not system:
        label = tokenizer("Human: ", add_special_tokens=False)["input_ids"]
        assert text.startswith(f"{tokenizer.bos_token}Human: ")
        assert len(template.prompt_ids(question)) <= 2 * len(label) + 10


def test_the_default_is_as_it_was(family):
    tokenizer, version = family
    plain, same = (
        ConversationTemplate.for_llama(tokenizer, version),
        ConversationTemplate.for_llama(tokenizer, version, system=DEFAULT_SYSTEM),
    )
    assert plain.describe() == same.describe()
    assert plain.describe()["system"] == DEFAULT_SYSTEM
    assert template_name(trained_format(plain.describe(), tokenizer).template).endswith(TURN_END_TOKENS[version])


def test_an_own_system_message_replaces_it(family):
    tokenizer, version = family
    own = [Message("system", "Be kind."), Message("human", "Hi")]
    wanted = ConversationTemplate.for_llama(tokenizer, version).prompt_ids(own)
    for system in SYSTEMS[:3]:
        assert ConversationTemplate.for_llama(tokenizer, version, system=system).prompt_ids(own) == wanted


def test_a_control_token_in_it_is_refused(family):
    tokenizer, version = family
    for system in (f"Say {tokenizer.bos_token} first.", f"{tokenizer.eos_token}"):
        with pytest.raises(UserError, match="--system: the text holds"):
            ConversationTemplate.for_llama(tokenizer, version, system=system)
        if version == 3:
            with pytest.raises(UserError, match="--system: the text holds"):
                ChatTemplate.open(tokenizer, "llama3-instruct", DAY, system=system)


@pytest.mark.parametrize("system", [text for text in SYSTEMS if text != "▁"])
def test_a_preset_puts_it_before_conversations_without_one(preset, system):
    name, tokenizer = preset
    template, plain = (ChatTemplate.open(tokenizer, name, DAY, system=text) for text in (system, None))
    described = template.describe()
    assert described.get("system", "") == system
    saved = trained_format(described, tokenizer).template
    numbers = random.Random(0)
    for _ in range(20):
        texts = ["".join(numbers.choices(WORDS, k=numbers.randrange(1, 6))) for _ in range(3)]
        messages = [Message("human", texts[0]), Message("assistant", texts[1]), Message("human", texts[2])]
        wanted = plain.prompt_ids([Message("system", system), *messages] if system else messages)
        assert template.prompt_ids(messages) == wanted
        if not any(token.content in text for text in texts for token in tokenizer.added_tokens_decoder.values()):
            assert prompt_ids(tokenizer, listed(messages), saved) == wanted
        own = [Message("system", "Be kind."), *messages]
        assert template.prompt_ids(own) == plain.prompt_ids(own)


SOURCES = [
    "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}",
    "\n{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}\n",
    "  {% for m in messages %}\n{{ m.role }}\n  {{ m.content }}\n  {% endfor %}",
    "\n\n  {%- for m in messages %}{{ m.content }}{% endfor %}",
    "  text {{ messages[0].content }}",
    "\t{# a comment #}\n{{ messages | length }}",
    "{{- messages[0]['content'] }}\n",
    "{% set messages = messages %}{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}x",
]


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def rendered(source: str, messages: list[dict]) -> str:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(
        messages=messages, bos_token="<s>", eos_token="</s>", raise_exception=_raise
    )


@pytest.mark.parametrize("source", [*SOURCES, *(preset.source for preset in PRESETS.values())])
def test_templates_render_as_with_the_message(source):
    source = re.sub(r"\{%- (end)?generation -%\}", "", source)
    for system in SYSTEMS[1:]:
        wrapped = with_system(source, system)
        assert system_of(wrapped) == system
        messages = [{"role": "user", "content": "Hi"}]
        twice, once = (with_system(template, "Another.") for template in (wrapped, source))
        assert rendered(twice, messages) == rendered(once, messages)
        assert without_system(wrapped) == with_system(wrapped, "")
        for messages in ([], [{"role": "user", "content": "Hi"}]):
            wanted = rendered(source, [{"role": "system", "content": system}, *messages])
            assert rendered(wrapped, messages) == wanted
        own = [{"role": "system", "content": "own"}, {"role": "user", "content": "Hi"}]
        assert rendered(wrapped, own) == rendered(source, own)
    assert with_system(source, "") == source
    assert system_of(source) is None


def test_the_builtin_format_is_found_by_its_text():
    for version, end in TURN_END_TOKENS.items():
        for space in (SPACE, ""):
            for system in (DEFAULT_SYSTEM, *SYSTEMS):
                source = builtin_source(system, LABELS, end, space)
                known = builtin_format(source)
                assert (known.version, known.system, known.space) == (version, system, space)
                assert with_system(source, "Other.") == builtin_source("Other.", LABELS, end, space)
                assert builtin_format(source + " ") is None
    assert builtin_format(PRESETS["chatml"].source) is None


def test_a_template_that_writes_no_system_prompt_is_refused(any_data, tmp_path):
    tokenizer = load_tokenizer(any_data / "tokenizers" / "llama3-base")
    turns = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content + '<|eot_id|>' }}{% elif m.role == 'assistant' %}"
    )
    turns += "{% generation %}{{ m.content + '<|eot_id|>' }}{% endgeneration %}{% endif %}{% endfor %}"
    strict = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system prompts, please') }}{% endif %}" + turns
    )
    for source, said in ((turns, "does not write system prompts"), (strict, "no system prompts, please")):
        (tmp_path / "chat.jinja").write_text(source)
        ChatTemplate.open(tokenizer, str(tmp_path / "chat.jinja"), DAY)
        ChatTemplate.open(tokenizer, str(tmp_path / "chat.jinja"), DAY, system="")
        with pytest.raises(UserError, match=said):
            ChatTemplate.open(tokenizer, str(tmp_path / "chat.jinja"), DAY, system="Be kind.")


def test_formats_are_named_with_their_system_prompts(any_data):
    tokenizer = load_tokenizer(any_data / "tokenizers" / "llama3-base")
    names = [
        template_name(
            trained_format(ConversationTemplate.for_llama(tokenizer, 3, system=text).describe(), tokenizer).template
        )
        for text in ("", VICUNA)
    ]
    assert names[0] == "the built-in format with <|eot_id|> and no system prompt"
    assert names[1].startswith("the built-in format with <|eot_id|> and the system prompt 'A chat between")
    assert template_name(with_system(PRESETS["chatml"].source, "Be kind.")) == "chatml and the system prompt 'Be kind.'"


def test_text_and_file_are_read_alike(tmp_path):
    file = tmp_path / "system.txt"
    for content, text in (
        (b"Be kind.", "Be kind."),
        (b"Be kind.\n\n", "Be kind."),
        (b"\xef\xbb\xbfBe\r\nkind.\r\n", "Be\nkind."),
        ("你好".encode(), "你好"),
        (b"", ""),
        (b"\n", ""),
    ):
        file.write_bytes(content)
        assert given_system(None, file) == text
    assert given_system("x", None) == "x"
    assert given_system(None, None) is None
    for content, said in ((b" \t\n", "nothing but blanks"), (b"\xff", "not UTF-8")):
        file.write_bytes(content)
        with pytest.raises(UserError, match=said):
            given_system(None, file)
    with pytest.raises(UserError, match="leave one out"):
        given_system("x", file)
    with pytest.raises(UserError, match="cannot be read"):
        given_system(None, tmp_path / "absent")
    with pytest.raises(argparse.ArgumentTypeError, match="nothing but blanks"):
        system_text(" ")
