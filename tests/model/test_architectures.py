"""The table of architectures says of each what transformers' own class says."""

import json
import math

import pytest
import torch
import transformers

from colossal_llama.model.architectures import ARCHITECTURES, find_architecture, key_value_heads
from colossal_llama.model.attention.document_mask import encode_document_mask
from colossal_llama.model.attention.varlen import SDPA
from colossal_llama.model.config_file import read_model_config
from colossal_llama.model.loading import load_config, load_model, model_class
from colossal_llama.model.param_count import flops_per_token, layer_parameters, parameters
from colossal_llama.model.weights.llama_tensors import expected_tensors
from colossal_llama.utils.errors import UserError
from tests.support import model_table
from tests.support.architectures import ONE_OF_EACH, VARIANTS, config_of, make_model, random_model

LENGTHS = [[7, 20], [27], [3, 3, 12]]
ROW = 27


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_tensors_and_parameters_are_those_of_transformers(variant, biased):
    config = config_of(variant, vocab_size=50, attention_bias=biased, mlp_bias=biased)
    model = random_model(config)
    assert dict(expected_tensors(config.to_dict())) == {k: tuple(v.shape) for k, v in model.state_dict().items()}
    assert parameters(config) == sum(parameter.numel() for parameter in model.parameters())
    assert layer_parameters(config) == sum(parameter.numel() for parameter in model.model.layers[1].parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.model_type)
def test_missing_keys_mean_what_transformers_takes_them_for(architecture):
    given = {"hidden_size": 512, "num_attention_heads": 32, "model_type": architecture.model_type}
    config = model_class(architecture).config_class.from_dict(given)
    completed = architecture.complete(given)
    assert key_value_heads(completed) == config.num_key_value_heads
    if hasattr(config, "head_dim"):
        assert architecture.defaults.get("head_dim", 512 // 32) == config.head_dim
    if architecture.has_window:
        assert completed.sliding_window == config.sliding_window


@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_logits_are_those_of_transformers_for_each_document_alone(variant):
    """In plain rows, by the architecture's own class, with its window where it has one."""
    model = random_model(config_of(variant, vocab_size=50, initializer_range=0.2))
    ids = torch.randint(0, 50, (len(LENGTHS), ROW))
    positions = torch.stack([torch.cat([*map(torch.arange, row), torch.zeros(ROW - sum(row))]) for row in LENGTHS])
    model.config._attn_implementation = SDPA
    packed = model(
        input_ids=ids, position_ids=positions.long(), attention_mask=encode_document_mask(LENGTHS, ROW)
    ).logits
    model.config._attn_implementation = "eager"
    for row, lengths in enumerate(LENGTHS):
        ends = torch.tensor(lengths).cumsum(0).tolist()
        for begin, end in zip([0, *ends[:-1]], ends, strict=True):
            alone = model(input_ids=ids[row : row + 1, begin:end]).logits[0]
            torch.testing.assert_close(packed[row, begin:end], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_directory_opens_by_the_architectures_own_class(variant, llama2, tmp_path):
    directory = make_model(tmp_path / "model", variant, llama2)
    model = load_model(directory, torch.float32, SDPA, torch.device("cpu"))
    assert type(model).__name__ == find_architecture(VARIANTS[variant]["model_type"]).causal_class
    assert read_model_config(directory)["model_type"] == model.config.model_type
    reference = transformers.AutoModelForCausalLM.from_pretrained(directory)
    for name, tensor in reference.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("variant", "settings", "said"),
    [
        ("qwen2", {"use_sliding_window": True}, "sliding window on some layers"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding window on some layers"),
        ("qwen3", {"layer_types": 3}, "sliding window on some layers"),
        ("mistral-v0.1", {"sliding_window": 0}, "sliding_window is 0"),
        ("mistral-v0.1", {"sliding_window": "4096"}, "sliding_window is '4096'"),
        ("qwen2", {"use_sliding_window": "no"}, "use_sliding_window is 'no'"),
        ("qwen2", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ("mistral-v0.1", {"num_attention_heads": 5}, "not divisible"),
        ("qwen3", {"model_type": "gemma2"}, r"type 'gemma2', and this suite trains llama \(.*\); mistral .*qwen3"),
        ("qwen3", {"model_type": "qwen3_moe"}, "type 'qwen3_moe', and this suite trains"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(variant, settings, said, llama2, tmp_path):
    directory = make_model(tmp_path / "model", variant, llama2)
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    with pytest.raises(UserError, match=said):
        load_config(directory)


def test_flops_count_what_the_window_leaves():
    config = config_of("mistral-v0.1", vocab_size=50, sliding_window=10)
    unlimited = config_of("mistral-v0.1", vocab_size=50, sliding_window=None)
    queries, layers = 64, 2
    attended = sum(min(position + 1, 10) for position in range(40)) / 40
    expected = 6 * layers * queries * 2 * attended
    found = flops_per_token(config, 40) - flops_per_token(unlimited, 40) + 6 * layers * queries * 40
    assert math.isclose(found, expected, rel_tol=0.1)  # half a token a position is left out in both
    assert flops_per_token(config, 10) == flops_per_token(unlimited, 10)


def test_one_of_each_architecture_is_among_the_models_of_the_tests():
    assert [VARIANTS[name]["model_type"] for name in ONE_OF_EACH] == [each.model_type for each in ARCHITECTURES]


def test_the_documented_table_is_that_of_the_code():
    document = model_table.DOCUMENT.read_text(encoding="utf-8")
    assert document == model_table.with_table(document), "run python -m tests.support.model_table --write"
