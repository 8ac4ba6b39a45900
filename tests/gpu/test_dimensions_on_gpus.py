"""On two GPUs: each dimension of plugin 3d trains what one process of zero2 trains."""

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]

RUN = (
    "--num_epochs",
    "4",
    "--lr",
    "1e-3",
    "--mixed_precision",
    "bf16",
    "--save_interval",
    "10",
    "--skip_save_each_epoch",
)
ROWS = ("--micro_batch_size", "4", "--accumulation_steps", "2", "--plugin", "3d")
DIMENSIONS = {
    "pp2": ("--pp", "2"),
    "pp2_recomputed": ("--pp", "2", "--microbatch_size", "2", "--use_grad_checkpoint"),
    "tp2": ("--tp", "2"),
    "split_gather": ("--tp", "2", "--sp", "2", "--zero", "2"),
    "ring": ("--tp", "2", "--sp", "2", "--sp_mode", "ring"),
    "all_to_all": ("--sp", "2", "--sp_mode", "all_to_all", "--zero", "2"),
}


@pytest.fixture(scope="module")
def runs(runner):
    """One process, then every dimension on two, then each from its own checkpoint."""
    runner.run([runner.command("alone", *RUN, "--micro_batch_size", "4", "--accumulation_steps", "2")], ranks=1)
    runner.run([runner.command(name, *RUN, *ROWS, *options) for name, options in DIMENSIONS.items()], ranks=2)
    again = {
        name: ("--load_checkpoint", str(runner.workspace / name / "save" / "epoch-1_step-10")) for name in DIMENSIONS
    }
    runner.run(
        [runner.command(f"{name}_again", *RUN, *ROWS, *DIMENSIONS[name], *load) for name, load in again.items()],
        ranks=2,
    )
    return runner


@pytest.mark.parametrize("name", DIMENSIONS)
def test_same_as_one_process(runs, name):
    assert runs.losses(name) == pytest.approx(runs.losses("alone"), rel=1e-2)
    norms = {run: [step["gradient_norm"] for step in runs.metrics(run)] for run in (name, "alone")}
    assert norms[name] == pytest.approx(norms["alone"], rel=0.1)


@pytest.mark.parametrize("name", DIMENSIONS)
def test_goes_on_from_its_checkpoint(runs, name):
    assert runs.losses(f"{name}_again") == pytest.approx(runs.losses(name)[10:], rel=1e-3)
