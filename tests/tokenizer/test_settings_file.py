"""Tokenizers that transformers 5 has written are read, and copied so that 4.51 and 5 read them."""

import json

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from colossal_llama.tokenizer.loading import load_tokenizer, tokenizer_fingerprint
from colossal_llama.tokenizer.settings_file import (
    copy_settings,
    is_for_both,
    make_settings_portable,
    portable_settings,
    take_definition_as_it_is,
)
from tests.support.files_of_5 import CLASS_OF, as_transformers_5
from tests.support.tokenizer_scripts import ids_of

TEXTS = ["The cat  sat.\n    <s> 人工智能 12345", "  two spaces", "<|eot_id|>你好</s>", "x"]


@pytest.mark.parametrize("family", CLASS_OF)
def test_a_directory_of_transformers_5_gives_the_same_ids_here_and_copied(family, made_data, tmp_path):
    source = made_data / "tokenizers" / family
    directory = as_transformers_5(source, tmp_path / "five", CLASS_OF[family])
    original, tokenizer = load_tokenizer(source), load_tokenizer(directory)
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(original)
    assert tokenizer.chat_template is not None
    copy = tmp_path / "copy"
    copy.mkdir()
    copy_settings(directory, copy)
    (copy / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
    assert (copy / "additional_chat_templates" / "tools.jinja").read_text() == "{{ tools }}"
    plain = AutoTokenizer.from_pretrained(copy)  # of either version
    assert [plain(text)["input_ids"] for text in TEXTS] == [original(text)["input_ids"] for text in TEXTS]
    assert (plain.bos_token, plain.eos_token) == (original.bos_token, original.eos_token)
    assert set(original.all_special_tokens) <= set(plain.all_special_tokens)


@pytest.mark.parametrize("family", CLASS_OF)
def test_what_both_versions_read_is_copied_byte_for_byte(family, made_data, tmp_path):
    source = made_data / "tokenizers" / family
    assert is_for_both(source)
    copy_settings(source, tmp_path)
    names = ("tokenizer_config.json", "special_tokens_map.json")
    assert all((tmp_path / name).read_bytes() == (source / name).read_bytes() for name in names)


@pytest.mark.parametrize(
    ("settings", "has_model", "expected"),
    [
        ({"tokenizer_class": "TokenizersBackend"}, False, {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ({"tokenizer_class": "NewTokenizer", "backend": "x"}, False, {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ({"tokenizer_class": "LlamaTokenizer", "backend": "x"}, True, {"tokenizer_class": "LlamaTokenizer"}),
        (
            {"tokenizer_class": "LlamaTokenizerFast", "add_prefix_space": False},
            False,
            {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False},
        ),
        (
            {"tokenizer_class": "A", "extra_special_tokens": ["<x>", "<y>"], "additional_special_tokens": ["<x>"]},
            False,
            {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<x>", "<y>"]},
        ),
        ({"tokenizer_class": "GPT2Tokenizer", "extra_special_tokens": {}}, False, None),
        ({"tokenizer_class": "LlamaTokenizer", "add_prefix_space": None}, False, None),
        ({}, False, None),
    ],
)
def test_keys_and_classes(settings, has_model, expected):
    portable = portable_settings(settings, has_model)
    assert portable == (settings if expected is None else expected)
    assert portable_settings(portable, has_model) == portable


def test_saved_by_the_version_here_both_read_it(made_data, tmp_path):
    tokenizer = load_tokenizer(made_data / "tokenizers" / "llama3-base")
    tokenizer.save_pretrained(tmp_path)
    make_settings_portable(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] in ("PreTrainedTokenizerFast", "PreTrainedTokenizer")
    assert not isinstance(settings.get("extra_special_tokens"), list)
    assert ids_of(PreTrainedTokenizerFast.from_pretrained(tmp_path), TEXTS) == ids_of(tokenizer, TEXTS)


def test_a_class_of_transformers_5_that_makes_its_own_pre_tokenizer_is_not_named(made_data, tmp_path):
    as_transformers_5(made_data / "tokenizers" / "llama3-base", tmp_path / "five", "GPT2Tokenizer")
    path = tmp_path / "five" / "tokenizer_config.json"
    path.write_text(
        json.dumps(
            {"tokenizer_class": "GPT2TokenizerFast", "bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
        )
    )
    take_definition_as_it_is(tmp_path / "five")
    assert json.loads(path.read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert load_tokenizer(tmp_path / "five").model_input_names == ["input_ids", "attention_mask"]  # of a GPT-2
    definition = json.loads((tmp_path / "five" / "tokenizer.json").read_text())
    definition["pre_tokenizer"] = {"type": "ByteLevel"}
    (tmp_path / "five" / "tokenizer.json").write_text(json.dumps(definition))
    path.write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    take_definition_as_it_is(tmp_path / "five")
    assert json.loads(path.read_text())["tokenizer_class"] == "GPT2Tokenizer"
