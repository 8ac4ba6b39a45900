"""The memory estimate against bytes counted in real steps on the CPU, and GPU measurements."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from colossal_llama.model.kernels import linear_cross_entropy
from colossal_llama.model.param_count import layer_parameters, parameters
from colossal_llama.training.memory import estimate as memory_estimate
from colossal_llama.training.memory.config import MemoryConfig
from colossal_llama.training.memory.estimate import GIB, activation_bytes_per_layer, estimate
from tests.support.live_bytes import LiveBytes
from tests.support.ranks import run_ranks
from tests.support.versions import possible, run_names

BATCH = ("--micro_batch_size", "8", "--mixed_precision", "bf16", "--padding_mode", "max_length", "--max_steps", "2")
FP32 = ("--micro_batch_size", "8", "--mixed_precision", "fp32", "--padding_mode", "max_length", "--max_steps", "2")
CASES = {
    "zero2": BATCH,
    "zero2 recomputed": (*BATCH, "--use_grad_checkpoint"),
    "zero2 accumulated": (*BATCH, "--micro_batch_size", "4", "--accumulation_steps", "2"),
    "zero2 fp32": FP32,
    "zero2 bf16 states": (*BATCH, "--optimizer_states", "bf16"),
    "zero2 8bit states": (*BATCH, "--optimizer_states", "8bit"),
    "zero2_cpu": (*BATCH, "--plugin", "zero2_cpu"),
    "3d zero0": (*BATCH, "--plugin", "3d", "--zero", "0"),
    "3d zero1": (*BATCH, "--plugin", "3d"),
    "3d tp2": (*BATCH, "--plugin", "3d", "--zero", "0", "--tp", "2"),
    "ddp": (*BATCH, "--plugin", "ddp"),
}


@pytest.fixture(scope="module")
def counts(runner, project_root):
    """For each case what was counted on one of two ranks and what was estimated, by phase."""
    listing, output = runner.workspace / "commands.json", runner.workspace / "counts.json"
    cases = possible(CASES)
    listing.write_text(json.dumps([runner.command(name, *options) for name, options in cases.items()]))
    done = run_ranks("tests.support.count_memory", [str(listing), str(output)], 2, project_root)
    assert done.returncode == 0, done.stdout[-6000:]
    return dict(zip(cases, json.loads(output.read_text()), strict=True))


PHASES = ("forward", "backward", "optimizer step")
COUNTED = [  # states in 16 and 8 bits are updated operation by operation here, by one kernel on a GPU
    pytest.param(*case.values, phase, marks=case.marks)
    for case, phase in itertools.product(run_names(CASES), PHASES)
    if not (str(case.values[0]).endswith("states") and phase == PHASES[-1])
]


@pytest.mark.parametrize(("name", "phase"), COUNTED)
def test_estimated_as_counted(counts, name, phase):
    counted = counts[name]["counted"][phase]
    estimated = sum(counts[name]["estimated"][phase].values())
    estimated += counts[name]["estimated_host_bytes"]  # here the device's memory is the host's
    assert estimated == pytest.approx(counted, rel=0.05)


def test_what_gloo_holds_is_not_counted(tmp_path):
    """A collective's handle stands for gloo's threads here: while alive, it holds the tensors."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        counter = LiveBytes()
        counter.enter("collectives")
        with counter:
            summed, scattered = torch.ones(1000), torch.zeros(1000)
            handles = [dist.all_reduce(summed, async_op=True)]
            handles.append(dist.reduce_scatter_tensor(scattered, summed, async_op=True))
            for handle in handles:
                handle.wait()
            assert scattered.tolist() == [1.0] * 1000
            del summed, scattered
        assert (counter.live, counter.peaks["collectives"]) == (0, 8000)
    finally:
        dist.destroy_process_group()


LARGE = {"vocab_size": 69_104, "tie_word_embeddings": False}
SHAPES = {
    "1.25B": SimpleNamespace(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        **LARGE,
    ),
    "7B": SimpleNamespace(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        **LARGE,
    ),
}


