"""Counts of what is trained, by the options alone, are those of a model with them."""

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from colossal_llama.model.param_count import flops_per_token
from colossal_llama.training.command_line import parse_arguments
from colossal_llama.training.trained_parameters import freeze, trained_parameters, trained_values

SHAPE = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2}
NEW_ROWS = range(20, 29)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--train_only", "embeddings"),
        ("--freeze_non_embeds_params",),
        ("--train_only", "new_rows"),
        ("--freeze_layers", "2"),
        ("--freeze_layers", "3"),
    ],
)
def test_counts_are_those_of_the_frozen_model(base, words, tied):
    method = parse_arguments([*base, *words]).method
    config = LlamaConfig(vocab_size=32, tie_word_embeddings=tied, **SHAPE)
    model = LlamaForCausalLM(config)
    note = freeze(method, model, NEW_ROWS)
    assert (note is None) == (words == ())
    everything = sum(parameter.numel() for parameter in model.parameters())
    with_gradient = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert (trained_parameters(method, config) or everything) == with_gradient
    frozen_rows = (32 - len(NEW_ROWS)) * 8 * (1 if tied else 2) if "new_rows" in words else 0
    assert (trained_values(method, config, NEW_ROWS) or everything) == with_gradient - frozen_rows


def test_frozen_weights_take_no_flops_for_their_gradients():
    """Of three products with a weight two are left: the output, and the gradient of the input."""
    config = LlamaConfig(vocab_size=32, **SHAPE)
    layer = LlamaForCausalLM(config).model.layers[0]
    frozen = sum(parameter.numel() for parameter in layer.parameters())
    assert flops_per_token(config, 16) - flops_per_token(config, 16, frozen) == 2 * frozen
