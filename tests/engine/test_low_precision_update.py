"""Weights without fp32 masters are rounded by the same chance on two ranks as on one.

Every rank sees the same rows, so that their mean gradient is each one's own. This file is what the
ranks run, too.
"""

import sys
from pathlib import Path

import pytest

from tests.support.ranks import run_ranks

STEPS = 4
FORMATS = ("bf16", "8bit")


@pytest.mark.distributed
def test_two_ranks_end_with_the_weights_of_one(project_root, tmp_path):
    import torch

    for ranks in (1, 2):
        done = run_ranks("tests.engine.test_low_precision_update", [str(tmp_path / f"{ranks}.pt")], ranks, project_root)
        assert done.returncode == 0, done.stdout[-6000:]
    alone, together = (torch.load(tmp_path / f"{ranks}.pt") for ranks in (1, 2))
    for one, two, start in zip(alone["bf16"], together["bf16"], alone["start"], strict=True):
        assert torch.equal(one, two)
        assert not torch.equal(one, start)
    # A block of moments, which has one scale, may lie on two ranks: the same but for a few bits.
    for one, two in zip(alone["8bit"], together["8bit"], strict=True):
        assert (one != two).float().mean() < 0.02
        torch.testing.assert_close(one, two, rtol=2**-6, atol=1e-4)


def trained(state_format: str, steps: int) -> list:
    """Weights after some steps; two ranks do not divide the sizes."""
    import torch
    from colossalai.booster import Booster
    from colossalai.booster.plugin import LowLevelZeroPlugin

    from colossal_llama.engine.backend import Backend
    from colossal_llama.engine.hybrid_adam import build_optimizer
    from colossal_llama.engine.low_precision_update import use_low_precision_step

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(33, 65), torch.nn.Tanh(), torch.nn.Linear(65, 3)).bfloat16()
    plugin = LowLevelZeroPlugin(
        stage=2, precision="bf16", max_norm=float("inf"), overlap_communication=False, master_weights=False
    )
    backend = Backend(Booster(plugin=plugin), plugin, torch.bfloat16, None, clips_gradients=True)
    model, optimizer = backend.prepare(model, build_optimizer(model, 1e-3, 0.1))
    use_low_precision_step(optimizer, state_format, seed=7, fused=False)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        loss = model(torch.randn(8, 33, generator=generator)).float().square().mean()
        optimizer.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach().clone() for parameter in model.parameters()]


def main(output: Path) -> None:
    """Trains with each format; rank 0 saves the weights."""
    import torch
    import torch.distributed as dist

    from colossal_llama.engine import launch

    launch.launch(seed=0)
    weights = {state_format: trained(state_format, STEPS) for state_format in FORMATS}
    weights["start"] = trained(FORMATS[0], 0)
    if dist.get_rank() == 0:
        torch.save(weights, output)
    launch.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
