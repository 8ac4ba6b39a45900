"""Fused and overlapped ZeRO steps on two ranks equal ColossalAI's step with the same gradients.

On GPUs one kernel computes it; here plain operations do, and everything around them is the same:
partitioned gradients, the norm over all ranks, the weights gathered in place. Both ranks run this
file.
"""

import pytest

from tests.support.ranks import run_ranks

STEPS = 3
STAGES = ((1, False), (2, False), (1, True), (2, True))  # of ZeRO; whether its states are in host memory
ROWS = ("all", "faster", "alone")  # how rows 4 to 6 of the first matrix are trained
WAYS = tuple((*stage, rows) for stage in STAGES for rows in ROWS)


@pytest.mark.distributed
def test_equals_the_plugins_step_on_two_ranks(project_root):
    done = run_ranks("tests.engine.test_zero_update", [], 2, project_root)
    assert done.returncode == 0, done.stdout[-6000:]
    for way in WAYS:
        assert done.stdout.count(f"{way}: equal") == 2


def trained(stage: int, offload: bool, rows: str, ours: bool) -> tuple[list, list[float]]:
    """Working weights and gradient norms after some steps, with other rows on each rank.

    Two ranks do not divide the sizes.
    """
    import torch
    import torch.distributed as dist
    from colossalai.booster import Booster
    from colossalai.booster.plugin import LowLevelZeroPlugin

    from colossal_llama.engine import zero_offload_update, zero_update
    from colossal_llama.engine.backend import Backend
    from colossal_llama.engine.hybrid_adam import build_optimizer
    from colossal_llama.engine.parameter_groups import NewRows, ParameterGroup

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(7, 9), torch.nn.Tanh(), torch.nn.Linear(9, 3)).bfloat16()
    groups = []
    if rows != "all":
        groups = [ParameterGroup("layers", list(model.parameters())[1:])]
        groups.append(ParameterGroup("embeddings", [model[0].weight], 0.5, NewRows(4, 6, 3.0, rows == "alone")))
    optimizer = build_optimizer(model, 1e-2, 0.1, groups)
    plugin = LowLevelZeroPlugin(
        stage=stage, precision="bf16", max_norm=0.05, overlap_communication=False, cpu_offload=offload
    )
    booster = Booster(plugin=plugin)
    model, optimizer = Backend(booster, plugin, torch.bfloat16, None, clips_gradients=True).prepare(model, optimizer)
    if ours and offload:
        assert zero_offload_update.why_no_overlapped_offload_step(optimizer) is None
        zero_offload_update.use_overlapped_offload_step(optimizer)
    elif ours:
        zero_update.use_fused_step(optimizer)
    generator = torch.Generator().manual_seed(1 + dist.get_rank())
    norms = []
    for _ in range(STEPS):
        for _ in range(2):
            loss = model(torch.randn(8, 7, generator=generator)).float().square().mean()
            optimizer.backward(loss)
        optimizer.step()
        norms.append(float(optimizer.get_grad_norm()))
        optimizer.zero_grad()
    return [parameter.detach().clone() for parameter in model.parameters()], norms


def main() -> None:
    """Compares both steps for each kind of ZeRO."""
    from colossal_llama.engine import launch, zero_offload_update

    launch.launch(seed=0)
    zero_offload_update.SLICE_ELEMENTS = 8  # more slices than buffers, and a last one that is not full
    for way in WAYS:
        compare(*way)
        print(f"{way}: equal", flush=True)
    check_reasons()
    launch.leave()


def check_reasons() -> None:
    """A parallelised model keeps the plugin's step, also with states in host memory."""
    import torch
    import torch.distributed as dist
    from colossalai.zero.low_level import LowLevelZeroOptimizer

    from colossal_llama.engine import zero_offload_update, zero_update

    optimizer = LowLevelZeroOptimizer.__new__(LowLevelZeroOptimizer)
    settings = {"_master_weights": True, "_dtype": torch.bfloat16, "_cpu_offload": True, "grad_handles": []}
    vars(optimizer).update(settings, pg_to_param_list={dist.group.WORLD: []})
    cuda = torch.device("cuda")
    assert zero_offload_update.why_no_overlapped_offload_step(optimizer) is None
    assert zero_update.why_no_fused_step(optimizer, cuda) == "the optimizer's states are in host memory"
    optimizer.pp_pg = dist.group.WORLD
    for reason in (
        zero_offload_update.why_no_overlapped_offload_step(optimizer),
        zero_update.why_no_fused_step(optimizer, cuda),
    ):
        assert reason == "the model is divided over ranks"


def compare(stage: int, offload: bool, rows: str) -> None:
    """Compares both steps on this rank, and this rank's weights with the other's."""
    import torch
    import torch.distributed as dist

    ours, our_norms = trained(stage, offload, rows, ours=True)
    plain, plain_norms = trained(stage, offload, rows, ours=False)
    assert min(plain_norms) > 0.05, "nothing was clipped"
    torch.testing.assert_close(torch.tensor(our_norms), torch.tensor(plain_norms), rtol=1e-3, atol=0)
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2**-8, atol=1e-6)
        other = mine.clone()
        dist.broadcast(other, src=0)
        assert torch.equal(mine, other), "the ranks' weights differ"


if __name__ == "__main__":
    main()
