"""On the GPU: bad steps change no weight, and losses by category and the validation loss are there,
with every plugin.
"""

from pathlib import Path

import datasets
import pytest
import torch

from tests.support.made_benchmarks import write_mmlu
from tests.support.training_runs import poisoned

pytestmark = pytest.mark.gpu
PLUGINS = {
    "zero2": (),
    "zero2_plain": ("--fused_kernels", "False"),
    "3d": ("--plugin", "3d"),
    "ddp": ("--plugin", "ddp"),
    "gemini": ("--plugin", "gemini"),
}


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    write_mmlu(folder / "mmlu")
    return folder


@pytest.fixture(scope="module")
def runs(runner, toy, benchmarks, tmp_path_factory):
    """Every plugin on rows of which one has a token whose embedding is no number, in the third of
    five steps.
    """
    rows = [row["input_ids"] for part in toy.parts for row in datasets.load_from_disk(str(part))]
    model, _ = poisoned(toy, rows, range(16, 24), tmp_path_factory.mktemp("poison") / "model")
    options = ("--micro_batch_size", "8", "--mixed_precision", "bf16", "--shuffle", "none", "--save_interval", "1")
    bad = (*options, "--max_bad_steps", "2", "--pretrained", str(model))
    good = (*options, "--eval_dataset", str(toy.parts[1]), "--eval_interval", "2")
    asked = (*good, "--eval_tasks", "mmlu", "--eval_task_dir", str(benchmarks), "--eval_task_interval", "2")
    for name, words in PLUGINS.items():
        commands = [
            runner.command(name, *bad, *words),
            runner.command(f"{name}_good", *good, *words),
            runner.command(f"{name}_asked", *asked, *words),
        ]
        runner.run(commands, ranks=1)
    return runner


@pytest.mark.parametrize("name", PLUGINS)
def test_a_bad_step_changes_no_weight(runs, name):
    assert [entry["step"] for entry in runs.metrics(name) if entry["loss"] is None] == [3]
    before, after, end = (runs.weights(name, f"epoch-0_step-{step}/modelling") for step in (2, 3, 4))
    for key, tensor in before.items():
        assert torch.equal(after[key].nan_to_num(-7.0), tensor.nan_to_num(-7.0)), key
    assert any(not torch.equal(end[key].nan_to_num(), tensor.nan_to_num()) for key, tensor in before.items())


@pytest.mark.parametrize("name", PLUGINS)
def test_losses_by_category_and_of_evaluation_agree(runs, name):
    for entry, expected in zip(runs.metrics(f"{name}_good"), runs.metrics("zero2_plain_good"), strict=True):
        assert entry["loss_by_category"] == pytest.approx(expected["loss_by_category"], rel=2e-2)
        assert entry.get("eval_loss", 0.0) == pytest.approx(expected.get("eval_loss", 0.0), rel=2e-2)


@pytest.mark.parametrize("name", PLUGINS)
def test_benchmark_questions_are_asked_and_change_nothing(runs, name):
    asked, plain = runs.metrics(f"{name}_asked"), runs.metrics(f"{name}_good")
    assert [entry["step"] for entry in asked if "eval_task_accuracy" in entry] == [2, 4, 5]
    assert {entry["eval_task_questions"]["mmlu"] for entry in asked if "eval_task_s" in entry} == {24}
    assert [entry["loss"] for entry in asked] == pytest.approx([entry["loss"] for entry in plain], rel=1e-3)
