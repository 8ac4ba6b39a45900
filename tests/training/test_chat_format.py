"""What a run writes says how the model is spoken to, and stops: template, generation settings."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from colossal_llama.dataset.chat_template import CHAT_DATE, ChatTemplate
from colossal_llama.dataset.conversation import ConversationTemplate
from colossal_llama.dataset.part import Part
from colossal_llama.dataset.part_facts import PartFacts
from colossal_llama.dataset.system_prompt import DEFAULT_SYSTEM
from colossal_llama.dataset.template_presets import PRESETS
from colossal_llama.dataset.template_system import builtin_format
from colossal_llama.dataset.trained_format import builtin_version, trained_template
from colossal_llama.model.lora import lora_config, merge_adapter
from colossal_llama.model.weights.generation_config import save_model, with_stop_ids
from colossal_llama.tokenizer.loading import load_tokenizer, tokenizer_fingerprint
from colossal_llama.training.chat_format import keep_adapters_format, record_chat_format
from colossal_llama.training.checkpoint.model_files import small_files

BASES = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture
def tokenizer(made_data, tmp_path):
    """LLaMA-3's base tokenizer, with a chat template that nobody trains here."""
    shutil.copytree(made_data / "tokenizers" / "llama3-base", tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    tokenizer.chat_template = BASES
    return tokenizer


def part(tokenizer, form, tokens=100, kind="sft", **facts) -> Part:
    facts = {"tokenizer_fingerprint": tokenizer_fingerprint(tokenizer)} | facts
    known = PartFacts(kind, f"{kind}-{tokens}", tokens, 64, conversation_format=form, **facts)
    return Part(Path("part"), rows=None, facts=known, categories=())


def record(tokenizer, parts) -> tuple[int, ...]:
    return record_chat_format(tokenizer, parts, tokenizer_fingerprint(tokenizer))


def builtin(tokenizer, system=DEFAULT_SYSTEM) -> dict:
    return json.loads(json.dumps(ConversationTemplate.for_llama(tokenizer, 3, system=system).describe()))


def preset(tokenizer, name="llama3-instruct", date="2025-01-31") -> dict:
    return json.loads(json.dumps(ChatTemplate.open(tokenizer, name, date).describe()))


def test_the_trained_format_replaces_the_bases(tokenizer, capsys):
    eot = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert record(tokenizer, [part(tokenizer, builtin(tokenizer))]) == (tokenizer.eos_token_id, eot)
    assert builtin_version(tokenizer.chat_template) == 3
    assert record(tokenizer, [part(tokenizer, preset(tokenizer))]) == (tokenizer.eos_token_id, eot)
    assert tokenizer.chat_template == PRESETS["llama3-instruct"].source == trained_template(tokenizer)
    assert "warning" not in capsys.readouterr().out


def test_documents_leave_the_tokenizer_as_it_is(tokenizer, capsys):
    assert record(tokenizer, [part(tokenizer, None, kind="pretrain")]) == ()
    assert tokenizer.chat_template == BASES
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("facts", [{}, {"tokenizer_fingerprint": "another"}, {"tokenizer_fingerprint": None}])
def test_a_format_that_is_not_recorded_is_said_once(tokenizer, capsys, facts):
    """Parts of earlier versions; of another tokenizer (--allow_other_data); of later versions."""
    form = {"kind": "of a later version", "turn_end_id": 1} if not facts else builtin(tokenizer)
    for given in (form, None):
        assert record(tokenizer, [part(tokenizer, given, **facts)] * 3) == ()
        assert capsys.readouterr().out.count("is not recorded") == 1
        assert tokenizer.chat_template == BASES


def test_parts_of_several_formats_are_named(tokenizer, capsys):
    parts = [part(tokenizer, builtin(tokenizer), 10), part(tokenizer, preset(tokenizer), 70)]
    parts += [part(tokenizer, builtin(tokenizer), 50), part(tokenizer, None)]
    record(tokenizer, parts)
    assert tokenizer.chat_template == PRESETS["llama3-instruct"].source
    said = capsys.readouterr().out
    assert "3 formats: llama3-instruct (1 parts, 70 tokens); the built-in format with <|eot_id|>" in said
    assert "(2 parts, 60 tokens); none that is recorded (1 parts)" in said


def test_the_models_template_has_the_system_prompt_of_the_data(tokenizer, capsys):
    record(tokenizer, [part(tokenizer, builtin(tokenizer, "You are a guide."))] * 2)
    assert builtin_format(trained_template(tokenizer)).system == "You are a guide."
    assert "warning" not in capsys.readouterr().out
    asked = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert (
        text == "<|begin_of_text|>You are a guide.\n\nHuman: <|begin_of_text|>Hi<|eot_id|>Assistant: <|begin_of_text|>"
    )


def test_parts_of_several_system_prompts_are_several_formats(tokenizer, capsys):
    guides = [
        part(tokenizer, builtin(tokenizer, system), tokens) for system, tokens in (("A.", 10), ("", 30), ("A.", 50))
    ]
    record(tokenizer, guides)
    assert builtin_format(trained_template(tokenizer)).system == "A."
    said = capsys.readouterr().out
    assert "2 formats: the built-in format with <|eot_id|> and the system prompt 'A.' (2 parts, 60 tokens); " in said
    assert "and no system prompt (1 parts, 30 tokens)" in said


def test_one_template_told_several_days_is_one_format(tokenizer, capsys):
    form = preset(tokenizer)
    days = ["2025-01-31", "2025-02-01"]
    record(tokenizer, [part(tokenizer, form | {"date": day}, chat_template_date=day) for day in days])
    said = capsys.readouterr().out
    assert "formats" not in said
    assert "told 2 days" in said
    assert tokenizer.init_kwargs[CHAT_DATE] == "2025-02-01"


@pytest.mark.parametrize(
    ("before", "after"), [(None, [7, 9]), (7, [7, 9]), (9, [9, 7]), ([7, 8, 9], [7, 8, 9]), ([8], [8, 7, 9])]
)
def test_stops_are_added_to_those_of_the_settings(before, after):
    settings = GenerationConfig(eos_token_id=before, max_new_tokens=33, _from_model_config=True)
    changed = with_stop_ids(settings, (7, 9))
    assert changed.eos_token_id == after
    assert changed.max_new_tokens == 33
    assert settings.eos_token_id == before
    assert changed is settings or not changed._from_model_config


def test_one_stop_stays_a_number():
    assert with_stop_ids(GenerationConfig(eos_token_id=2), (2,)).eos_token_id == 2
    assert with_stop_ids(GenerationConfig(), (2,)).eos_token_id == 2


@pytest.fixture
def network(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("is_adapter", [False, True])
def test_models_and_adapters_carry_both(tokenizer, network, is_adapter):
    if is_adapter:
        network = get_peft_model(network, lora_config(2, 4, 0.0, ("q_proj",)))
    before = small_files(network, torch.float32, tokenizer)
    assert json.loads(before["generation_config.json"])["eos_token_id"] == tokenizer.eos_token_id
    assert json.loads(before["tokenizer_config.json"])["chat_template"] == BASES
    stop_ids = record(tokenizer, [part(tokenizer, builtin(tokenizer))])
    files = small_files(network, torch.float32, tokenizer, stop_ids)
    assert ("adapter_config.json" in files) == is_adapter
    assert json.loads(files["generation_config.json"])["eos_token_id"] == list(stop_ids)
    assert builtin_version(json.loads(files["tokenizer_config.json"])["chat_template"]) == 3
    assert "chat_template.jinja" not in files
    # The base's own settings are not changed under the run.
    assert network.generation_config.eos_token_id == tokenizer.eos_token_id


def test_a_merged_model_has_the_adapters_settings(tokenizer, network, tmp_path):
    save_model(network, tmp_path / "base")
    adapted = get_peft_model(network, lora_config(2, 4, 0.0, ("q_proj",)))
    adapted.save_pretrained(tmp_path / "adapter")
    merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "as_before")
    stop_ids = record(tokenizer, [part(tokenizer, builtin(tokenizer))])
    for name, content in small_files(adapted, torch.float32, tokenizer, stop_ids).items():
        (tmp_path / "adapter" / name).write_bytes(content)
    merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert GenerationConfig.from_pretrained(tmp_path / "merged").eos_token_id == list(stop_ids)
    assert GenerationConfig.from_pretrained(tmp_path / "as_before").eos_token_id == tokenizer.eos_token_id


def test_an_adapter_that_is_continued_keeps_its_format(tokenizer, network, tmp_path):
    """The tokenizer of the run is the base's, and documents say nothing of conversations."""
    shutil.copytree(tokenizer.name_or_path, tmp_path / "base")
    stop_ids = record(tokenizer, [part(tokenizer, builtin(tokenizer))])
    (tmp_path / "adapter").mkdir()
    for name, content in small_files(network, torch.float32, tokenizer, stop_ids).items():
        (tmp_path / "adapter" / name).write_bytes(content)
    bases = load_tokenizer(tmp_path / "base")
    assert keep_adapters_format(bases, tmp_path / "adapter") == stop_ids
    assert trained_template(bases) == tokenizer.chat_template

    (tmp_path / "of_peft").mkdir()
    before = bases.chat_template
    assert keep_adapters_format(bases, tmp_path / "of_peft") == ()
    assert bases.chat_template == before
