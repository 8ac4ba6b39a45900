"""--fp8 on the GPU: the kernel rounds as PyTorch does, and training goes as it does in bf16."""

import pytest
import torch

from tests.support.training_runs import BF16_BATCH as BATCH

pytestmark = pytest.mark.gpu

PLUGINS = {
    "zero2": (),
    "recomputed": ("--use_grad_checkpoint",),
    "accumulated": ("--micro_batch_size", "1", "--accumulation_steps", "2"),
    "3d": ("--plugin", "3d"),
    "ddp": ("--plugin", "ddp"),
    "gemini": ("--plugin", "gemini"),
    "unfused": ("--fused_kernels", "False"),
    "fp16": ("--mixed_precision", "fp16"),
}


@pytest.fixture(scope="module")
def able():
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no 8-bit matrix units")


@pytest.mark.parametrize("shape", [(64, 64), (150, 80), (1000, 4096)])
@pytest.mark.parametrize("layouts", [(True, True), (True, False), (False, True)])
def test_kernel_rounds_as_pytorch_does(able, shape, layouts):
    from colossal_llama.model.kernels.fp8_cast import E4M3, E5M2, _quantize_by_pytorch, amax, quantize

    matrix = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    for dtype in (E4M3, E5M2):
        given = (matrix, amax(matrix), dtype, *layouts)
        ours, theirs = quantize(*given), _quantize_by_pytorch(*given)
        assert float(ours.scale) == pytest.approx(float(theirs.scale), rel=1e-6)
        for mine, other in ((ours.rows, theirs.rows), (ours.transposed, theirs.transposed)):
            assert (mine is None) == (other is None)
            if mine is None:
                continue
            # The scale's last digit decides where a number falls that lies on the border between
            # two.
            differs = mine.view(torch.uint8) != other.view(torch.uint8)
            assert float(differs.float().mean()) < 0.02
            torch.testing.assert_close(mine.float(), other.float(), rtol=0.26, atol=1e-2)


def test_a_non_finite_input_gives_a_non_finite_output(able):
    from colossal_llama.model.kernels.fp8_linear import fp8_linear
    from colossal_llama.model.kernels.grouped_linear import SharedInput

    for bad in (float("inf"), float("nan")):
        hidden = torch.ones(16, 32, dtype=torch.bfloat16, device="cuda")
        hidden[3, 5] = bad
        weight = torch.ones(16, 32, dtype=torch.bfloat16, device="cuda")
        assert not fp8_linear(hidden, weight, shared=SharedInput(1))[3].isfinite().any()


@pytest.fixture(scope="module")
def runs(able, runner):
    """bf16 for comparison, then --fp8 with every plugin, and one resumed."""
    again = ("--load_checkpoint", str(runner.workspace / "fp8_zero2" / "save" / "epoch-0_step-4"))
    commands = [runner.command("fp8_none", *BATCH), runner.command("fp8_zero2", *BATCH, "--fp8")]
    commands.append(runner.command("fp8_again", *BATCH, "--fp8", *again))
    commands += [runner.command(f"fp8_{n}", *BATCH, *w, "--fp8") for n, w in PLUGINS.items() if n != "zero2"]
    runner.run(commands, ranks=1)
    return runner


@pytest.mark.parametrize("name", PLUGINS)
def test_losses_follow_those_of_bf16(runs, name):
    losses, exact = runs.losses(f"fp8_{name}"), runs.losses("fp8_none")
    assert losses == pytest.approx(exact, rel=3e-2)
    assert losses != exact


def test_resumed_run_goes_on_alike(runs):
    assert runs.losses("fp8_again") == pytest.approx(runs.losses("fp8_zero2")[4:], rel=2e-3)
