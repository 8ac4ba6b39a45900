"""Prompts are the beginning of what preparation makes of the same text; long chats are cut."""

import functools
import json
import subprocess
import sys

import pytest

from colossal_llama.dataset.chat_template import ChatTemplate
from colossal_llama.dataset.conversation import ConversationTemplate, Message
from colossal_llama.dataset.records import conversation_of
from colossal_llama.dataset.system_prompt import DEFAULT_SYSTEM
from colossal_llama.dataset.template_presets import PRESETS
from colossal_llama.dataset.trained_format import set_trained_template, trained_format
from colossal_llama.inference.arguments import parse_arguments
from colossal_llama.inference.prompts import (
    PretrainedPrompt,
    drop_oldest_exchanges,
    open_template,
    other_format_notice,
    pretrained_prompt,
    prompt_messages,
)
from colossal_llama.tokenizer.loading import load_tokenizer

FAMILIES = ("llama2", "llama3-base")


cached_tokenizer = functools.cache(load_tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_pretrained_prompt_is_the_beginning_of_the_prepared_document(project_root, any_data, tmp_path, family):
    directory = any_data / "tokenizers" / family
    sources = [pretrained_prompt(text) for text in ("明月松间照，", " two words", "a <s> b", "")]
    (tmp_path / "in").mkdir()
    records = [{"source": source, "target": "清泉石上流。", "category": "poems"} for source in sources]
    (tmp_path / "in" / "poems.jsonl").write_text("\n".join(json.dumps(record) for record in records), "utf-8")
    command = [sys.executable, project_root / "prepare_pretrain_dataset.py", "--tokenizer_dir", directory]
    command += ["--data_input_dirs", tmp_path / "in", "--data_output_dirs", tmp_path / "out"]
    subprocess.run([*command, "--num_spliced_dataset_bins", "1"], check=True, capture_output=True)
    row = json.loads((tmp_path / "out" / "jsonl" / "part-00000.jsonl").read_text("utf-8"))
    tokenizer = cached_tokenizer(directory)
    starts = [i for i, token in enumerate(row["input_ids"]) if token == tokenizer.bos_token_id]
    documents = [row["input_ids"][a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
    assert len(documents) == len(sources)
    for source in sources:
        prompt = PretrainedPrompt(tokenizer).ids(source)
        assert any(document[: len(prompt)] == prompt for document in documents), source


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"from": "human", "content": "Q1"}, {"from": "assistant", "content": "A1"}]},
        {
            "conversations": [
                {"role": "user", "value": "Q1"},
                {"role": "gpt", "value": "A1"},
                {"role": "user", "value": "Q2"},
            ]
        },
        {"instruction": "Q1", "input": "more", "output": "A1", "system": "Be brief."},
        {"instruction": "Q1"},
    ],
)
def test_sft_prompt_is_the_beginning_of_the_prepared_conversation(llama2, record):
    template = ConversationTemplate.for_llama(cached_tokenizer(llama2), 2)
    messages = prompt_messages(record)
    assert messages[-1].role == "human"
    prompt = template.prompt_ids(messages)
    answered = [*messages, Message("assistant", "A1")]
    assert template.encode(answered).input_ids[: len(prompt)] == prompt
    if "output" in record:
        assert template.encode(list(conversation_of(record).messages)).input_ids[: len(prompt)] == prompt


def test_a_long_chat_drops_its_oldest_exchanges(llama2):
    template = ConversationTemplate.for_llama(cached_tokenizer(llama2), 2)
    exchange = [Message("human", "What is this? " * 5), Message("assistant", "A long answer. " * 5)]
    messages = [Message("system", "Be brief."), *exchange * 6, Message("human", "And now?")]
    kept, dropped = drop_oldest_exchanges(template, messages, 200)
    assert (kept[0], kept[-1]) == (messages[0], messages[-1])
    assert len(template.prompt_ids(kept)) <= 200 < len(template.prompt_ids([kept[0], *exchange, *kept[1:]]))
    assert dropped == len(messages) - len(kept)
    assert dropped % 2 == 0
    assert drop_oldest_exchanges(template, messages, 10**6) == (messages, 0)


