"""Fused and overlapped ZeRO steps equal ColossalAI's own step on the same gradients."""

import math

import pytest
import torch

pytestmark = pytest.mark.gpu
STEPS = 4


@pytest.fixture(scope="module")
def launched():
    """A world of one in this process."""
    from colossal_llama.engine import launch

    if not torch.distributed.is_initialized():
        launch.launch(seed=0)


class Branches(torch.nn.Module):
    """Layers whose gradients do not depend on the weights, so that rounding does not spread."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(33, 65), torch.nn.Linear(33, 7)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(rows, 33) in, (rows, 72) out."""
        inputs = inputs.to(self.first.weight.dtype)
        return torch.cat([self.first(inputs), self.second(inputs)], dim=-1)


def masters_after(
    ours: bool, precision: str, accumulated: int, offload: bool, rows: str
) -> tuple[list[torch.Tensor], list[float]]:
    from colossalai.booster import Booster
    from colossalai.booster.plugin import LowLevelZeroPlugin

    from colossal_llama.engine.backend import Backend
    from colossal_llama.engine.hybrid_adam import build_optimizer
    from colossal_llama.engine.loss_scale import loss_scale
    from colossal_llama.engine.parameter_groups import NewRows, ParameterGroup
    from colossal_llama.engine.zero_offload_update import use_overlapped_offload_step, why_no_overlapped_offload_step
    from colossal_llama.engine.zero_update import use_fused_step, why_no_fused_step

    torch.manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    model = Branches().cuda().to(dtype)
    groups = []
    if rows != "all":
        first, *others = model.parameters()
        groups = [ParameterGroup("layers", others)]
        groups.append(ParameterGroup("embeddings", [first], 0.5, NewRows(17, 40, 3.0, rows == "alone")))
    optimizer = build_optimizer(model, 1e-2, 0.1, groups)
    plugin = LowLevelZeroPlugin(
        stage=2,
        precision=precision,
        max_norm=0.05,
        initial_scale=2**10,
        overlap_communication=False,
        cpu_offload=offload,
    )
    booster = Booster(plugin=plugin)
    model, optimizer = Backend(booster, plugin, dtype, None, clips_gradients=True).prepare(model, optimizer)
    if ours and offload:
        assert why_no_overlapped_offload_step(optimizer) is None
        use_overlapped_offload_step(optimizer)
    elif ours:
        assert why_no_fused_step(optimizer, torch.device("cuda")) is None
        use_fused_step(optimizer)
    generator = torch.Generator(device="cuda").manual_seed(1)
    norms = []
    for _ in range(STEPS):
        for _ in range(accumulated):
            inputs = torch.randn(16, 33, device="cuda", generator=generator)
            factors = torch.randn(16, 72, device="cuda", generator=generator)
            booster.backward((model(inputs).float() * factors).mean() / accumulated, optimizer)
        scale = loss_scale(optimizer)
        optimizer.step()
        norms.append(float(optimizer.get_grad_norm()) / scale)
        optimizer.zero_grad()
    masters = [master for group in optimizer.optim.param_groups for master in group["params"]]
    working = optimizer.get_master_to_working_map()
    for master in masters:
        weight = working[id(master)].detach().float().flatten()
        torch.testing.assert_close(weight.cpu(), master.to(dtype).float().cpu())
    return [master.clone() for master in masters], norms


@pytest.mark.parametrize("offload", [False, True], ids=["device", "host"])
@pytest.mark.parametrize(
    ("precision", "accumulated", "rows"),
    [("bf16", 1, "all"), ("bf16", 3, "all"), ("fp16", 2, "all"), ("bf16", 2, "faster"), ("fp16", 2, "alone")],
)
def test_equals_the_plugins_step(launched, precision, accumulated, rows, offload, monkeypatch):
    """Also where rows of a matrix have a rate of their own, or are trained alone."""
    from colossal_llama.engine import zero_offload_update

    monkeypatch.setattr(
        zero_offload_update, "SLICE_ELEMENTS", 100
    )  # more slices than buffers, and a last one that is not full
    ours, our_norms = masters_after(True, precision, accumulated, offload, rows)
    engine, engine_norms = masters_after(False, precision, accumulated, offload, rows)
    assert our_norms == pytest.approx(engine_norms, rel=1e-3)
    assert min(engine_norms) > 0.05, "nothing was clipped, so clipping was not tested"
    for mine, theirs in zip(ours, engine, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("factor", [0.5, math.nan])
def test_one_kernel_equals_the_operations(dtype, factor):
    """Over a length that no block divides, at an offset that is no multiple of 16 bytes."""
    from colossal_llama.model.kernels.adamw import adamw_fused, adamw_reference

    torch.manual_seed(0)
    tensors = [torch.rand(100_003, device="cuda")[2:] for _ in range(4)]
    tensors[1] = (tensors[1] - 0.5).to(dtype)
    tensors.append(tensors[0].bfloat16())
    scalars = torch.tensor([1e-2, 0.1, 0.05, factor], device="cuda")
    expected = [tensor.clone() for tensor in tensors]
    adamw_reference((*expected, scalars), (0.9, 0.95, 1e-8, 0.1))
    adamw_fused((*tensors, scalars), (0.9, 0.95, 1e-8, 0.1))
    for mine, theirs in zip(tensors[:4], expected[:4], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=5e-6)
    torch.testing.assert_close(tensors[4], expected[4], rtol=2**-7, atol=0.0)
