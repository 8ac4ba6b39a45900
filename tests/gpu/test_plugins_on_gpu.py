"""On the GPU: every plugin trains alike, with and without flash attention, and goes on from its
checkpoint.
"""

import pytest

from tests.support.training_runs import BF16_BATCH as BATCH

pytestmark = pytest.mark.gpu

PLUGINS = {
    "zero2": (),
    "zero2_plain": ("--fused_kernels", "False"),
    "zero2_one_recomputed": ("--use_grad_checkpoint", "--recompute_layers", "1"),
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
    """Gives the runner after a plugin's three runs; each plugin has a launch of its own, since some
    keep state in the process.
    """
    done = set()

    def run(name: str):
        for wanted in {"zero2", name} - done:
            runner.run(commands_of(runner, wanted), ranks=1)
            done.add(wanted)
        return runner

    return run


def commands_of(runner, name: str) -> list[list[str]]:
    if name == "fp16":
        return [runner.command("fp16", *BATCH, "--mixed_precision", "fp16", "--use_flash_attn")]
    options = PLUGINS[name]
    flash = () if name == "3d_zero0" else ("--use_flash_attn",)
    accumulated = ("--micro_batch_size", "1", "--accumulation_steps", "2")
    return [
        runner.command(name, *BATCH, *options, *flash),
        runner.command(f"{name}_accumulated", *BATCH, *options, *accumulated),
        runner.command(f"{name}_again", *BATCH, *options, *flash, "--load_checkpoint", checkpoint_of(runner, name)),
    ]


def checkpoint_of(runner, name: str) -> str:
    return str(runner.workspace / name / "save" / "epoch-0_step-4")


@pytest.mark.parametrize("name", [*PLUGINS, "fp16"])
def test_same_losses(runs, name):
    losses = runs(name).losses
    assert losses(name) == pytest.approx(losses("zero2"), **TOLERANCE)


@pytest.mark.parametrize("name", PLUGINS)
def test_accumulated_equals_one_batch(runs, name):
    losses = runs(name).losses
    assert losses(f"{name}_accumulated") == pytest.approx(losses("zero2"), **TOLERANCE)


@pytest.mark.parametrize("name", PLUGINS)
def test_resumed_run_goes_on_alike(runs, name):
    losses = runs(name).losses
    assert losses(f"{name}_again") == pytest.approx(losses(name)[4:], rel=1e-3)
