"""A damaged configuration of an adapter is named."""

import json

import pytest

from colossal_llama.model.weights.adapter_files import (
    adapter_base_name,
    load_adapter_config,
    make_adapter_portable,
    whole_modules,
    write_adapter_card,
)
from colossal_llama.utils.errors import UserError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ('{"r": 4, "lora_alpha": 8}', "lora_dropout, target_modules is missing"),
    ],
)
def test_a_damaged_configuration_of_an_adapter_is_named(content, message, tmp_path):
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load_adapter_config(tmp_path)
    with pytest.raises(UserError, match=r"adapter_config\.json (is not|cannot be used)"):
        adapter_base_name(tmp_path)


def test_the_card_of_an_adapter_is_short_and_true(tmp_path):
    settings = {"r": 4, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": ["v_proj", "q_proj"]}
    settings |= {"base_model_name_or_path": "someone/base", "modules_to_save": ["embed_tokens"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    (tmp_path / "README.md").write_text("[More Information Needed]")
    write_adapter_card(tmp_path)
    card = (tmp_path / "README.md").read_text("utf-8")
    assert "Of the base model `someone/base`: rank 4, alpha 32, dropout 0.1." in card
    assert "Trained are q_proj, v_proj, embed_tokens as a whole." in card
    assert "Needed" not in card


def test_the_card_names_the_new_rows(tmp_path):
    settings = {"r": 4, "lora_alpha": 8, "lora_dropout": 0, "target_modules": ["q_proj"]}
    settings |= {"base_model_name_or_path": "someone/base", "modules_to_save": ["lm_head", "embed_tokens"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    (tmp_path / "new_rows.json").write_text('{"first_new_row": 32000}')
    write_adapter_card(tmp_path, trains_new_rows_only=True)
    card = (tmp_path / "README.md").read_text("utf-8")
    assert "Trained are q_proj, and the rows from 32,000 on of embed_tokens and lm_head, saved as whole" in card
    assert 'from_pretrained("someone/base")' in card


def test_settings_that_older_versions_of_peft_refuse_are_left_out(tmp_path):
    known = {"r": 4, "use_dora": False, "modules_to_save": None}
    newer = {"peft_version": "0.21.2", "qalora_group_size": 16, "trainable_token_indices": None}
    (tmp_path / "adapter_config.json").write_text(json.dumps(known | newer | {"lora_bias": True}))
    make_adapter_portable(tmp_path, {"qalora_group_size": 16, "lora_bias": False, "r": 4})
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == known | {"lora_bias": True}


@pytest.mark.parametrize("value", ["embed_tokens", {"lm_head": 1}, [1]])
def test_modules_that_are_no_list_of_names_are_refused(value, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"modules_to_save": value}))
    with pytest.raises(UserError, match="modules_to_save is"):
        whole_modules(tmp_path)
