"""Patches of ColossalAI: each is still needed, and has its effect."""

import inspect
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from colossal_llama.engine import adam_extension, cpu_accelerator, launch
from tests.support.versions import NEEDS_SHARD_POLICIES


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr[-500:]


def test_zero_still_refuses_a_cpu_by_name(unpatched):
    """Fails when ColossalAI's ZeRO optimizer accepts a CPU: then `_allow_zero_on_cpu` can go."""
    assert '["cuda", "npu"]' in unpatched["zero's checks"]


def test_zero_still_reduces_a_norm_for_each_group(unpatched):
    """Fails when ColossalAI reduces one norm of all groups: then `reduce_norm_once` can go.

    What it is for is run in integration/test_trained_rows.py (`pp4_zero1_bf16`).
    """
    loop = unpatched["zero's norm"].partition("for group_id in range(self.num_param_groups):")[2]
    assert "self._compute_grad_norm(" in loop.partition("calculate_global_norm_from_list")[0]


def test_a_pipelines_exchange_still_asks_about_hccl(monkeypatch, unpatched):
    """Fails when ColossalAI knows a gloo group: then `_treat_no_group_as_nccl` can go."""
    from colossalai.pipeline import p2p

    assert "AttributeError" in unpatched["is gloo nccl"]
    assert "hccl" in unpatched["is gloo nccl"].lower()
    monkeypatch.setattr(p2p, "_check_for_nccl_hccl_backend", None)
    cpu_accelerator._treat_no_group_as_nccl()
    assert p2p._check_for_nccl_hccl_backend(None) is False


UNPATCHED = """
import inspect, json, torch, torch.distributed as dist
found = {}
from colossal_llama.engine.launch import launch
import colossalai
from colossalai.nn.optimizer import HybridAdam
from colossalai.shardformer.layer import _operation
from colossalai.zero import LowLevelZeroOptimizer
from colossalai.zero.gemini import gemini_optimizer
from colossalai.zero.gemini.chunk.chunk import Chunk
from colossalai.booster.plugin.hybrid_parallel_plugin import HybridParallelModule, HybridParallelZeroOptimizer
module_init = HybridParallelModule.__init__
from colossalai.amp.naive_amp.mixed_precision_mixin import FP16MixedPrecisionMixin
unscaling = {name: getattr(FP16MixedPrecisionMixin, name) for name in ("should_skip_step", "get_grad_div_scale")}
exchange = (
    HybridParallelZeroOptimizer.sync_dp_grads,
    LowLevelZeroOptimizer._sync_grad,
    LowLevelZeroOptimizer._run_reduction,
)
found["a pipeline's exchange"] = "".join(map(inspect.getsource, exchange))
found["a chunk's reduction"] = inspect.getsource(Chunk.reduce) + inspect.getsource(Chunk._Chunk__scatter)
original = _operation._ring_as_gather
from colossalai.pipeline import p2p
is_nccl = p2p._check_for_nccl_hccl_backend
found["zero's norm"] = inspect.getsource(LowLevelZeroOptimizer.step)
found["zero's checks"] = inspect.getsource(LowLevelZeroOptimizer._sanity_checks)
found["adam's step"] = inspect.getsource(HybridAdam.step)
found["a chunk's norm"] = inspect.getsource(Chunk.set_l2_norm)
found["gemini"] = inspect.getsource(gemini_optimizer)
launch(0)
try: found["is gloo nccl"] = repr(is_nccl(dist.new_group(backend="gloo")))
except AttributeError as error: found["is gloo nccl"] = repr(error)
from colossal_llama.engine.hybrid_adam import FusedHybridAdam, build_optimizer
from colossal_llama.engine.whole_model import WholeModelPolicy
from colossalai.booster import Booster
from colossalai.booster.plugin import HybridParallelPlugin
from transformers import LlamaConfig, LlamaForCausalLM
def norm_of_two_micro_batches(elements_in_a_bucket):
    settings = {"zero_stage": 2, "precision": "bf16", "max_norm": 1e9, "overlap_communication": False}
    policy = WholeModelPolicy()
    plugin = HybridParallelPlugin(tp_size=1, pp_size=1, custom_policy=policy, **settings)
    plugin.zero_config["reduce_bucket_size"] = elements_in_a_bucket
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **shape)).bfloat16()
    booster = Booster(plugin=plugin)
    model, optimizer, *_ = booster.boost(model, build_optimizer(model, 1e-3, 0.1))
    for _ in range(2):
        ids = torch.randint(0, 32, (2, 8))
        booster.backward(model(input_ids=ids, labels=ids).loss, optimizer)
    optimizer.step()
    return optimizer.get_grad_norm()
class Scaled(FP16MixedPrecisionMixin):
    def check_local_overflow(self): return False
def divisor():
    scaled = Scaled(initial_scale=4, growth_interval=1)
    loss = float(scaled.pre_backward(torch.tensor(1.0)))
    assert not scaled.should_skip_step() and scaled.loss_scale == 2 * loss
    return scaled.get_grad_div_scale() / loss
found["our divisor"] = divisor()
for name, function in unscaling.items(): setattr(FP16MixedPrecisionMixin, name, function)
found["divisor"] = divisor()
found["our norms"] = [norm_of_two_micro_batches(elements) for elements in (2**20, 2**9)]
HybridParallelModule.__init__ = module_init
found["norms"] = [norm_of_two_micro_batches(elements) for elements in (2**20, 2**9)]
found["gemini takes our adam"] = FusedHybridAdam in gemini_optimizer._AVAIL_OPTIM_LIST
from colossalai.shardformer import ShardConfig
from colossalai.shardformer.layer import dist_cross_entropy

labels, logits = torch.zeros(1, 8, dtype=torch.long), torch.zeros(1, 8, 5, dtype=torch.bfloat16)
loss = dist_cross_entropy(labels, logits, ShardConfig(enable_tensor_parallelism=False), 5, torch.bfloat16)

other = torch.full((1, 2, 3), 7.0)  # what rank 1 would send to rank 0
dist.get_world_size, dist.get_rank = (lambda group=None: 2), (lambda group=None: 0)
dist.get_process_group_ranks = lambda group: [0, 1]
dist.P2POp = lambda operation, tensor, peer, group=None: (operation, tensor)
class Done:
    def wait(self): pass
def exchange(operations):
    for operation, tensor in operations:
        if operation is dist.irecv: tensor.copy_(other)
    return [Done()]
dist.batch_isend_irecv = exchange
def is_right(ring):
    mine = torch.zeros(1, 2, 3)
    _, gathered = ring(torch.nn.functional.linear, {"input": mine}, {"weight": torch.eye(3)}, "a group")
    return torch.equal(gathered["input"], torch.cat([mine, other], dim=1))
found |= {"loss": str(loss.dtype), "ring": is_right(original), "our ring": is_right(_operation._ring_as_gather)}
print(json.dumps(found), flush=True)
"""


