"""What is trained, and how fast: each equals plain AdamW with old and new rows as parameters of
their own, on every plugin that a CPU has; what is not trained stays as it is, bit for bit.

33 rows, 8 a step: 5 steps. The embeddings have 210 rows, of which the tokenizer has 203, and the
last expansion added 53.
"""

import contextlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from colossal_llama.engine.launch import prepare_engine
from tests.support import plain_adamw
from tests.support.plain_adamw import INPUT, OUTPUT
from tests.support.trained_rows import (
    CLIP,
    FIRST,
    NEW,
    ROWS,
    RUN,
    WAYS,
    Models,
    assert_follows,
    assert_untouched,
    make_models,
)
from tests.support.training_runs import VOCABULARY_SIZE, Runner
from tests.support.versions import NEEDS_SHARD_POLICIES

prepare_engine()

from colossal_llama.engine.optimizer_shards import ShardRange  # noqa: E402
from colossal_llama.training.checkpoint.optimizer_io import SavedOptimizer  # noqa: E402

pytestmark = [pytest.mark.slow, NEEDS_SHARD_POLICIES]  # slow: the runs that all tests of the file share

BATCH = ("--micro_batch_size", "2", "--accumulation_steps", "2")
ALONE = ("--micro_batch_size", "4", "--accumulation_steps", "2")
PLAIN = ("--plugin", "3d", "--zero", "0")
PLUGINS = {  # by their number of ranks
    "zero2": (2, BATCH),
    "zero2_alone": (1, ALONE),
    "zero2_cpu": (2, (*BATCH, "--plugin", "zero2_cpu")),
    "ddp": (2, (*BATCH, "--plugin", "ddp")),
    "3d": (2, (*BATCH, *PLAIN)),
    "tp2": (2, (*ALONE, *PLAIN, "--tp", "2")),
    "pp2": (2, (*ALONE, *PLAIN, "--pp", "2")),
    "pp2_tp2": (4, (*ALONE, *PLAIN, "--pp", "2", "--tp", "2")),
    "pp4": (4, (*ALONE, *PLAIN, "--pp", "4")),
    "split_gather": (2, (*ALONE, *PLAIN, "--tp", "2", "--sp", "2")),
}
BF16 = ("--mixed_precision", "bf16")
HALF = {
    "zero2_bf16": (2, (*BATCH, *BF16)),
    "zero2_cpu_bf16": (2, (*BATCH, *BF16, "--plugin", "zero2_cpu")),
    "ddp_bf16": (2, (*BATCH, *BF16, "--plugin", "ddp")),
    "zero1_bf16": (2, (*BATCH, *BF16, "--plugin", "3d")),
    "zero2_3d_bf16": (2, (*BATCH, *BF16, "--plugin", "3d", "--zero", "2")),
    "3d_bf16": (2, (*BATCH, *BF16, *PLAIN)),
    "tp2_zero1_bf16": (4, (*BATCH, *BF16, "--plugin", "3d", "--tp", "2")),
    "tp2_offload_bf16": (4, (*BATCH, *BF16, "--plugin", "3d", "--tp", "2", "--zero_cpu_offload")),
    "pp4_zero1_bf16": (4, (*ALONE, *BF16, "--plugin", "3d", "--pp", "4")),
    "pp2_zero1_bf16": (4, (*BATCH, *BF16, "--plugin", "3d", "--pp", "2")),
}


# Continued from the checkpoint after step 2 of the run named before the dash.
SAVES = ("--save_interval", "2")
CONTINUED = {
    "zero2_bf16": ("zero2_bf16", HALF["zero2_bf16"][1]),
    "zero2_cpu_bf16": ("zero2_cpu_bf16", HALF["zero2_cpu_bf16"][1]),
    "zero1_bf16": ("zero1_bf16", HALF["zero1_bf16"][1]),
    "tp2": ("zero2", PLUGINS["tp2"][1]),
    "zero2_cpu": ("tp2", PLUGINS["zero2_cpu"][1]),
}


@pytest.fixture(scope="module")
def models(toy, tmp_path_factory) -> Models:
    return make_models(toy, tmp_path_factory.mktemp("models"))


def cases(plugins: dict) -> list[tuple[str, str, str]]:
    """Plugin, way and model of each run: every way once, the two that need all of it everywhere."""
    return [
        (plugin, way, model)
        for plugin in plugins
        for way in (WAYS if plugin == "zero2" else ("rates",) if "pp4" in plugin else ("new_rows", "rates"))
        for model in (("deep",) if "pp4" in plugin else ("untied", "tied"))
    ]


