"""Optimizer states in 16 and 8 bits: they follow those in 32, are resumed bit for bit, and are read
by runs that keep others.

33 rows, 8 a step: 10 steps in two epochs.
"""

import contextlib
import itertools

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from colossal_llama.engine.launch import prepare_engine
from tests.support import plain_adamw
from tests.support.trained_rows import RUN, WAYS, Models, assert_untouched, make_models
from tests.support.training_runs import Runner

prepare_engine()

from colossal_llama.engine.optimizer_shards import ShardRange  # noqa: E402
from colossal_llama.training.checkpoint.optimizer_io import SavedOptimizer  # noqa: E402

pytestmark = pytest.mark.slow  # the runs that all tests of the file share

FORMATS = ("fp32", "bf16", "8bit")
LOW = FORMATS[1:]
BATCH = ("--mixed_precision", "bf16", "--micro_batch_size", "2", "--accumulation_steps", "2")
WHOLE = (*BATCH, "--num_epochs", "2", "--save_interval", "4", "--skip_save_each_epoch")
MIDDLE, STEPS = "epoch-0_step-4", 10
PARTS = ("new_rows", "rates")


@pytest.fixture(scope="module")
def models(toy, tmp_path_factory) -> Models:
    return make_models(toy, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def runs(runner: Runner, models: Models) -> Runner:
    commands = [runner.command(states, *WHOLE, "--optimizer_states", states) for states in FORMATS]
    commands += [
        runner.command(
            f"{states}-{way}",
            *(*RUN, *BATCH, *WAYS[way][0], "--optimizer_states", states, "--pretrained", str(models.untied)),
            pretrained=False,
        )
        for states in LOW
        for way in PARTS
    ]
    runner.run(commands, ranks=2)
    commands = [
        runner.command(
            f"{before}_then_{after}", *WHOLE, "--optimizer_states", after, *load_of(runner, before), pretrained=False
        )
        for before, after in itertools.product(FORMATS, FORMATS)
    ]
    runner.run(commands, ranks=2)
    alone = ("--mixed_precision", "bf16", "--micro_batch_size", "4", *WHOLE[len(BATCH) :], "--accumulation_steps", "2")
    runner.run(
        [
            runner.command(f"{states}_alone", *alone, "--optimizer_states", states, *load_of(runner, states))
            for states in LOW
        ],
        ranks=1,
    )
    return runner


def load_of(runner: Runner, name: str) -> tuple[str, str]:
    return ("--load_checkpoint", str(runner.workspace / name / "save" / MIDDLE))


@pytest.mark.parametrize("states", LOW)
def test_losses_follow_those_of_full_states(runs, states):
    losses, expected = runs.losses(states), runs.losses("fp32")
    assert len(losses) == STEPS
    assert expected[-1] < expected[0] - 0.1, "nothing was learned"
    assert losses == pytest.approx(expected, rel=1e-2)
    assert losses != expected


@pytest.mark.parametrize("states", LOW)
def test_resumed_bit_for_bit(runs, states):
    again = f"{states}_then_{states}"
    assert runs.losses(again) == runs.losses(states)[4:]
    expected, weights = runs.weights(states), runs.weights(again)
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("before", "after"), [pair for pair in itertools.product(FORMATS, FORMATS) if pair[0] != pair[1]]
)
def test_a_checkpoint_is_read_whatever_states_it_has(runs, before, after):
    assert runs.losses(f"{before}_then_{after}") == pytest.approx(runs.losses(before)[4:], rel=1e-2)


@pytest.mark.parametrize("states", LOW)
def test_other_ranks_go_on(runs, states):
    assert runs.losses(f"{states}_alone") == pytest.approx(runs.losses(states)[4:], rel=2e-3)


@pytest.mark.parametrize("states", LOW)
def test_a_checkpoint_has_no_master_weights_and_moments_of_16_bits(runs, states):
    directory = runs.workspace / states / "save" / MIDDLE / "optimizer"
    for file in directory.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            assert {name.rpartition(".")[2] for name in names} == {"exp_avg", "exp_avg_sq"}
            assert {opened.get_tensor(name).dtype for name in names} == {torch.bfloat16}


@pytest.mark.parametrize("states", LOW)
def test_moments_are_those_of_full_states(runs, states):
    """After four steps, up to their precision: 8 and 4 bits."""
    tolerance = {"bf16": 0.03, "8bit": 0.12}[states]
    name, shape = "model.layers.0.mlp.down_proj.weight", None
    read = {}
    for kind in ("fp32", states):
        with contextlib.closing(SavedOptimizer(runs.workspace / kind / "save" / MIDDLE / "optimizer")) as saved:
            shape = saved.shape(name)
            whole = ShardRange(shape, None, 0, shape[0] * shape[1])
            read[kind] = [saved.read(name, moment, whole) for moment in ("exp_avg", "exp_avg_sq")]
    for found, expected in zip(read[states], read["fp32"], strict=True):
        assert (found - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("way", PARTS)
@pytest.mark.parametrize("states", LOW)
def test_parts_are_trained_and_the_rest_is_left(runs, models, toy, states, way):
    metrics = runs.metrics(f"{states}-{way}")
    rates = [step["learning_rate"] for step in metrics]
    weights, norms = plain_adamw.train(models.untied, toy.parts, WAYS[way][1], rates, 8, 0.3)
    assert [step["gradient_norm"] for step in metrics] == pytest.approx(norms, rel=3e-2)
    found, before = runs.weights(f"{states}-{way}"), load_file(models.untied / "model.safetensors")
    assert_untouched(found, before, WAYS[way][1])
    for name, tensor in found.items():
        change = (weights[name] - before[name]).flatten()
        if change.any() and change.numel() > 1000:  # in fewer the chance of rounding is as large
            along = torch.dot((tensor.float() - before[name]).flatten(), change) / change.square().sum()
            assert along.item() == pytest.approx(1.0, abs=0.1), name
