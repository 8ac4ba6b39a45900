"""AdamW without fp32 master weights: rounding is right on average, moments are what they were."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.model.kernels import eight_bit_moments
from colossal_llama.model.kernels.adamw import adamw, step_scalars
from colossal_llama.model.kernels.eight_bit_moments import BLOCK, decode_moments, moments_from, moments_to_bf16
from colossal_llama.model.kernels.low_precision_adamw import Noise, low_precision_adamw
from colossal_llama.model.kernels.stochastic_rounding import noise, noise_key, to_bf16

HYPER = (0.9, 0.95, 1e-8, 0.1)
CPU = torch.device("cpu")


def states_of(kind: str, elements: int) -> dict:
    if kind == "8bit":
        return {"step": 0, **eight_bit_moments.zeros(elements, CPU)}
    zeros = torch.zeros(elements, dtype=torch.bfloat16)
    return {"step": 0, "exp_avg": zeros, "exp_avg_sq": zeros.clone()}


def test_stochastic_rounding_is_right_on_average():
    values = torch.full((100_000,), 1.0 + 0.3 * 2**-7)
    rounded = to_bf16(values, noise(0, len(values), noise_key(1, 1, 1), CPU)[0] & 0xFFFF)
    assert set(rounded.tolist()) == {1.0, 1.0 + 2**-7}
    assert (rounded > 1).float().mean().item() == pytest.approx(0.3, abs=0.01)


def test_noise_is_that_of_the_element_wherever_it_begins():
    whole = noise(0, 1000, 7, CPU)
    for part, all_of_it in zip(noise(400, 600, 7, CPU), whole, strict=True):
        assert torch.equal(part, all_of_it[400:])
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole[0], noise(0, 1000, 8, CPU)[0])


moments = st.lists(st.floats(2**-60, 2**30, width=32) | st.just(0.0), min_size=1, max_size=2 * BLOCK + 3)


@given(moments, moments, st.integers(0, 65535))
@settings(max_examples=60, deadline=None)
def test_moments_that_were_read_are_written_alike(first, second, chance):
    elements = min(len(first), len(second))
    one = torch.tensor(first[:elements]) * torch.tensor([1.0, -1.0]).repeat(elements)[:elements]
    states = moments_from(one, torch.tensor(second[:elements]))
    everything = slice(0, elements)
    before = decode_moments(states, everything)
    noise16 = torch.full((elements,), chance)
    eight_bit_moments.encode_moments(states, everything, *before, (noise16, noise16))
    for old, new in zip(before, decode_moments(states, everything), strict=True):
        assert torch.equal(old, new)
    saved = moments_to_bf16(states)
    again = moments_from(saved["exp_avg"], saved["exp_avg_sq"])
    for old, new in zip(before, decode_moments(again, everything), strict=True):
        assert torch.equal(old, new)


@given(moments)
@settings(max_examples=60, deadline=None)
def test_moments_keep_a_sixteenth_of_themselves_and_of_a_block_its_range(values):
    whole = torch.tensor(values)
    first, second = decode_moments(moments_from(whole, whole), slice(0, len(whole)))
    largest = torch.nn.functional.pad(whole, (0, -len(whole) % BLOCK)).view(-1, BLOCK).amax(dim=1)
    largest = largest.repeat_interleave(BLOCK)[: len(whole)]
    assert ((first - whole).abs() <= whole / 16 + largest * 2**-16).all()
    assert ((second.sqrt() - whole.sqrt()).abs() <= whole.sqrt() / 16 + largest.sqrt() * 2**-32 + 2**-60).all()


@pytest.mark.parametrize("largest", [1.0, 1.7, 1.87, 1.95])
def test_moments_are_right_on_average_also_the_largest_of_a_block(largest):
    values, states = torch.full((100 * BLOCK,), largest), eight_bit_moments.zeros(100 * BLOCK, CPU)
    chance = noise(0, len(values), 3, CPU)
    everything = slice(0, len(values))
    eight_bit_moments.encode_moments(states, everything, values, values, (chance[0] & 0xFFFF, chance[1] & 0xFFFF))
    first, second = decode_moments(states, everything)
    assert first.mean().item() == pytest.approx(largest, rel=2e-3)
    assert second.sqrt().mean().item() == pytest.approx(largest**0.5, rel=2e-3)


@pytest.mark.parametrize("kind", ["bf16", "8bit"])
def test_follows_full_states_over_many_steps(kind):
    """Towards the minimum of a quadratic function, by steps far below the distance of bf16 numbers:
    rounded to the nearest the weights would not move at all.
    """
    torch.manual_seed(0)
    start, goal = torch.randn(4096).bfloat16(), torch.randn(4096)
    weight, states = start.clone(), states_of(kind, 4096)
    master, one, two = start.float(), torch.zeros(4096), torch.zeros(4096)
    for step in range(1, 301):
        scalars = step_scalars(1e-4, 0.9, 0.95, step, 1.0)
        noisy = 0.1 * torch.randn(4096)
        adamw(master, master - goal + noisy, one, two, None, scalars, *HYPER)
        chance = Noise(noise_key(1, step, 0), 0)
        low_precision_adamw(weight, weight.float() - goal + noisy, states, None, scalars, chance, HYPER, fused=False)
    moved = (master - start.float()).norm()
    assert moved > 1.0
    along = torch.dot(weight.float() - start.float(), master - start.float()) / moved**2
    assert along.item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("kind", ["bf16", "8bit"])
def test_a_range_leaves_the_rest_alone_and_a_refused_step_everything(kind):
    torch.manual_seed(0)
    weight, states = torch.randn(1500).bfloat16(), states_of(kind, 1500)
    before, gradient = weight.clone(), torch.randn(1500)
    scalars = step_scalars(1e-2, 0.9, 0.95, 1, 1.0)
    low_precision_adamw(weight, gradient, states, slice(300, 1111), scalars, Noise(5, 0), HYPER, fused=False)
    first, second = (tensor.float() for tensor in decoded(states))
    for tensor in (weight - before, first, second):
        assert not tensor[:300].any()
        assert not tensor[1111:].any()
        assert (tensor[300:1111] != 0).float().mean() > 0.5
    kept, held = weight.clone(), {name: torch.clone(tensor) for name, tensor in states.items() if name != "step"}
    scalars = step_scalars(1e-2, 0.9, 0.95, 2, math.nan)
    low_precision_adamw(weight, gradient, states, None, scalars, Noise(6, 0), HYPER, fused=False)
    assert torch.equal(weight, kept)
    assert all(torch.equal(states[name], tensor) for name, tensor in held.items())


def decoded(states: dict) -> tuple[torch.Tensor, torch.Tensor]:
    if eight_bit_moments.is_eight_bit(states):
        return decode_moments(states, slice(0, len(states["exp_avg"])))
    return states["exp_avg"], states["exp_avg_sq"]