@pytest.fixture(scope="module")
def runs(runner: Runner, models: Models) -> Runner:
    for ranks in (1, 2, 4):
        commands = []
        for plugin, way, model in cases(PLUGINS | HALF):
            number, options = (PLUGINS | HALF)[plugin]
            if number == ranks:
                given = (*RUN, *SAVES, *options, *WAYS[way][0], "--pretrained", str(getattr(models, model)))
                commands.append(runner.command(f"{plugin}-{way}-{model}", *given, pretrained=False))
        runner.run(commands, ranks=ranks, timeout_s=900)
    runner.run(
        [
            runner.command(f"{plugin}_goes_on-{way}", *continued(runner, plugin, way), pretrained=False)
            for plugin in CONTINUED
            for way in ("new_rows", "rates")
        ],
        ranks=2,
    )
    return runner


def continued(runner: Runner, plugin: str, way: str) -> tuple[str, ...]:
    origin, options = CONTINUED[plugin]
    return (*RUN, *SAVES, *options, *WAYS[way][0], "--load_checkpoint", str(checkpoint_of(runner, origin, way)))


def checkpoint_of(runner: Runner, plugin: str, way: str) -> Path:
    return runner.workspace / f"{plugin}-{way}-untied" / "save" / "epoch-0_step-2"


@pytest.fixture(scope="module")
def expected(models: Models, toy):
    """Weights and gradient norms of the plain loop, by way and model."""
    found = {}

    def of(way: str, model: str, rates: tuple[float, ...]):
        if (way, model) not in found:
            found[way, model] = plain_adamw.train(getattr(models, model), toy.parts, WAYS[way][1], rates, 8, CLIP)
        return found[way, model]

    return of


@pytest.mark.parametrize(("plugin", "way", "model"), cases(PLUGINS))
def test_equals_plain_adamw(runs: Runner, expected, models, plugin, way, model):
    name = f"{plugin}-{way}-{model}"
    metrics = runs.metrics(name)
    weights, norms = expected(way, model, tuple(step["learning_rate"] for step in metrics))
    assert [step["gradient_norm"] for step in metrics] == pytest.approx(norms, rel=1e-4)
    found, before = runs.weights(name), load_file(getattr(models, model) / "model.safetensors")
    assert found.keys() == before.keys()
    for key, tensor in found.items():
        change = (weights[key] - before[key]).norm()
        assert (tensor - weights[key]).norm() <= 2e-3 * change, (key, change)
    assert_untouched(found, before, WAYS[way][1])


@pytest.mark.parametrize(("plugin", "way", "model"), cases(HALF))
def test_half_precision_follows_and_leaves_the_rest(runs: Runner, expected, models, plugin, way, model):
    name = f"{plugin}-{way}-{model}"
    metrics = runs.metrics(name)
    weights, norms = expected(way, model, tuple(step["learning_rate"] for step in metrics))
    assert [step["gradient_norm"] for step in metrics] == pytest.approx(norms, rel=3e-2)
    found, before = runs.weights(name), load_file(getattr(models, model) / "model.safetensors")
    assert_follows(found, weights, before)
    assert_untouched(found, before, WAYS[way][1])


@pytest.mark.parametrize("way", ["new_rows", "rates"])
@pytest.mark.parametrize("plugin", CONTINUED)
def test_goes_on_as_if_it_had_not_been_stopped(runs: Runner, plugin, way):
    """On the same plugin bit for bit."""
    origin = CONTINUED[plugin][0]
    found, expected = runs.weights(f"{plugin}_goes_on-{way}"), runs.weights(f"{origin}-{way}-untied")
    for key, tensor in expected.items():
        if origin == plugin:
            assert torch.equal(found[key], tensor), key
        else:
            torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("plugin", ["zero2", "zero2_bf16", "zero2_cpu_bf16", "zero1_bf16", "tp2_offload_bf16", "tp2"])
def test_frozen_rows_have_no_moments_and_their_first_master_weights(runs: Runner, models, plugin):
    """In a checkpoint, whose index names the rows and the ratios to --lr."""
    directory = checkpoint_of(runs, plugin, "new_rows") / "optimizer"
    (group,) = json.loads((directory / "index.json").read_text())["param_groups"]
    assert (group["new_rows"], group["trains_new_rows_only"], group["new_row_lr_ratio"]) == (list(NEW), True, 1.0)
    with contextlib.closing(SavedOptimizer(directory)) as saved:
        assert saved.shape("model.norm.weight") is None
        before = load_file(models.untied / "model.safetensors")
        for name in (INPUT, OUTPUT):
            if saved.has(name, "master_weight"):
                master = saved.read(name, "master_weight", ShardRange((ROWS, 64), None, 0, ROWS * 64)).view(ROWS, 64)
                assert torch.equal(master[:FIRST], before[name][:FIRST])
                assert torch.equal(master[VOCABULARY_SIZE:], before[name][VOCABULARY_SIZE:])
            for moment in ("exp_avg", "exp_avg_sq"):
                rows = saved.read(name, moment, ShardRange((ROWS, 64), None, 0, ROWS * 64)).view(ROWS, 64)
                assert not rows[:FIRST].any()
                assert not rows[VOCABULARY_SIZE:].any()
                assert rows[FIRST:VOCABULARY_SIZE].any(dim=1).sum() > 40