@pytest.mark.parametrize(("plugin", "peak_gib"), [("zero2", 24.4), ("gemini", 21.7)])
def test_estimated_as_measured_on_an_h200(plugin, peak_gib):
    """Peaks of benchmarks/plugins_on_gpu.py in an early state.

    1.25 B, micro-batch 8, every layer recomputed, ColossalAI's own optimizer step.
    """
    shape = SHAPES["1.25B"]
    settings = MemoryConfig(plugin, micro_batch_size=8, recomputed_layers=shape.num_hidden_layers, fused_update=False)
    assert estimate(shape, settings).peak_bytes / GIB == pytest.approx(peak_gib, rel=0.02)


def test_slices_go_through_as_many_bytes_as_the_estimate_says():
    from colossal_llama.engine.zero_offload_update import OffloadPipeline

    assert OffloadPipeline(torch.device("cpu"), torch.bfloat16).host_bytes == memory_estimate._SLICE_BUFFERS_BYTES


@pytest.mark.parametrize(("setting", "selective"), [("", True), ("expandable_segments:False", False)])
def test_train_asks_for_the_segments_that_selective_recomputation_needs(runner, project_root, setting, selective):
    """As the plan for a tiny GPU shows; unless the user has set other segments."""
    name = f"plan_{selective}"
    planned = ("--use_grad_checkpoint", "--dry_run", "--gpu_memory_gib", "1e-4")
    done = subprocess.run(
        [sys.executable, "train.py", *runner.command(name, *BATCH, *planned)],
        cwd=project_root,
        env={**os.environ, "PYTORCH_CUDA_ALLOC_CONF": setting},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads((runner.workspace / name / "config.json.dry_run.json").read_text())
    assert plan["frugal"] is selective


def test_the_loss_works_on_as_many_rows_at_a_time_as_the_estimate_says():
    assert memory_estimate._LOSS_CHUNK_ROWS == linear_cross_entropy.CHUNK_ROWS


def test_parameters_are_those_of_the_model(toy):
    from transformers import LlamaConfig, LlamaForCausalLM

    for changes in ({}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}, {"head_dim": 24}):
        config = LlamaConfig.from_pretrained(toy.model, **changes)
        assert parameters(config) == sum(p.numel() for p in LlamaForCausalLM(config).parameters()), changes


@pytest.mark.parametrize("selective", [False, True])
def test_recomputing_a_layer_more_never_takes_more_between_forward_and_backward(selective):
    """What a choice of recomputed layers rests on."""
    shape = SHAPES["7B"]
    everything, kept_selectively, recomputed = activation_bytes_per_layer(shape, 4096, fused_kernels=True)
    kept = kept_selectively if selective else everything
    assert recomputed == 4096 * 4096 * 2 < kept_selectively < everything
    choices = [
        MemoryConfig("zero2", micro_batch_size=2, recomputed_layers=layers, selective=selective) for layers in range(33)
    ]
    forwards = [sum(estimate(shape, settings).phases["forward"].values()) for settings in choices]
    differences = {more - less for more, less in itertools.pairwise(forwards)}
    assert differences == {2 * (kept - recomputed)}


def test_stages_share_layers_and_ranks_share_sequences():
    """Two stages hold half the layers each, of twice as many micro-batches.

    Their weights are two halves, but for one embedding.
    """
    shape = SHAPES["7B"]
    one = MemoryConfig("3d", zero_stage=0, accumulation_steps=4)
    two = dataclasses.replace(one, pipeline_stages=2)
    half = dataclasses.replace(one, sequence_parallel_size=2)
    kept = activation_bytes_per_layer(shape, 4096, fused_kernels=True)[0] * shape.num_hidden_layers
    first, second, third = (estimate(shape, settings).phases["forward"] for settings in (one, two, half))
    assert second["activations"] == first["activations"] > kept
    assert third["activations"] == first["activations"] // 2
    layers = 2 * shape.num_hidden_layers * layer_parameters(shape)
    assert first["weights"] - second["weights"] == pytest.approx(layers / 2 + 2 * 69_104 * 4096, rel=1e-3)


def test_more_ranks_never_take_more_memory():
    for plugin in ("zero2", "gemini", "3d"):
        peaks = [
            estimate(SHAPES["7B"], MemoryConfig(plugin, data_parallel_size=ranks, recomputed_layers=32)).peak_bytes
            for ranks in (2, 4, 8, 64)
        ]
        assert peaks == sorted(peaks, reverse=True), plugin
