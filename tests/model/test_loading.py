"""Models are loaded from the files that people have: safetensors and .bin, whole or in shards."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from colossal_llama.model.loading import load_model
from tests.support.bin_weights import convert_to_bin


@pytest.mark.parametrize("shard_size", ["1GB", "20KB"], ids=["whole", "shards"])
@pytest.mark.parametrize("safetensors", [True, False], ids=["safetensors", "bin"])
def test_weights_are_those_that_were_saved(tmp_path, safetensors, shard_size):
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape)).to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    if not safetensors:
        convert_to_bin(tmp_path)
    assert any(tmp_path.glob("*.safetensors")) == safetensors
    loaded = load_model(tmp_path, torch.bfloat16, "sdpa", torch.device("cpu")).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())