@pytest.fixture(scope="module")
def unpatched() -> dict:
    """Behaviour of ColossalAI without patches, observed in a process of its own."""
    return json.loads(run(UNPATCHED).splitlines()[-1])


def test_the_ring_still_forgets_what_it_received(unpatched):
    """Fails when ColossalAI's ring gathers its input rightly: then `ring_as_gather` can go."""
    assert not unpatched["ring"]
    assert unpatched["our ring"]


def test_zero_2_without_partners_still_counts_gradients_twice(unpatched):
    """Fails when ColossalAI leaves DistributedDataParallel out where ZeRO is.

    Then `_skip_ddp_without_partners` only saves memory.
    """
    in_one_bucket, in_many = unpatched["norms"]
    assert in_many > 1.2 * in_one_bucket
    assert unpatched["our norms"] == pytest.approx([in_one_bucket] * 2, rel=1e-3)


def test_gradients_are_still_divided_by_a_scale_that_they_were_not_made_with(unpatched):
    """Fails when ColossalAI divides by the loss's own scale.

    Then `_unscale_by_the_scale_of_the_loss` can go.
    """
    assert unpatched["divisor"] == 2
    assert unpatched["our divisor"] == 1


@pytest.mark.parametrize(("stages", "ranks", "overlaps"), [(1, 2, True), (1, 1, False), (2, 2, False)])
def test_gradients_of_a_pipeline_are_not_communicated_on_a_second_stream(
    monkeypatch, unpatched, stages, ranks, overlaps
):
    """The last assertion fails when ColossalAI waits for that stream there.

    Then `_overlaps_communication` need not depend on the stages.
    """
    launch.prepare_engine()
    from colossal_llama.engine import plugins

    monkeypatch.setattr(plugins, "has_gpu", lambda: True)
    monkeypatch.setattr(plugins.dist, "get_world_size", lambda: ranks)
    assert plugins._overlaps_communication(SimpleNamespace(pp=stages)) is overlaps
    assert ".synchronize(" not in unpatched["a pipeline's exchange"]


