"""Weight files that are not those of their config.json are refused before anything is loaded."""

import itertools

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from colossal_llama.model.weights.llama_tensors import check_tensors, expected_tensors
from colossal_llama.utils.errors import UserError

SHAPE = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("head_dim", [None, 16])
def test_expected_tensors_are_those_of_transformers(biased, head_dim):
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": head_dim}
    config = LlamaConfig(**SHAPE, **heads, attention_bias=biased, mlp_bias=biased)
    model = LlamaForCausalLM(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert dict(expected_tensors(config.to_dict())) == shapes


CONFIG = LlamaConfig(**SHAPE, num_attention_heads=4, num_key_value_heads=2).to_dict()
TENSORS = dict(expected_tensors(CONFIG))


@pytest.mark.parametrize(
    ("changed", "config", "said"),
    [
        ({"model.norm.weight": None}, {}, r"1 tensors are missing \(model\.norm\.weight\)"),
        ({"lm_head.weight": None}, {}, r"1 tensors are missing \(lm_head\.weight\)"),
        ({"model.norm.weight": (31,)}, {}, r"other shapes \(model\.norm\.weight is \[31\], by config\.json \[32\]\)"),
        ({}, {"vocab_size": 41}, "2 tensors have other shapes"),
        ({}, {"num_hidden_layers": 1}, "9 tensors that its config.json has no place for"),
        ({}, {"num_hidden_layers": 3}, "9 tensors are missing"),
        ({"model.layers.0.self_attn.q_proj.bias": (32,)}, {}, "1 tensors that its config.json has no place for"),
    ],
)
def test_differences_are_named(tmp_path, changed, config, said):
    found = {name: shape for name, shape in {**TENSORS, **changed}.items() if shape is not None}
    with pytest.raises(UserError, match=said):
        check_tensors(tmp_path, found, {**CONFIG, **config})


def test_what_real_models_have_is_taken(tmp_path, capsys):
    for buffer in ("inv_freq", "cos_cached", "sin_cached"):
        check_tensors(tmp_path, {**TENSORS, f"model.layers.0.self_attn.rotary_emb.{buffer}": (4,)}, CONFIG)
    tied = dict(itertools.islice(TENSORS.items(), len(TENSORS) - 1))
    check_tensors(tmp_path, tied, {**CONFIG, "tie_word_embeddings": True})
    check_tensors(tmp_path, {name.removeprefix("model."): shape for name, shape in TENSORS.items()}, CONFIG)
    assert capsys.readouterr().out == ""
    check_tensors(tmp_path, {**TENSORS, "v_head.weight": (1,)}, CONFIG)
    assert "1 tensors in" in capsys.readouterr().out
