"""Chat templates: the ids that transformers gives, one date, limits of what a template may do."""

import json
import shutil
from datetime import datetime
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from colossal_llama.dataset import template_renderer
from colossal_llama.dataset.chat_template import CHAT_DATE, ChatTemplate, chat_date
from colossal_llama.dataset.conversation import Message
from colossal_llama.dataset.template_renderer import ChatTemplateError, ChatTemplateLimitError, TemplateRenderer
from colossal_llama.inference.prompts import conversation_prompt_ids, open_template
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.errors import UserError

DAY = "2025-01-31"
LLAMA2 = """{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0].content %}
{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}
{%- for m in rest %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' }}
{%- if loop.first and system %}{{ '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' }}{% endif %}
{{- m.content.strip() + ' [/INST]' }}
{%- else %}{% generation %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"""
LLAMA3 = """{{ bos_token }}
{%- set date_string = strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n<|eot_id|>" }}
{%- for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}
{%- if m.role == 'assistant' %}{% generation %}{{ m.content | trim + '<|eot_id|>' }}{% endgeneration %}
{%- else %}{{ m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""
CHATML = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}
{%- generation %}{{ m.content + eos_token }}{% endgeneration %}{{ '\\n' }}
{%- else %}{{ m.content + eos_token + '\\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
VICUNA = """{{ bos_token }}A chat.{% for m in messages %}{% if m.role == 'assistant' %} ASSISTANT:
{%- generation %} {{ m.content + eos_token }}{% endgeneration %}{% else %} USER: {{ m.content }}{% endif %}{% endfor %}
{%- if add_generation_prompt %} ASSISTANT:{% endif %}"""
SPACE_IN_PROMPT = VICUNA.replace("ASSISTANT:\n{%- generation %} {{", "ASSISTANT: {% generation %}{{").replace(
    "ASSISTANT:{% endif %}", "ASSISTANT: {% endif %}"
)
TEMPLATES = {"llama2": LLAMA2, "llama3": LLAMA3, "chatml": CHATML, "vicuna": VICUNA, "space": SPACE_IN_PROMPT}
KINDS = ("llama2", "llama2-legacy", "llama2-stripping", "llama3-instruct")

CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0\ufdd1\ufdd2")
WORDS = st.sampled_from(["two", " ", "\n", "\n\n", "你好", "𠀀", "[INST]", ":", "  x", "<", "</", "s>", "▁", "\t"])
TEXTS = st.lists(st.text(CHARACTERS, min_size=1, max_size=6) | WORDS, min_size=1, max_size=6).map("".join)


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, any_data, tmp_path_factory):
    """LLaMA-2, its legacy form, one whose control tokens take the spaces beside them; LLaMA-3."""
    family = request.param.removesuffix("-legacy").removesuffix("-stripping")
    directory = tmp_path_factory.mktemp("tokenizer") / request.param
    shutil.copytree(any_data / "tokenizers" / family, directory)
    if request.param == "llama2-legacy":
        config = json.loads((directory / "tokenizer_config.json").read_text())
        (directory / "tokenizer_config.json").write_text(json.dumps(config | {"legacy": True}))
    tokenizer = load_tokenizer(directory)
    if request.param == "llama2-stripping":
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
        definition = json.loads(tokenizer.backend_tokenizer.to_str())
        for token in definition["added_tokens"]:
            token["rstrip"] = token["content"] in ("<|im_start|>", "</s>")
            token["lstrip"] = token["content"] == "<|im_start|>"
        tokenizer.save_pretrained(directory)
        (directory / "tokenizer.json").write_text(json.dumps(definition))
        config = json.loads((directory / "tokenizer_config.json").read_text())
        for token in config.get("added_tokens_decoder", {}).values():  # transformers 5 writes none
            token["rstrip"] = token["content"] in ("<|im_start|>", "</s>")
            token["lstrip"] = token["content"] == "<|im_start|>"
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = load_tokenizer(directory)
        assert tokenizer.added_tokens_decoder[tokenizer.eos_token_id].rstrip
    return tokenizer


def listed(messages) -> list[dict]:
    names = {"human": "user", "assistant": "assistant", "system": "system"}
    return [{"role": names[message.role], "content": message.content} for message in messages]


def ids_of_transformers(tokenizer, messages, source, **options):
    """Ids, and the mask of answers if it is asked for, as transformers makes them on the day."""
    with mock.patch("transformers.utils.chat_template_utils.datetime") as now:
        now.now.return_value = datetime.fromisoformat(DAY)
        return tokenizer.apply_chat_template(listed(messages), chat_template=source, return_dict=True, **options)


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_and_targets_are_those_of_transformers(tokenizer, name):
    source = TEMPLATES[name]
    if name == "llama3" and "<|eot_id|>" not in tokenizer.get_vocab():
        source = source.replace("'<|eot_id|>'", "eos_token")
    template = ChatTemplate(tokenizer, source, name, DAY)
    control = [token.content for token in tokenizer.added_tokens_decoder.values()]

    @settings(max_examples=60, deadline=None)
    @given(turns=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3), system=TEXTS | st.none())
    @example(turns=[("one", "two"), ("three", "four")], system=None)
    @example(turns=[("one", "\n\ntwo")], system=None)
    def check(turns, system):
        messages = [Message("system", system)] if system else []
        for question, answer in turns:
            messages += [Message("human", question), Message("assistant", answer)]
        own = ids_of_transformers(tokenizer, messages, source, return_assistant_tokens_mask=True)
        if any(token in message.content for message in messages for token in control):
            return
        encoded = template.encode(messages)
        assert encoded.input_ids == own["input_ids"]
        in_span = [False] * len(encoded.input_ids)
        for start, end in encoded.target_spans:
            in_span[start:end] = [True] * (end - start)
        # Of several byte tokens of one character transformers' mask takes the first alone.
        assert all(ours for ours, theirs in zip(in_span, own["assistant_masks"], strict=True) if theirs)
        texts = [tokenizer.decode(encoded.input_ids[start:end]) for start, end in encoded.target_spans]
        assert len(texts) == len(turns)
        prompt = ids_of_transformers(tokenizer, messages[:-1], source, add_generation_prompt=True)
        assert template.prompt_ids(messages[:-1]) == prompt["input_ids"]

    check()


def test_a_control_token_spelled_out_in_a_message_stays_text(tokenizer):
    template = ChatTemplate(tokenizer, VICUNA, "vicuna", DAY)
    special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    control = st.sampled_from([token.content for token in tokenizer.added_tokens_decoder.values()][:12])

    @settings(max_examples=60, deadline=None)
    @given(parts=st.lists(TEXTS | control | control.map(lambda token: token[:-1]), min_size=2, max_size=6))
    def check(parts):
        question, answer = "".join(parts), "".join(reversed(parts))
        encoded = template.encode([Message("human", question), Message("assistant", answer)])
        assert [token for token in encoded.input_ids if token in special] == [
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
        ]
        ((start, end),) = encoded.target_spans
        assert end == len(encoded.input_ids)
        before = tokenizer.encode("a", add_special_tokens=False)
        decoded = tokenizer.decode([*before, *encoded.input_ids[start : end - 1]], clean_up_tokenization_spaces=False)
        assert decoded[1:].replace("▁", " ") == f" {answer}".replace("▁", " ")

    check()


def test_a_token_with_the_end_of_a_prompt_and_the_beginning_of_an_answer_is_said(tokenizer, capsys):
    ChatTemplate(tokenizer, VICUNA, "vicuna", DAY)
    assert "warning" not in capsys.readouterr().err
    ChatTemplate(tokenizer, SPACE_IN_PROMPT, "space", DAY)
    assert "move the space before an answer" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- dates


DATED = LLAMA3.replace("'<|eot_id|>'", "eos_token")


def test_a_template_is_told_one_day(tokenizer):
    messages = [Message("human", "a"), Message("assistant", "b")]
    template = ChatTemplate(tokenizer, DATED, "dated", "1999-12-31")
    assert "31 Dec 1999" in tokenizer.decode(template.encode(messages).input_ids)
    assert template.describe()["date"] == "1999-12-31"
    assert "date" not in ChatTemplate(tokenizer, VICUNA, "vicuna", "1999-12-31").describe()


def test_inference_tells_the_day_of_training(tokenizer, tmp_path):
    tokenizer.init_kwargs[CHAT_DATE] = "1999-12-31"
    tokenizer.save_pretrained(tmp_path / "model")
    del tokenizer.init_kwargs[CHAT_DATE]
    (tmp_path / "t.jinja").write_text(DATED)
    saved = load_tokenizer(tmp_path / "model")
    template = open_template(saved, None, str(tmp_path / "t.jinja"))
    assert "31 Dec 1999" in saved.decode(conversation_prompt_ids(template, [Message("human", "a")]))
    saved.init_kwargs[CHAT_DATE] = "yesterday"
    with pytest.raises(UserError, match="like 2025-01-31"):
        chat_date(saved)


def test_the_day_of_the_chats_is_saved_with_the_model(runner, toy, tmp_path):
    parts = []
    for number, day in enumerate(("2024-12-31", "2025-01-31")):
        part = tmp_path / f"part-{number}"
        shutil.copytree(toy.sft_parts[0], part)
        facts = json.loads((part / "part.json").read_text())
        (part / "part.json").write_text(json.dumps({**facts, "chat_template_date": day}))
        parts.append(str(part))
    command = runner.command("days", "--accumulation_steps", "12", sft=True)
    command[command.index("--dataset") + 1 : command.index("--max_length")] = parts
    printed = runner.run([command], ranks=1)
    assert "told 2 days, 2024-12-31 to 2025-01-31" in printed
    assert chat_date(load_tokenizer(runner.workspace / "days" / "save" / "modelling")) == "2025-01-31"


# ------------------------------------------------------------------------------ hostile templates


GOOD = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def rendered(source: str, messages=(("user", "a"), ("assistant", "b"))):
    renderer = TemplateRenderer(source, "t", {}, DAY)
    return renderer.render([{"role": role, "content": content} for role, content in messages], False)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ 1/0 }}", "line 1: ZeroDivisionError: division by zero"),
        ("\n{{ messages + 1 }}", "line 2: TypeError"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ nothing.x }}", "'nothing' is undefined"),
        ("{{ range(10**10) }}", "Range too big"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "calls itself without end"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
        ("{% if", "line 1: "),
        ("{{ [1, 2] | random }}", "No filter named 'random'"),
        ("{{ strftime_now(3) }}", "TypeError"),
        (r"{{ '\ud83d' }}", "UnicodeEncodeError"),
        ("{{ messages[0].content.strip }}", "line 1: a function is written out"),
        ("{{ raise_exception('roles\nmust alternate') }}", "line 1: roles must alternate"),
        ("{% generation %}{% generation %}{% endgeneration %}{% endgeneration %}", "within another"),
    ],
)  # fmt: skip
def test_errors_of_a_template_are_one_sentence(source, message):
    with pytest.raises(ChatTemplateError, match=message) as raised:
        rendered(source)
    assert "\n" not in str(raised.value)
    assert not isinstance(raised.value, ChatTemplateLimitError)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (ENDLESS, "processor time"),
        ("{% macro f(n) %}{{ f(n-1) ~ f(n-1) if n else '' }}{% endmacro %}{{ f(60) }}", "processor time"),
        ("{{ 3 ** (7 ** 11) }}", "processor time"),  # while the template is compiled
        ("{{ 'x' * 9999999999 }}", "GiB"),
        ("{{ '%99999999999d' % 1 }}", "GiB"),
        ("{{ 'x' | center(99999999999) }}", "GiB"),
        ("{% set n = namespace(s='x') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}", "GiB|time"),
        ("{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "characters"),
    ],
)  # fmt: skip
def test_a_template_is_stopped_at_its_limits(source, message, monkeypatch):
    monkeypatch.setattr(template_renderer, "PROCESSOR_TIME_S", 0.3)
    with pytest.raises(ChatTemplateLimitError, match=message):
        rendered(source)
    assert rendered(GOOD) == ("ab", [(0, 1), (1, 2)])


def test_a_model_with_an_endless_template_is_named_when_it_is_asked(any_data, monkeypatch):
    monkeypatch.setattr(template_renderer, "PROCESSOR_TIME_S", 0.3)
    tokenizer = load_tokenizer(any_data / "tokenizers" / "llama2")
    tokenizer.chat_template = ENDLESS + VICUNA
    with pytest.raises(UserError, match="the tokenizer's template had not rendered"):
        open_template(tokenizer, None, "tokenizer")
    tokenizer.chat_template = "{% if messages | length > 2 %}" + ENDLESS + "{% endif %}" + VICUNA
    template = open_template(tokenizer, None, "tokenizer")
    messages = [Message("human", "a"), Message("assistant", "b"), Message("human", "c")]
    assert conversation_prompt_ids(template, messages[:1])
    with pytest.raises(UserError, match="processor time"):
        conversation_prompt_ids(template, messages)


def test_generation_blocks_are_found_wherever_they_stand():
    source = (
        "{% macro say(m) %}<{% generation %}{{ m.content }}{% endgeneration %}>{% endmacro %}{{ say(messages[1]) }}"
    )
    assert rendered(source) == ("<b>", [(1, 2)])
    assert rendered("{% generation %}x{% endgeneration %}")[1] == [(0, 1)]


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_template_file_that_cannot_be_read_is_named(any_data, tmp_path, content):
    tokenizer = load_tokenizer(any_data / "tokenizers" / "llama2")
    path = tmp_path / "t.jinja"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=r"t\.jinja (is not UTF-8|cannot be read)"):
        ChatTemplate.open(tokenizer, str(path), DAY)
    Path(tmp_path / "marked.jinja").write_text(VICUNA, encoding="utf-8-sig")
    marked = ChatTemplate.open(tokenizer, str(tmp_path / "marked.jinja"), DAY)
    assert marked.prompt_ids([Message("human", "a")]) == ChatTemplate(tokenizer, VICUNA, "", DAY).prompt_ids(
        [Message("human", "a")]
    )
