"""On the GPU: every plugin trains alike, with and without flash attention, and goes on from its checkpoint."""

import pytest

pytestmark = pytest.mark.gpu

BATCH = (
    "--micro_batch_size",
    "2",
    "--num_epochs",
    "2",
    "--save_interval",
    "4",
    "--mixed_precision",
    "bf16",
    "--lr",
    "1e-3",
)
PLUGINS = {
    "zero2": (),
    "zero2_cpu": ("--plugin", "zero2_cpu"),
    "3d": ("--plugin", "3d"),
    "3d_zero0": ("--plugin", "3d", "--zero", "0"),
    "ddp": ("--plugin", "ddp"),
    "gemini": ("--plugin", "gemini"),
    "gemini_auto": ("--plugin", "gemini_auto"),
}
TOLERANCE = {"rel": 1e-2, "abs": 1e-2}  # bf16 weights, other kernels


@pytest.fixture(scope="module")
def runs(runner):
    """Every plugin, started one by one as a user does: some keep state in the process."""
    for name, options in PLUGINS.items():
        flash = () if name == "3d_zero0" else ("--use_flash_attn",)
        accumulated = ("--micro_batch_size", "1", "--accumulation_steps", "2")
        commands = [
            runner.command(name, *BATCH, *options, *flash),
            runner.command(f"{name}_accumulated", *BATCH, *options, *accumulated),
            runner.command(f"{name}_again", *BATCH, *options, *flash, "--load_checkpoint", checkpoint_of(runner, name)),
        ]
        runner.run(commands, ranks=1)
    runner.run([runner.command("fp16", *BATCH, "--mixed_precision", "fp16", "--use_flash_attn")], ranks=1)
    return runner


def checkpoint_of(runner, name: str) -> str:
    return str(runner.workspace / name / "save" / "epoch-0_step-4")


@pytest.mark.parametrize("name", [*PLUGINS, "fp16"])
def test_same_losses(runs, name):
    assert runs.losses(name) == pytest.approx(runs.losses("zero2"), **TOLERANCE)


@pytest.mark.parametrize("name", PLUGINS)
def test_accumulated_equals_one_batch(runs, name):
    assert runs.losses(f"{name}_accumulated") == pytest.approx(runs.losses("zero2"), **TOLERANCE)


@pytest.mark.parametrize("name", PLUGINS)
def test_resumed_run_goes_on_alike(runs, name):
    assert runs.losses(f"{name}_again") == pytest.approx(runs.losses(name)[4:], rel=1e-3)
