"""Models that are damaged, incomplete or absent are named."""

import json
import os
import re
import shutil

import pytest
import torch
from transformers import AutoTokenizer

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


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "nowhere"])
def test_a_missing_directory_is_named(name):
    with pytest.raises(UserError, match="is not a directory"):
        find_model(name)