def test_the_loss_of_a_parallelised_model_is_still_computed_in_half_precision(unpatched):
    """Fails when ColossalAI computes it in fp32: then `causal_lm_forward` can go."""
    assert unpatched["loss"] == "torch.bfloat16"


@NEEDS_SHARD_POLICIES
def test_sequence_parallel_attention_still_knows_no_attention_function():
    """Fails when ColossalAI calls that function: then `attention_forward` can go."""
    from colossalai.shardformer.modeling import llama

    assert "ALL_ATTENTION_FUNCTIONS" not in inspect.getsource(llama.get_llama_flash_attention_forward)


def test_partial_gradients_are_still_summed_after_they_were_accumulated():
    """Fails when ColossalAI's ZeRO sums them elsewhere than after a backward pass.

    Then `complete_partial_gradients` may go: `split_gather_zero2` in
    tests/integration/test_parallel_dimensions.py shows whether it can.
    """
    from colossalai.booster.plugin.hybrid_parallel_plugin import HybridParallelZeroOptimizer

    assert inspect.getsource(HybridParallelZeroOptimizer.backward).count("self._sync_sp_grads()") == 1
    assert "_sync_sp_grads" not in inspect.getsource(HybridParallelZeroOptimizer.step)


@pytest.mark.parametrize("div_scale", [-1.0, 4.0])
def test_adam_kernel_equals_torch_adamw(div_scale):
    torch.manual_seed(0)
    start, factor = torch.randn(100), div_scale if div_scale > 0 else 1.0
    reference = torch.nn.Parameter(start.clone())
    adamw = torch.optim.AdamW([reference], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    ours, exp_avg, exp_avg_sq = start.clone(), torch.zeros(100), torch.zeros(100)
    kernel = adam_extension.TorchCpuAdam.CPUAdamOptimizer(1e-2, 0.9, 0.95, 1e-8, 0.1, True)
    for step in range(1, 6):
        gradient = torch.randn(100)
        reference.grad = gradient.clone()
        adamw.step()
        kernel.step(step, 1e-2, 0.9, 0.95, 1e-8, 0.1, True, ours, gradient * factor, exp_avg, exp_avg_sq, div_scale)
    torch.testing.assert_close(ours, reference.detach())


def test_cuda_kernel_signature_takes_half_precision_gradients():
    """Gemini passes bf16 gradients for fp32 parameters; the same code path runs on CPU tensors."""
    torch.manual_seed(0)
    gradient = torch.randn(50).bfloat16()
    lists = {
        dtype: [[gradient.to(dtype)], [torch.ones(50)], [torch.zeros(50)], [torch.zeros(50)]]
        for dtype in (torch.bfloat16, torch.float32)
    }
    for tensors in lists.values():
        adam_extension.TorchCudaAdam.multi_tensor_adam(0, None, tensors, 1e-2, 0.9, 0.95, 1e-8, 1, 1, 1, 0.1, -1.0)
    torch.testing.assert_close(lists[torch.bfloat16][1][0], lists[torch.float32][1][0])


def host_parameter_after(kind: str, div_scale: float, steps: int = 800) -> torch.Tensor:
    """An fp32 host parameter after steps with bf16 gradients, as in Gemini's offloading."""
    from colossalai.nn.optimizer import HybridAdam

    from colossal_llama.engine.hybrid_adam import FusedHybridAdam

    launch.prepare_engine()
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(64))
    settings = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}
    made = {"torch": torch.optim.AdamW, "engine": HybridAdam, "ours": FusedHybridAdam}[kind]([parameter], **settings)
    for step in range(steps):
        gradient = (torch.randn(64) * (1 + step % 7)).bfloat16()
        if kind == "torch":
            parameter.grad = gradient.float() / (div_scale + step % 3)
            made.step()
        else:
            # As Gemini does it: PyTorch takes a gradient of the parameter's dtype only.
            exact, parameter.data = parameter.data, parameter.data.bfloat16()
            parameter.grad, parameter.data = gradient, exact
            made.step(div_scale=div_scale + step % 3)
    return parameter.detach()


