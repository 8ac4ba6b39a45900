"""Frequencies that depend on the sequence's length: refused where documents would share them."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from colossal_llama.model.rope import unscaled_length_tokens, varying_rope_problem
from colossal_llama.utils.errors import UserError

SHAPE = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16}


def config_of(kind):
    scaling = {"rope_type": kind, "factor": 4.0}
    if kind == "longrope":
        scaling |= {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    if kind == "llama3":
        scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8}
    return LlamaConfig(**SHAPE, **HEADS, rope_scaling=None if kind == "default" else scaling)


@pytest.mark.parametrize("kind", ["default", "linear", "yarn", "llama3", "dynamic", "longrope"])
def test_types_are_known_by_what_transformers_computes(kind):
    """Logits depend on a longer neighbour only in the types that are said to vary."""
    torch.manual_seed(0)
    config = config_of(kind)
    model = LlamaForCausalLM(config).eval()
    short, long = torch.arange(10)[None], torch.arange(40)[None]
    with torch.no_grad():
        alone = model(short).logits
        shared = model(torch.cat([torch.nn.functional.pad(short, (0, 30)), long])).logits[:1, :10]
    limit_tokens = unscaled_length_tokens(config)
    assert (limit_tokens is not None) == (not torch.allclose(alone, shared, atol=1e-5))
    assert limit_tokens in (None, 16)


@pytest.mark.parametrize(
    ("kind", "shortest", "longest", "several", "is_right"),
    [
        ("dynamic", 4, 16, True, True),
        ("dynamic", 4, 17, True, False),
        ("dynamic", 17, 17, False, False),  # what a sequence is given depends on those before it
        ("longrope", 4, 17, True, False),
        ("longrope", 4, 17, False, True),
        ("longrope", 17, 40, True, True),
        ("yarn", 4, 400, True, True),
        ("default", 4, 400, True, True),
    ],
)
def test_data_are_refused_where_neighbours_matter(kind, shortest, longest, several, is_right):
    problem = varying_rope_problem(config_of(kind), shortest, longest, several)
    assert (problem is None) == is_right
    assert problem is None or f"of type {kind}" in problem


def test_training_inputs_are_refused(toy, tmp_path):
    from colossal_llama.dataset.part_reader import open_parts
    from colossal_llama.model.config_file import make_config_portable
    from colossal_llama.model.loading import load_config
    from colossal_llama.training.inputs import _refuse_varying_rope

    model = shutil.copytree(toy.model, tmp_path / "model")
    make_config_portable(model)
    settings = json.loads((model / "config.json").read_text())
    settings |= {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 20}
    (model / "config.json").write_text(json.dumps(settings))
    data = SimpleNamespace(micro_batch_size=1, cross_document_attention=False, padding_mode="none", max_length=96)
    parts, config = open_parts(toy.parts, 96), load_config(model)
    with pytest.raises(UserError, match="for documents of more than 20 tokens"):
        _refuse_varying_rope(data, config, parts)
    longest = max(int(part.document_tokens(False).max()) for part in parts)
    config.max_position_embeddings = longest
    _refuse_varying_rope(data, config, parts)
    with pytest.raises(UserError, match=f"more than {longest} tokens"):  # rows, where attention crosses documents
        _refuse_varying_rope(SimpleNamespace(**{**vars(data), "cross_document_attention": True}), config, parts)
