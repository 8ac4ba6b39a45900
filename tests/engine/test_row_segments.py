"""Row segments: whatever a process has of a matrix, its ranges are the new rows, and the others."""

import itertools
import random

import pytest
import torch

from colossal_llama.engine.launch import prepare_engine

prepare_engine()

from colossal_llama.engine.hybrid_adam import FusedHybridAdam  # noqa: E402
from colossal_llama.engine.optimizer_shards import ShardRange, TensorShard  # noqa: E402
from colossal_llama.engine.parameter_groups import (  # noqa: E402
    NewRows,
    ParameterGroup,
    set_learning_rate,
    trains_frozen_rows,
)
from colossal_llama.engine.row_segments import segments  # noqa: E402

OLD, NEW, NONE = 1, 2, 0


def random_division(shape: tuple[int, int], generator: random.Random) -> list[ShardRange]:
    """Shards of a matrix, over either dimension or none, and each divided at any element."""
    dimension = generator.choice([None, 0, 1])
    borders = [0, shape[dimension or 0]]
    if dimension is not None:
        borders[1:1] = sorted(generator.choices(range(shape[dimension] + 1), k=generator.randrange(3)))
    shards = [None] if dimension is None else [TensorShard(dimension, *pair) for pair in itertools.pairwise(borders)]
    ranges: list[ShardRange] = []
    for shard in shards:
        size = torch.Size(ShardRange(shape, shard, 0, 0).shard_shape).numel()
        cuts = [0, *sorted(generator.choices(range(size + 1), k=generator.randrange(4))), size]
        ranges += [ShardRange(shape, shard, begin, end) for begin, end in itertools.pairwise(cuts)]
    return ranges


@pytest.mark.parametrize("seed", range(60))
def test_the_shards_of_any_division_have_all_rows_at_their_rates(seed):
    generator = random.Random(seed)
    shape = (generator.randrange(1, 12), generator.randrange(1, 5))
    first, end = sorted(generator.choices(range(shape[0] + 3), k=2))  # also beyond the matrix
    for alone in (True, False):
        expected = torch.full(shape, NONE if alone else OLD)
        expected[first:end] = NEW
        for elements in random_division(shape, generator):
            found = torch.full((elements.end - elements.begin,), NONE)
            for segment in segments(elements, NewRows(first, end, 2.0, alone)):
                assert not found[segment.elements].any(), "an element in two segments"
                found[segment.elements] = {"lr": OLD, "new_row_lr": NEW}[segment.rate]
            assert torch.equal(found, elements.of(expected)), elements


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alone", [True, False])
def test_an_update_by_ranges_is_that_of_separate_parameters(alone, dtype):
    """Also of half-precision gradients with a divisor, as Gemini passes them."""
    torch.manual_seed(0)
    start, divisor = torch.randn(9, 3), 4.0
    matrix, other = torch.nn.Parameter(start.clone()), torch.nn.Parameter(torch.ones(5))
    rows = NewRows(4, 7, 3.0, alone)
    groups = [ParameterGroup("layers", [other]), ParameterGroup("embeddings", [matrix], 0.5, rows)]
    ours = FusedHybridAdam([group.settings(1e-2) for group in groups], betas=(0.9, 0.95), weight_decay=0.1)
    ours.row_segments[matrix] = segments(ShardRange((9, 3), None, 0, 27), rows)
    pieces = [torch.nn.Parameter(piece.clone()) for piece in start.tensor_split([4, 7])]
    separate = [{"params": pieces[1:2], "lr": 3e-2}, {"params": [torch.nn.Parameter(torch.ones(5))], "lr": 1e-2}]
    if not alone:
        separate.append({"params": [pieces[0], pieces[2]], "lr": 0.5e-2})
    plain = torch.optim.AdamW(separate, betas=(0.9, 0.95), weight_decay=0.1)
    set_learning_rate(ours, 1e-2)
    for _ in range(4):
        gradient = torch.randn(9, 3).to(dtype)
        if dtype == torch.float32:
            matrix.grad = gradient * divisor
        else:  # of another dtype than the parameter: only as Gemini's
            matrix.data, whole = matrix.data.to(dtype), matrix.data
            matrix.grad, matrix.data = gradient * divisor, whole
        other.grad = torch.ones(5) * divisor
        for piece, part in zip(pieces, gradient.float().tensor_split([4, 7]), strict=True):
            piece.grad = part
        separate[1]["params"][0].grad = torch.ones(5)
        ours.step(div_scale=divisor)
        plain.step()
    torch.testing.assert_close(matrix.detach(), torch.cat([piece.detach() for piece in pieces]))
    torch.testing.assert_close(other.detach(), separate[1]["params"][0].detach())
    if alone:
        for tensor, before in ((matrix, start), (ours.state[matrix]["exp_avg"], torch.zeros(9, 3))):
            assert torch.equal(tensor[:4], before[:4])
            assert torch.equal(tensor[7:], before[7:])


def settings_of(*groups: ParameterGroup) -> list[dict]:
    return [{key: value for key, value in group.settings(1e-3).items() if key != "params"} for group in groups]


ONE = settings_of(ParameterGroup("all", []))
FAST = settings_of(ParameterGroup("layers", []), ParameterGroup("embeddings", [], 2.0))
ROWS = settings_of(ParameterGroup("layers", []), ParameterGroup("embeddings", [], 2.0, NewRows(5, 9, 4.0, False)))
ALONE = settings_of(ParameterGroup("embeddings", [], 1.0, NewRows(5, 9, 4.0, True)))
FEWER = settings_of(ParameterGroup("embeddings", [], 1.0, NewRows(6, 9, 4.0, True)))
EARLIER_VERSION = [{"lr": 1e-3, "betas": [0.9, 0.95]}]


@pytest.mark.parametrize(
    ("saved", "present", "refused"),
    [
        (EARLIER_VERSION, ALONE, False),
        (ONE, ALONE, False),
        (ALONE, ALONE, False),
        (ALONE, FEWER, False),
        (FEWER, ALONE, True),
        (ALONE, ONE, True),
        (ALONE, FAST, True),
        (ALONE, ROWS, True),
    ],
)
def test_frozen_rows_that_become_trained_are_noticed(saved, present, refused):
    assert trains_frozen_rows(saved, present) is refused
