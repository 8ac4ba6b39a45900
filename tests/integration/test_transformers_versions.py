"""Training with transformers 5 computes what it computes with the pinned version, and resumes its
checkpoints: losses, gradient norms and weights are the same bit for bit.
"""

import json
import sys

import pytest
import torch

from colossal_llama.model.weights.weight_files import find_weight_files
from colossal_llama.utils.transformers_version import is_transformers_5
from tests.support.client_environments import environment_or_skip
from tests.support.training_runs import torchrun

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(is_transformers_5(), reason="compares the pinned version with transformers 5"),
]

BF16 = ("--mixed_precision", "bf16")
RUN = (
    "--num_epochs",
    "20",
    "--max_steps",
    "6",
    "--save_interval",
    "3",
    "--skip_save_each_epoch",
    "--lr",
    "1e-3",
)
RUNS = {
    "zero2": ("--accumulation_steps", "2", "--use_grad_checkpoint", "--recompute_layers", "1"),
    "zero2_bf16": (*BF16, "--use_neft", "--micro_batch_size", "2"),
    "zero2_lora": ("--lora_rank", "4", "--lora_dropout", "0.1", "--merge_lora"),
    "zero2_padded_sft": ("--padding_mode", "longest", "--pad_token", "unk"),
    "zero2_cpu": ("--plugin", "zero2_cpu", *BF16),
    "ddp": ("--plugin", "ddp", *BF16),
    "3d_zero0": ("--plugin", "3d", "--zero", "0"),
    "3d_zero2": ("--plugin", "3d", "--zero", "2", *BF16),
}
VERSIONS = ("pinned", "transformers5")
PINS = ("transformers", "huggingface_hub", "tokenizers", "peft", "datasets", "liger-kernel")
"""Packages of which requirements-transformers5.txt names other releases."""


@pytest.fixture(scope="module")
def pythons(project_root) -> dict[str, str]:
    """An interpreter for each version; skips without a package index."""
    lines = (project_root / "requirements-transformers5.txt").read_text().splitlines()
    pins = [line for line in lines if line.split("==")[0] in PINS]
    other = environment_or_skip("transformers5-training", pins)
    return {"pinned": sys.executable, "transformers5": str(other)}


@pytest.fixture(scope="module")
def runs(runner, pythons, project_root):
    """Every run in each version, and in transformers 5 from the pinned one's checkpoint, too."""
    for version, suffix in (("pinned", ""), ("transformers5", ""), ("transformers5", "_resumed")):
        commands = []
        for name, options in RUNS.items():
            words = [*RUN, *options]
            if suffix:
                (checkpoint,) = (runner.workspace / f"{name}_pinned" / "save").glob("epoch-*_step-3")
                words += ["--load_checkpoint", str(checkpoint)]
            commands.append(runner.command(f"{name}_{version}{suffix}", *words, sft="sft" in name))
        listing = runner.workspace / f"{version}{suffix}.json"
        listing.write_text(json.dumps(commands))
        done = torchrun("benchmarks/train_many.py", [str(listing)], 2, project_root, False, 600, pythons[version])
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return runner


def computed(runner, name: str) -> list[tuple[float, float]]:
    return [(entry["loss"], entry["gradient_norm"]) for entry in runner.metrics(name)]


def assert_same_weights(runner, name: str, other: str) -> None:
    weights = runner.weights(name)
    for key, tensor in runner.weights(other).items():
        assert torch.equal(weights[key], tensor), key


@pytest.mark.parametrize("name", RUNS)
def test_both_versions_compute_the_same(runs, name):
    first, second = (f"{name}_{version}" for version in VERSIONS)
    assert len(computed(runs, first)) == 6
    assert computed(runs, first) == computed(runs, second)
    assert_same_weights(runs, first, second)
    versions = [json.loads((runs.workspace / run / "config.json").read_text())["versions"] for run in (first, second)]
    assert [found["transformers"].split(".")[0] for found in versions] == ["4", "5"]


@pytest.mark.parametrize("name", RUNS)
def test_transformers_5_resumes_the_pinned_ones_checkpoint(runs, name):
    resumed, whole = f"{name}_transformers5_resumed", f"{name}_pinned"
    assert computed(runs, resumed) == computed(runs, whole)[3:]
    assert_same_weights(runs, resumed, whole)


def test_what_transformers_5_saves_is_laid_out_as_ever(runs):
    """The same files, but for one that 5 has no more, and the same keys in config.json."""
    first, second = (runs.workspace / f"zero2_{version}" / "save" / "modelling" for version in VERSIONS)
    missing = {path.name for path in first.iterdir()} - {path.name for path in second.iterdir()}
    assert missing <= {"special_tokens_map.json"}
    configs = [json.loads((path / "config.json").read_text()) for path in (first, second)]
    assert configs[1]["architectures"] == configs[0]["architectures"]
    assert configs[1].get("rope_theta") == configs[0]["rope_theta"]
    assert configs[1].get("torch_dtype") == configs[0]["torch_dtype"]
    assert len(find_weight_files(second).shards) == len(find_weight_files(first).shards)
