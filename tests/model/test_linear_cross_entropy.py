"""The fused output layer and cross-entropy against PyTorch's own, in fp32 on the CPU."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.model.kernels import linear_cross_entropy as fused

VOCABULARY, WIDTH = 37, 8


def reference(hidden, weight, labels):
    losses = torch.nn.functional.cross_entropy(hidden @ weight.t(), labels, reduction="none")
    return losses.sum() / max(1, int((labels != -100).sum())), losses


@settings(deadline=None, max_examples=40)
@given(
    tokens=st.integers(1, 23),
    ignored=st.floats(0, 1),
    chunk_rows=st.integers(1, 9),
    chosen=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_equals_pytorchs_loss_and_gradients(tokens, ignored, chunk_rows, chosen, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = (
        torch.randn(tokens, WIDTH, generator=generator),
        torch.randn(VOCABULARY, WIDTH, generator=generator),
    )
    labels = torch.randint(0, VOCABULARY, (tokens,), generator=generator)
    labels[torch.rand(tokens, generator=generator) < ignored] = -100
    positions = (labels != -100).nonzero().squeeze(1) if chosen else None
    results = []
    former, fused.CHUNK_ROWS = fused.CHUNK_ROWS, chunk_rows
    try:
        for way in (reference, lambda *given: fused.linear_cross_entropy(*given, positions)):
            inputs = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
            loss, losses = way(*inputs, labels)
            (loss * 3).backward()
            results.append((loss.detach(), losses.detach(), *(tensor.grad for tensor in inputs)))
    finally:
        fused.CHUNK_ROWS = former
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_is_frozen_gets_no_gradient(frozen):
    hidden = torch.randn(5, WIDTH, requires_grad=frozen != "hidden")
    weight = torch.randn(VOCABULARY, WIDTH, requires_grad=frozen != "weight")
    loss, _ = fused.linear_cross_entropy(hidden, weight, torch.arange(5))
    loss.backward()
    assert (hidden.grad is None) == (frozen == "hidden")
    assert (weight.grad is None) == (frozen == "weight")


def test_under_autocast_fp32_weights_are_computed_with_in_half_precision():
    hidden, weight = torch.randn(50, WIDTH, requires_grad=True), torch.randn(VOCABULARY, WIDTH, requires_grad=True)
    labels = torch.arange(50) % VOCABULARY
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = fused.linear_cross_entropy(hidden, weight, labels)
    loss.backward()
    rounded = hidden.detach().bfloat16().requires_grad_(), weight.detach().bfloat16().requires_grad_()
    expected, _ = fused.linear_cross_entropy(*rounded, labels)
    expected.backward()
    assert torch.equal(loss, expected)
    for tensor, in_bf16 in zip((hidden, weight), rounded, strict=True):
        assert tensor.grad.dtype == torch.float32
        assert torch.equal(tensor.grad, in_bf16.grad.float())


def test_bf16_weights_gradient_is_summed_in_fp32():
    """Many chunks of equal gradients: a sum in bf16 would stop growing after 256 of them."""
    former, fused.CHUNK_ROWS = fused.CHUNK_ROWS, 1
    try:
        hidden = torch.ones(600, 1, dtype=torch.bfloat16)
        weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
        loss, _ = fused.linear_cross_entropy(hidden, weight, torch.zeros(600, dtype=torch.int64))
        loss.backward()
    finally:
        fused.CHUNK_ROWS = former
    torch.testing.assert_close(weight.grad, torch.tensor([[-0.5], [0.5]], dtype=torch.bfloat16))
