"""Models that are damaged, incomplete or absent are named."""

import json
import os
import re
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from colossal_llama.model.pretrained import find_model, load_for_inference
from colossal_llama.utils.errors import UserError


def test_weights_that_were_cut_off_are_named(random_model_directory, tmp_path):
    shutil.copytree(random_model_directory, tmp_path / "cut")
    os.truncate(tmp_path / "cut" / "model.safetensors", 100_000)
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read: it is incomplete or damaged"):
        load_for_inference(tmp_path / "cut", "auto", torch.device("cpu"))


def test_weights_that_are_missing_are_named(random_model, llama2, tmp_path):
    weights = {name: tensor for name, tensor in random_model.state_dict().items() if "layers.0.mlp.up_proj" not in name}
    random_model.save_pretrained(tmp_path, state_dict=weights)
    AutoTokenizer.from_pretrained(llama2).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"1 tensors are missing \(model\.layers\.0\.mlp\.up_proj\.weight\)"):
        load_for_inference(tmp_path, "auto", torch.device("cpu"))


def test_an_index_that_names_a_tensor_too_many_is_no_damage_and_a_shard_that_was_cut_off_is(
    random_model, llama2, tmp_path
):
    random_model.save_pretrained(tmp_path, max_shard_size=random_model.lm_head.weight.nbytes // 2)
    AutoTokenizer.from_pretrained(llama2).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    last = index["weight_map"]["lm_head.weight"]
    index["weight_map"]["model.layers.0.self_attn.rotary_emb.inv_freq"] = last
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_for_inference(tmp_path, "auto", torch.device("cpu"))
    os.truncate(tmp_path / last, (tmp_path / last).stat().st_size - 1)
    with pytest.raises(UserError, match=rf"{re.escape(last)} cannot be read: it is incomplete or damaged"):
        load_for_inference(tmp_path, "auto", torch.device("cpu"))


def test_an_adapter_whose_tensors_do_not_fit_is_refused(random_model_directory, tmp_path):
    model = LlamaForCausalLM.from_pretrained(random_model_directory)
    adapter = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapter.save_pretrained(tmp_path)
    change_json(tmp_path / "adapter_config.json", base_model_name_or_path=str(random_model_directory))
    load_for_inference(tmp_path, "auto", torch.device("cpu"))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    name = next(iter(tensors))
    for changed in ({**tensors, name.replace("q_proj", "k_proj"): tensors[name].clone()}, {}):
        save_file(changed, tmp_path / "adapter_model.safetensors")
        with pytest.raises(UserError, match=r"does not belong to its adapter_config\.json"):
            load_for_inference(tmp_path, "auto", torch.device("cpu"))


def test_an_unknown_architecture_is_named_in_one_sentence(random_model_directory, tmp_path):
    shutil.copytree(random_model_directory, tmp_path, dirs_exist_ok=True)
    change_json(tmp_path / "config.json", model_type="somebody_s")
    with pytest.raises(UserError, match=r"^[^\n]+ is a model of type 'somebody_s', which transformers does not know;"):
        load_for_inference(tmp_path, "auto", torch.device("cpu"))


def change_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "nowhere"])
def test_a_missing_directory_is_named(name):
    with pytest.raises(UserError, match="is not a directory"):
        find_model(name)
