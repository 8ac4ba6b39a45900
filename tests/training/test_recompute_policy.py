"""Recomputation on a GPU of a given size: as little as fits, selective before whole layers."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from colossal_llama.model.activation_checkpointing import recompute_layers
from colossal_llama.training.command_line import parse_arguments
from colossal_llama.training.memory.allocator import enable_expandable_segments, expandable_segments_enabled
from colossal_llama.training.memory.config import MemoryConfig, memory_config_of
from colossal_llama.training.memory.estimate import GIB, estimate
from colossal_llama.training.memory.recompute_policy import (
    MARGIN,
    Recomputation,
    choose_recomputation,
    minimal_recomputation,
)
from tests.support.versions import NEEDS_SHARD_POLICIES

SEVEN_B = LlamaConfig(
    vocab_size=69_104, hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32, num_attention_heads=32
)
VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


@pytest.fixture
def base(base: list[str]) -> list[str]:
    return [*base, "--use_grad_checkpoint"]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is put back afterwards, whatever a test sets
        monkeypatch.delenv(name)


def work(settings: MemoryConfig) -> tuple[int, bool]:
    """In the order of what costs more time."""
    return settings.recomputed_layers, settings.selective


@example(gib=115.4, micro_batch_size=8, selective_possible=True)
@given(gib=st.floats(60, 200), micro_batch_size=st.integers(1, 8), selective_possible=st.booleans())
def test_as_little_as_fits(gib, micro_batch_size, selective_possible):
    settings = MemoryConfig("zero2", micro_batch_size=micro_batch_size, selective=selective_possible)
    usable = int(int(gib * GIB) * (1 - MARGIN))
    chosen = minimal_recomputation(SEVEN_B, settings, int(gib * GIB))
    everything = replace(settings, recomputed_layers=32)
    ways = [replace(settings, recomputed_layers=n, selective=f) for n in range(33) for f in {False, selective_possible}]
    fitting = [work(way) for way in ways if estimate(SEVEN_B, way).fits(usable)]
    assert work(chosen) == min(fitting, default=work(everything))


@given(gib=st.floats(60, 200), wanted=st.integers(1, 40))
def test_as_many_layers_as_are_asked_for(gib, wanted):
    """Then selective recomputation alone is chosen: where it is needed."""
    settings = MemoryConfig("zero2", micro_batch_size=4, selective=True, recomputed_layers=7, requested_layers=wanted)
    plain = replace(settings, recomputed_layers=min(wanted, 32), selective=False)
    needed = not estimate(SEVEN_B, plain).fits(int(int(gib * GIB) * (1 - MARGIN)))
    assert minimal_recomputation(SEVEN_B, settings, int(gib * GIB)) == replace(plain, selective=needed)


def test_a_pipeline_recomputes_all():
    settings = MemoryConfig("3d", pipeline_stages=2, micro_batch_size=1)
    assert minimal_recomputation(SEVEN_B, settings, 1000 * GIB).recomputed_layers == 32


@pytest.mark.parametrize(
    ("words", "selective"),
    [
        ((), True),
        (("--plugin", "zero2_cpu"), True),
        (("--plugin", "3d"), True),
        (("--recompute_layers", "3"), True),
        pytest.param(("--plugin", "3d", "--tp", "2"), False, marks=NEEDS_SHARD_POLICIES),
        pytest.param(("--plugin", "3d", "--pp", "2", "--microbatch_size", "1"), False, marks=NEEDS_SHARD_POLICIES),
        (("--plugin", "ddp"), False),
        (("--plugin", "gemini"), False),
        (("--fp8",), False),
        (("--lora_rank", "8"), False),
    ],
)
def test_where_layers_may_recompute_selectively(base, words, selective):
    words = words if "--plugin" in words else ("--plugin", "zero2", *words)
    enable_expandable_segments()
    arguments = parse_arguments([*base, "--mixed_precision", "bf16", *words], has_gpu=True, world_size=2)
    assert memory_config_of(arguments, SEVEN_B, 1, fused_kernels=True, flash_attention=True).selective is selective
    assert not memory_config_of(arguments, SEVEN_B, 1, fused_kernels=False, flash_attention=True).selective


def test_not_without_checkpointing_and_not_where_segments_cannot_grow(base, monkeypatch):
    def selective(*words: str) -> bool:
        arguments = parse_arguments([*words, "--plugin", "zero2"], has_gpu=True)
        return memory_config_of(arguments, SEVEN_B, 1, fused_kernels=True, flash_attention=True).selective

    assert not selective(*base)
    enable_expandable_segments()
    assert selective(*base)
    assert not selective(*base[:-1])  # --use_grad_checkpoint
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512")
    assert not selective(*base)


def test_a_cpu_recomputes_all_or_what_is_asked_for(base):
    cpu = torch.device("cpu")
    assert choose_recomputation(parse_arguments(base), SEVEN_B, cpu, 1, fused_kernels=False) == Recomputation(32, False)
    three = parse_arguments([*base, "--recompute_layers", "3"])
    assert choose_recomputation(three, SEVEN_B, cpu, 1, fused_kernels=False) == Recomputation(3, False)


def test_layers_that_keep_everything_are_called_as_ever():
    tiny = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(tiny)
    (layer,) = model.model.layers
    recompute_layers(model, 0, reentrant=False)
    assert "forward" not in vars(layer)
    recompute_layers(model, 0, reentrant=False, selective=True)
    assert "forward" in vars(layer)


@pytest.mark.parametrize(
    ("cuda", "general", "grow"),
    [
        (None, None, None),
        ("", None, None),
        ("max_split_size_mb:512", None, False),
        (None, "max_split_size_mb:512", False),
        (None, "max_split_size_mb:512, expandable_segments: True", True),
        ("max_split_size_mb:512", "expandable_segments:True", False),
        ("expandable_segments:True", "max_split_size_mb:512", True),
        ("expandable_segments:True,expandable_segments:False", None, False),
        ("backend:cudaMallocAsync,expandable_segments:True", None, False),
    ],
)
def test_the_users_setting_of_the_allocator_stays(monkeypatch, cuda, general, grow):
    """PyTorch reads the second variable only where the first is unset; with none, we set it."""
    for name, setting in zip(VARIABLES, (cuda, general), strict=True):
        if setting is not None:
            monkeypatch.setenv(name, setting)
    assert expandable_segments_enabled() is bool(grow)
    enable_expandable_segments()
    assert expandable_segments_enabled() is (grow is None or grow)
    found = tuple(os.environ.get(name) for name in VARIABLES)
    assert found == ((cuda, general) if cuda or general else ("expandable_segments:True", None))


def test_which_variable_pytorch_looks_at():
    """PyTorch complains of an invalid number only in the variable that it reads."""
    program = "import torch; torch._C._accelerator_setAllocatorSettings('max_split_size_mb:512')"
    right, wrong = "max_split_size_mb:512", "max_split_size_mb:none"
    for settings, complains in (((wrong, right), True), ((right, wrong), False), (("", wrong), False)):
        environment = {**os.environ, **dict(zip(VARIABLES, settings, strict=True))}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert ("ValueError" in done.stderr) is complains, done.stderr
