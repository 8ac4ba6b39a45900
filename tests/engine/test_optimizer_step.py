"""A refused update leaves weights, moments and step counts unchanged."""

import math
from types import SimpleNamespace

import pytest
import torch

from colossal_llama.engine.launch import prepare_engine

prepare_engine()

from colossal_llama.engine.optimizer_step import refuse_nonfinite_updates  # noqa: E402


@pytest.mark.parametrize(("norm", "changes"), [(1.0, True), (None, True), (math.nan, False), (math.inf, False)])
def test_the_inner_optimizer_is_not_called_when_the_norm_is_not_finite(norm, changes):
    weight = torch.nn.Parameter(torch.ones(3))
    inner = torch.optim.AdamW([weight], lr=0.1)
    refuse_nonfinite_updates(SimpleNamespace(optim=inner, get_grad_norm=lambda: norm))
    weight.grad = torch.ones(3)
    inner.step()
    assert torch.equal(weight.detach(), torch.ones(3)) is not changes
    assert bool(inner.state[weight]) is changes
