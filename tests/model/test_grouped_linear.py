"""Grouped linear layers give the gradients that autograd gives."""

import weakref

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from colossal_llama.model.activation_checkpointing import recompute_layers
from colossal_llama.model.kernels.grouped_linear import SharedInput, share_input_gradients

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}


def gradients(
    shared: bool,
    recomputed: int = 0,
    reentrant: bool = False,
    frozen: str = "-",
    bias: bool = False,
    lora: bool = False,
):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=50, num_hidden_layers=2, attention_bias=bias, **SIZES)
    model = LlamaForCausalLM(config).train()
    if shared:
        share_input_gradients(model)
    recompute_layers(model, recomputed, reentrant)
    if lora:  # some of a group's layers are wrapped, their weights frozen
        model = get_peft_model(
            model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False)
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and frozen not in name)
    ids = torch.arange(24).view(2, 12)
    for rows in (ids, ids + 3):  # a second backward pass adds to the first one's gradients
        model(input_ids=rows, labels=rows).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"recomputed": 2},
        {"recomputed": 1, "reentrant": True},
        {"frozen": "embed_tokens"},
        {"frozen": "k_proj"},
        {"bias": True},
        {"lora": True},
    ],
    ids=str,
)
def test_gradients_are_the_same(settings):
    mine, theirs = gradients(True, **settings), gradients(False, **settings)
    for name, gradient in theirs.items():
        assert (gradient is None) == (mine[name] is None), name
        if gradient is not None:
            torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def test_additions_are_inside_the_products():
    """No addition of whole input gradients is left but those of the residual stream."""
    counts = []
    for shared in (True, False):
        with torch.profiler.profile() as profiler:
            gradients(shared)
        counts.append(sum(event.count for event in profiler.key_averages() if event.key in ("aten::add", "aten::add_")))
    two_layers_twice = 2 * 2
    assert counts[1] - counts[0] == two_layers_twice * (2 + 1)


def test_a_result_is_computed_once_for_all_readers_and_then_forgotten():
    """A second read, another input or another key computes anew; another tensor object does not."""
    shared, first, second, calls = SharedInput(2), torch.ones(3), torch.ones(3), []

    def read(layer, hidden, key=None):
        return shared.result(layer, hidden, lambda: calls.append(key) or len(calls), key)

    assert [read(0, first), read(1, first.view_as(first))] == [1, 1]
    assert [read(0, first), read(0, first), read(1, second), read(1, second, "key"), read(0, second, "key")] == [
        2,
        3,
        4,
        5,
        5,
    ]
    reference = weakref.ref(second)
    del second
    assert reference() is None