def test_adam_in_host_memory_takes_half_precision_gradients_and_clips():
    torch.testing.assert_close(host_parameter_after("ours", 4.0), host_parameter_after("torch", 4.0))


def test_hybrid_adam_still_ignores_clipping_for_them(unpatched):
    """Fails when HybridAdam applies `div_scale` to half-precision gradients on the CPU.

    Then `hybrid_adam.FusedHybridAdam` is about speed alone.
    """
    source = unpatched["adam's step"]
    begin = source.index("self.torch_adam_update(")
    assert "div_scale" not in source[begin : source.index(")", begin)]


def test_gemini_takes_our_adam_and_no_unlisted_one(unpatched):
    """Fails when Gemini accepts subclasses of its optimizers: then the entry in its list can go."""
    assert unpatched["gemini takes our adam"]
    assert "type(optim) in _AVAIL_OPTIM_LIST" in unpatched["gemini"]


def test_gemini_adds_up_norms_that_stay_tensors():
    """ColossalAI's sum over chunks, with the norms of the patch."""
    from colossalai.zero.gemini.chunk.chunk import Chunk
    from colossalai.zero.gemini.gemini_optimizer import GeminiOptimizer

    from colossal_llama.engine.patches.gemini import keep_norms_on_the_device

    former = Chunk.set_l2_norm
    keep_norms_on_the_device()
    try:
        chunks = []
        for size, used in ((10, 10), (16, 12)):
            values = torch.arange(1.0, size + 1).bfloat16()
            chunk = SimpleNamespace(l2_norm=None, is_gathered=True, cuda_global_chunk=values, utilized_size=used)
            Chunk.set_l2_norm(chunk)
            chunks.append(chunk)
        owner = SimpleNamespace(
            chunk16_set=chunks, module=SimpleNamespace(chunk_manager=SimpleNamespace(reuse_fp16_chunk=True))
        )
        norm = GeminiOptimizer._calc_global_norm(owner)
    finally:
        Chunk.set_l2_norm = former
    assert norm == pytest.approx(sum(n * n for n in [*range(1, 11), *range(1, 13)]) ** 0.5, rel=1e-6)
    assert all(chunk.l2_norm is None for chunk in chunks)


@pytest.mark.parametrize("function", ["reduce", "_Chunk__scatter"])
def test_gemini_records_the_stream_that_reads_a_chunk_before_its_memory_is_freed(monkeypatch, unpatched, function):
    """Fails when ColossalAI records it: then the patch can go.

    tests/gpu/test_gemini_streams.py shows its effect on a GPU.
    """
    from colossalai.zero.gemini.chunk.chunk import Chunk

    from colossal_llama.engine.patches.gemini import keep_memory_until_it_is_read

    happened = []
    for name in ("reduce", "_Chunk__scatter"):
        monkeypatch.setattr(Chunk, name, lambda chunk, **settings: happened.append(("ColossalAI's", settings)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "second stream")
    keep_memory_until_it_is_read()
    whole = SimpleNamespace(is_cuda=True, record_stream=lambda stream: happened.append(stream))
    getattr(Chunk, function)(SimpleNamespace(is_gathered=True, cuda_global_chunk=whole))
    assert happened == ["second stream", ("ColossalAI's", {"async_op": False} if function == "reduce" else {})]
    assert "record_stream" not in unpatched["a chunk's reduction"]


def test_gemini_still_reads_every_norm_back(unpatched):
    """Fails when ColossalAI keeps a chunk's norm on the device: then the patch can go."""
    assert ".item()" in unpatched["a chunk's norm"]


@pytest.mark.parametrize(
    ("threads", "processes", "expected"),
    [("1", "1", "all"), ("1", "1000", 1), (None, "1", "all"), ("3", "1", "unchanged")],
    ids=["torchrun's", "more processes than cores", "unset", "the user's"],
)
def test_a_process_takes_its_share_of_the_cores(monkeypatch, threads, processes, expected):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    try:
        expected = {"all": len(os.sched_getaffinity(0)), "unchanged": before}.get(expected, expected)
        assert launch.take_share_of_cores() == expected == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