def trained_on(directory, form: str | None, system: str | None = None):
    """A tokenizer as it is saved by a run on the built-in format ("llama") or a preset."""
    tokenizer = load_tokenizer(directory)
    if form == "llama":
        own = DEFAULT_SYSTEM if system is None else system
        description = ConversationTemplate.for_llama(tokenizer, 3, system=own).describe()
    elif form is not None:
        description = ChatTemplate.open(tokenizer, form, "2025-01-31", system=system).describe()
    if form is not None:
        set_trained_template(tokenizer, trained_format(description, tokenizer).template)
    return tokenizer


@pytest.mark.parametrize("form", ["llama", "llama3-instruct"])
def test_a_model_is_asked_in_the_format_that_it_was_trained_in(made_data, form):
    tokenizer = trained_on(made_data / "tokenizers" / "llama3-base", form)
    wanted = "llama" if form == "llama" else "jinja"
    template = open_template(tokenizer, None, None)
    assert template.describe()["kind"] == wanted
    assert other_format_notice(tokenizer, template) is None
    quoted = [Message("human", "What does <|eot_id|> do?")]
    assert template.prompt_ids(quoted).count(tokenizer.convert_tokens_to_ids("<|eot_id|>")) == 1
    # An option goes before the record, and what differs from it is said.
    other = (3, None) if form != "llama" else (None, "llama3-instruct")
    chosen = open_template(tokenizer, *other)
    assert chosen.describe()["kind"] != wanted
    assert "leave out --llama_version and --chat_template" in other_format_notice(tokenizer, chosen)
    assert "--prompt_style sft" in other_format_notice(tokenizer, None)


@pytest.mark.parametrize("form", ["llama", "llama3-instruct"])
@pytest.mark.parametrize("system", ["You are a guide.", ""])
def test_a_model_is_asked_with_the_system_prompt_of_its_training(made_data, form, system):
    tokenizer = trained_on(made_data / "tokenizers" / "llama3-base", form, system)
    asked = [Message("human", "Where are we?")]
    wanted = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Where are we?"}], add_generation_prompt=True, return_dict=False
    )
    options = (3, None) if form == "llama" else (None, form)
    for given in ((None, None), options, (None, "tokenizer")):
        template = open_template(tokenizer, *given)
        assert template.prompt_ids(asked) == wanted
        assert other_format_notice(tokenizer, template) is None
    none = open_template(tokenizer, None, None, without_system=True)
    assert other_format_notice(tokenizer, none) is None
    plain = open_template(trained_on(made_data / "tokenizers" / "llama3-base", form, ""), None, None)
    assert none.prompt_ids(asked) == plain.prompt_ids(asked)
    assert (none.prompt_ids(asked) == wanted) is (system == "")
    # Another format of the same model has its own.
    other = open_template(tokenizer, *((None, "llama3-instruct") if form == "llama" else (3, None)))
    assert "guide" not in tokenizer.decode(other.prompt_ids(asked))


def test_a_template_that_no_run_has_set_is_not_followed_but_named(made_data):
    tokenizer = trained_on(made_data / "tokenizers" / "llama3-base", None)
    template = open_template(tokenizer, None, None)
    assert other_format_notice(tokenizer, template) is None
    tokenizer.chat_template = PRESETS["llama3-instruct"].source
    assert open_template(tokenizer, None, None).describe()["kind"] == "llama"
    assert "--chat_template (a Jinja file, chatml" in other_format_notice(tokenizer, template)
    assert other_format_notice(tokenizer, open_template(tokenizer, None, "tokenizer")) is None
    assert other_format_notice(tokenizer, None) is None


def test_the_system_prompt_may_be_in_a_file(tmp_path, capsys):
    (tmp_path / "system.txt").write_text("You are a guide.\n")
    words = ["--model_path", "m", "--input_txt", "Hi"]
    given = ["--system_file", str(tmp_path / "system.txt")]
    assert parse_arguments([*words, *given, "--prompt_style", "sft"]).prompt.format.system == "You are a guide."
    for others, said in (
        (["--system", "x", "--prompt_style", "sft"], "--system and --system_file both give"),
        ([], "--system belongs to --prompt_style sft"),
    ):
        with pytest.raises(SystemExit):
            parse_arguments([*words, *given, *others])
        assert said in capsys.readouterr().err
