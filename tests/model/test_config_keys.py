"""Rotary embeddings as transformers 5 writes them: both versions compute what 5 computes."""

import json

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from colossal_llama.model.config_file import make_config_portable, read_model_config
from colossal_llama.model.config_keys import NotTranslatableError, portable_config
from colossal_llama.model.loading import load_complete_model, load_config

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 256}
SHAPE = {**SIZES, "vocab_size": 50, "intermediate_size": 48, "num_hidden_layers": 1, "rms_norm_eps": 1e-6}
LLAMA3 = {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_theta": 1000.0, "rope_type": "yarn"}
LONGROPE = {"rope_theta": 1e4, "rope_type": "longrope", "short_factor": [1, 1.5, 2, 2.5], "long_factor": [2, 3, 4, 5]}
ORIGINAL = "original_max_position_embeddings"
COMPUTED_BY_5 = [  # parameters, frequencies, scaling of the attention: those of transformers 5.24
    ({**LLAMA3, ORIGINAL: 64}, [1.0, 0.004700754, 0.000176777, 6.648e-06], 1.0),
    ({**YARN, "factor": 4.0, ORIGINAL: 64}, [1.0, 0.111142464, 0.007905695, 0.001405853], 1.138629436),
    ({**YARN, "factor": None, ORIGINAL: 64}, [1.0, 0.111142464, 0.007905695, 0.001405853], 1.138629436),
    ({**YARN, "factor": 3.0, ORIGINAL: 64, "beta_fast": 8}, [1.0, 0.118551962, 0.010540925, 0.001874471], 1.109861229),
    (
        {**YARN, "factor": 3.0, ORIGINAL: 32, "mscale": 0.7, "mscale_all_dim": 1.1},
        [1.0, 0.059275981, 0.010540925, 0.001874471],
        0.960793509,
    ),
    ({**YARN, "factor": 4.0}, [1.0, 0.133370951, 0.015811389, 0.001405853], 1.138629436),
    ({**LONGROPE, "factor": 4.0, ORIGINAL: 64}, [1.0, 0.06666667, 0.005, 0.0004], 1.154700538),
    ({**LONGROPE, ORIGINAL: 64}, [1.0, 0.06666667, 0.005, 0.0004], 1.154700538),
    ({**LONGROPE, "factor": 3.0, ORIGINAL: 64}, [1.0, 0.06666667, 0.005, 0.0004], 1.124348886),
    ({**LONGROPE, "factor": 3.0}, [1.0, 0.06666667, 0.005, 0.0004], 1.094586823),
    ({"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}, [0.5, 0.05, 0.005, 0.0005], 1.0),
    ({"rope_theta": 1e4, "rope_type": "proportional", "factor": 2.0}, [0.5, 0.05, 0.005, 0.0005], 1.0),
    ({"rope_theta": 16.0}, [1.0, 0.5, 0.25, 0.125], 1.0),
]


@pytest.mark.parametrize(("parameters", "frequencies", "scaling"), COMPUTED_BY_5)
def test_frequencies_are_those_of_transformers_5(parameters, frequencies, scaling):
    written = {**SIZES, "rope_parameters": parameters, "dtype": "bfloat16"}
    for _ in range(2):  # as read here, and as written, loaded and written again
        portable = portable_config(written)
        assert not portable.keys() & {"rope_parameters", "dtype"}
        config = LlamaConfig.from_dict(portable)
        assert portable["torch_dtype"] in ("bfloat16", config.torch_dtype)
        embedding = LlamaRotaryEmbedding(config)
        torch.testing.assert_close(embedding.inv_freq, torch.tensor(frequencies), rtol=1e-6, atol=1e-9)
        assert embedding.attention_scaling == pytest.approx(scaling, rel=1e-8)
        written = json.loads(config.to_json_string())


def test_the_switch_of_longrope_is_at_the_original_length():
    config = LlamaConfig.from_dict(portable_config({**SIZES, "rope_parameters": {**LONGROPE, ORIGINAL: 64}}))
    embedding, hidden = LlamaRotaryEmbedding(config), torch.zeros(1, 1, 8)
    below, above = (embedding(hidden, torch.arange(length)[None])[0][0, 1, 0] for length in (64, 65))
    assert below == pytest.approx(1.154700538 * torch.cos(torch.tensor(1.0)).item())
    assert above == pytest.approx(1.154700538 * torch.cos(torch.tensor(0.5)).item())


@pytest.mark.parametrize(
    "old",
    [
        {"rope_theta": 1000.0},
        {"rope_theta": 1000.0, "rope_scaling": {"type": "yarn", "factor": 4.0, ORIGINAL: 64}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 64, "beta_fast": None}},
    ],
)
def test_keys_of_both_versions_may_say_the_same(old):
    portable = portable_config({**SIZES, **old, "rope_parameters": {**YARN, "factor": 4.0, ORIGINAL: 64}})
    assert (portable["rope_theta"], portable["rope_scaling"]["factor"]) == (1000.0, 4.0)
    with pytest.raises(NotTranslatableError, match="one of them is wrong"):
        portable_config({**SIZES, **old, "rope_parameters": {**YARN, "rope_theta": 1e4, "rope_type": "linear"}})


def test_a_model_directory_of_transformers_5_gives_the_same_logits_and_is_written_for_both(tmp_path):
    torch.manual_seed(0)
    scaling = {key: value for key, value in LLAMA3.items() if key != "rope_theta"} | {ORIGINAL: 8}
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, rope_theta=5e5, rope_scaling=scaling, initializer_range=0.5)).eval()
    model.save_pretrained(tmp_path)
    make_config_portable(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert (content["rope_theta"], content["torch_dtype"], content.get("rope_parameters")) == (5e5, "float32", None)
    moved = {key: value for key, value in content.items() if key not in ("rope_theta", "rope_scaling", "torch_dtype")}
    moved |= {"dtype": "float32", "rope_parameters": {**LLAMA3, ORIGINAL: 8}}
    (tmp_path / "config.json").write_text(json.dumps(moved))
    ids = torch.arange(40)[None]
    loaded = load_complete_model(LlamaForCausalLM, tmp_path, torch_dtype="auto").eval()
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert load_config(tmp_path).rope_scaling["factor"] == 8.0
    (tmp_path / "config.json").write_text(json.dumps(read_model_config(tmp_path)))
    plain = LlamaForCausalLM.from_pretrained(tmp_path, config=AutoConfig.from_pretrained(tmp_path)).eval()
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, model(ids).logits)
