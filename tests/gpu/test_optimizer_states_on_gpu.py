"""On the GPU: states in 16 and 8 bits are updated as the reference does it, and are resumed bit for
bit; no more memory is used than was estimated.
"""

import pytest
import torch

from colossal_llama.model.kernels import eight_bit_moments
from colossal_llama.model.kernels.adamw import step_scalars
from colossal_llama.model.kernels.low_precision_adamw import Noise, low_precision_adamw
from tests.support.training_runs import Runner

pytestmark = pytest.mark.gpu

LOW = ("bf16", "8bit")
RUN = ("--mixed_precision", "bf16", "--micro_batch_size", "4", "--accumulation_steps", "2", "--num_epochs", "2")
SAVES = ("--save_interval", "4", "--skip_save_each_epoch")


@pytest.mark.parametrize("kind", LOW)
@pytest.mark.parametrize("elements", [None, slice(300, 70_001)])
def test_the_kernel_is_the_reference_but_for_the_last_bit(kind, elements):
    """Fused multiplication and addition may differ in the last bit of fp32, which may decide how a
    value is rounded: in few elements, by one step.
    """
    results = []
    for fused in (False, True):
        generator = torch.Generator(device="cuda").manual_seed(3)
        weight = torch.randn(100_000, generator=generator, device="cuda").bfloat16()
        states = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
        if kind == "8bit":
            states = eight_bit_moments.zeros(len(weight), weight.device)
        size = torch.logspace(-6, 2, len(weight), device="cuda")
        for step in range(1, 6):
            gradient = (torch.randn(len(weight), generator=generator, device="cuda") * size).bfloat16()
            scalars = step_scalars(1e-3, 0.9, 0.95, step, torch.tensor(0.5, device="cuda"))
            chance, hyper = Noise(12345 + step, 77), (0.9, 0.95, 1e-8, 0.1)
            low_precision_adamw(weight, gradient, states, elements, scalars, chance, hyper, fused)
        if kind == "8bit":
            states = eight_bit_moments.moments_to_bf16(states)
        results.append([weight, states["exp_avg"], states["exp_avg_sq"]])
    for mine, theirs in zip(*results, strict=True):
        assert (mine != theirs).float().mean() < 0.01
        torch.testing.assert_close(mine.float(), theirs.float(), rtol=0.3, atol=1e-12)


@pytest.fixture(scope="module")
def runs(runner: Runner) -> Runner:
    commands = [runner.command(states, *RUN, *SAVES, "--optimizer_states", states) for states in ("fp32", *LOW)]
    for states in LOW:
        load = str(runner.workspace / states / "save" / "epoch-0_step-4")
        commands.append(
            runner.command(
                f"{states}_again",
                *RUN,
                *SAVES,
                "--optimizer_states",
                states,
                "--load_checkpoint",
                load,
                pretrained=False,
            )
        )
    runner.run(commands, ranks=1, timeout_s=600)
    return runner


@pytest.mark.parametrize("states", LOW)
def test_losses_follow_and_are_resumed_bit_for_bit(runs, states):
    losses = runs.losses(states)
    assert losses == pytest.approx(runs.losses("fp32"), rel=2e-2)
    assert runs.losses(f"{states}_again") == losses[4:]
    weights = runs.weights(states)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in runs.weights(f"{states}_again").items())
