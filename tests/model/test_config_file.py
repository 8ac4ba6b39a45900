"""A config.json that is damaged, impossible or reaches into transformers is refused."""

import json
import shutil

import pytest

from colossal_llama.model.config_file import make_config_portable, read_generation_config
from colossal_llama.model.loading import load_config
from colossal_llama.utils.errors import UserError


@pytest.fixture
def model(toy, tmp_path):
    directory = shutil.copytree(toy.model, tmp_path / "model")
    make_config_portable(directory)  # written by either version
    return directory


def change(model, **values):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "is not a JSON object, but a list"),
        ("null", "is not a JSON object, but null"),
        ("{}", "model_type is missing"),
        ('{"model_type": "lla', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        ('{"model_type": "llama"}', "vocab_size is missing, not a positive whole number"),
    ],
)
def test_a_file_that_holds_no_configuration(model, content, said):
    (model / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=said):
        load_config(model)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"hidden_size": 0}, "hidden_size is 0, not a positive"),
        ({"vocab_size": "203"}, "vocab_size is '203', not a positive"),
        ({"vocab_size": 2**40}, "vocab_size is 1099511627776, not a positive"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers is 2.0"),
        ({"num_hidden_layers": 10**9}, "more than 10,000"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": None}, "is not divisible by num_attention"),
        ({"num_key_value_heads": 3}, "is not divisible by num_key_value_heads 3"),
        ({"head_dim": 15}, "15 dimensions"),
        ({"rms_norm_eps": None}, "rms_norm_eps is missing"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        ({"attention_dropout": 1.5}, "attention_dropout is 1.5"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no', not true or false"),
        ({"return_dict": False}, "return_dict is False"),
        ({"pad_token_id": 203}, "pad_token_id is 203"),
        ({"eos_token_id": "2"}, "eos_token_id is '2'"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
        ({"rope_scaling": {"rope_type": "square"}}, "type 'square'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -2.0}}, "factor -2.0"),
        ({"rope_scaling": {"rope_type": "linear"}}, "of type linear and lacks factor"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 8}}, "short_factor"),
        ({"torch_dtype": "bfloat17"}, "cannot be used"),
        ({"torch_dtype": "nn"}, "cannot be used"),
        ({"id2label": []}, "cannot be used"),
        ({"num_labels": 10**12}, "num_labels is"),
        ({"quantization_config": {"quant_method": "gptq"}}, "is a quantized model"),
        ({"model_type": "gpt2"}, "this suite trains llama "),
    ],
)
def test_impossible_values(model, values, said):
    change(model, **values)
    with pytest.raises(UserError, match=said):
        load_config(model)


@pytest.mark.parametrize(
    "key",
    [
        "_attn_implementation_internal",
        "_attn_implementation",
        "_custom_modules",
        "configuration_files",
        "to_dict",
        "attribute_map",
        "base_model_tp_plan",
    ],
)
def test_keys_that_reach_into_transformers(model, key):
    change(model, **{key: "somebody/kernel:attention"})
    with pytest.raises(UserError, match=key):
        load_config(model)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rope_theta": 500_000.0}, "rope_theta is 10000.0, and 500000.0 in rope_parameters"),
        ([], "rope_parameters is"),
        ({"rope_type": "axial"}, "type 'axial'"),
        ({"rope_type": "linear", "factor": "2"}, "rope_parameters has factor '2'"),
        ({"rope_type": "linear"}, "of type linear and lacks factor"),
        ({"rope_type": "yarn", "factor": 2.0, "beta_fast": "fast"}, "beta_fast 'fast'"),
        ({"rope_type": "yarn", "factor": 3.0, "truncate": False}, "truncate false"),
        ({"full_attention": {"rope_type": "default"}}, "values of their own for full_attention layers"),
        ({"rope_type": "proportional", "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ],
)
def test_rotary_embeddings_of_transformers_5_that_4_cannot_compute(model, values, said):
    change(model, rope_parameters=values)
    with pytest.raises(UserError, match=said):
        load_config(model)


def test_what_published_models_have_is_read(model):
    change(
        model,
        _name_or_path="meta/llama",
        _attn_implementation_autoset=True,
        _flash_attn_2_enabled=True,
        _num_labels=2,
        keys_to_ignore_at_inference=["past_key_values"],
        attn_implementation="eager",
        eos_token_id=[2, 5],
        pad_token_id=-1,
        num_key_value_heads=None,
        torch_dtype="bfloat16",
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        somebody_s_own_key={"any": "thing"},
    )
    config = load_config(model)
    assert (config.num_key_value_heads, config.eos_token_id) == (4, [2, 5])
    assert config._attn_implementation == "eager"


@pytest.mark.parametrize("content", ["[]", '{"eos_token_id": ["</s>"]}', '{"eos_token', '{"_private": 1}'])
def test_a_damaged_generation_config_is_no_absent_one(model, content):
    (model / "generation_config.json").write_text(content)
    with pytest.raises(UserError, match=r"generation_config\.json"):
        read_generation_config(model)
