"""Optimizer states on disk: however a parameter was sharded, any elements of it are read again."""

import contextlib
import itertools
import json
import math
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from colossal_llama.engine.launch import prepare_engine

prepare_engine()

from colossal_llama.engine.optimizer_shards import OptimizerShard, ShardRange, TensorShard  # noqa: E402
from colossal_llama.model.weights.stored_tensors import shape_of  # noqa: E402
from colossal_llama.model.weights.weight_files import write_safetensors  # noqa: E402
from colossal_llama.training.checkpoint.discovery import read_checkpoint  # noqa: E402
from colossal_llama.training.checkpoint.optimizer_io import SavedOptimizer, restore_states, tensors_to_save  # noqa: E402
from colossal_llama.training.checkpoint.staging import StagedFile, StagingBuffer  # noqa: E402
from colossal_llama.utils.atomic_io import (  # noqa: E402
    clean_up_interrupted_writes,
    remove_directory,
    replace_directory,
    unfinished_path,
)
from colossal_llama.utils.errors import UserError  # noqa: E402

shapes = st.tuples(st.integers(1, 9), st.integers(1, 7))


@st.composite
def divisions(draw, shape: tuple[int, int]) -> list[ShardRange]:
    """Ranges that cover a parameter once: whole or sharded along a dimension, then divided."""
    shards: list[TensorShard | None] = [None]
    dimension = draw(st.sampled_from([None, 0, 1]))
    if dimension is not None:
        edges = sorted({0, shape[dimension], *draw(st.sets(st.integers(0, shape[dimension]), max_size=3))})
        shards = [TensorShard(dimension, begin, end) for begin, end in itertools.pairwise(edges)]
    ranges = []
    for shard in shards:
        count = math.prod(ShardRange(shape, shard, 0, 0).shard_shape)
        edges = sorted({0, count, *draw(st.sets(st.integers(0, count), max_size=3))})
        ranges += [ShardRange(shape, shard, begin, end) for begin, end in itertools.pairwise(edges)]
    return draw(st.permutations(ranges))


def elements(whole: torch.Tensor, range_: ShardRange) -> torch.Tensor:
    shard = range_.shard
    part = whole if shard is None else whole.narrow(shard.dimension, shard.begin, shard.end - shard.begin)
    return part.reshape(-1)[range_.begin : range_.end]


def shard_of(range_: ShardRange, states: dict, master: torch.Tensor, padding: int = 0) -> OptimizerShard:
    length = range_.end - range_.begin + padding
    key = torch.zeros(length)
    return OptimizerShard(
        "weight", range_, key, key.shape, states, master, keeps_master=True, is_written_here=True, parameter=key
    )


def written(directory, shards: list[OptimizerShard], tensors_per_file: int = 3) -> SavedOptimizer:
    """The shards saved, each by a rank of its own, in files of so many tensors."""
    directory.mkdir()
    staging, names = StagingBuffer(pinned=False, block_bytes=64), []
    for rank, shard in enumerate(shards):
        tensors = list(tensors_to_save([shard]))
        for first in range(0, len(tensors), tensors_per_file):
            file = StagedFile(f"rank-{rank}-{first}.safetensors")
            for name, tensor, entry in tensors[first : first + tensors_per_file]:
                file.add(name, shape_of(tensor), staging.stage(tensor), entry)
            write_safetensors(directory / file.name, file.shapes, file.slices.__getitem__, file.metadata)
            names.append(file.name)
    index = {"format": "colossal_llama.optimizer.1", "param_groups": [], "files": dict.fromkeys(names, 0)}
    (directory / "index.json").write_text(json.dumps(index))
    return SavedOptimizer(directory)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shape=shapes, padding=st.integers(0, 3))
def test_any_division_is_read_by_any_other(tmp_path_factory, data, shape, padding):
    whole = {name: torch.randn(shape) for name in ("exp_avg", "exp_avg_sq", "master_weight")}
    shards = [
        shard_of(
            range_,
            {"step": 7, **{name: elements(whole[name], range_) for name in ("exp_avg", "exp_avg_sq")}},
            elements(whole["master_weight"], range_).clone(),
        )
        for range_ in data.draw(divisions(shape))
    ]
    saved = written(tmp_path_factory.mktemp("saved") / "optimizer", shards, data.draw(st.integers(1, 3)))
    for range_ in data.draw(divisions(shape)):
        length = range_.end - range_.begin
        shard = shard_of(range_, {}, torch.full((length + padding,), 5.0), padding)
        restore_states(saved, [shard], {})
        assert shard.states["step"] == 7
        assert torch.equal(shard.master[:length], elements(whole["master_weight"], range_))
        assert torch.equal(shard.master[length:], torch.full((padding,), 5.0))
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(shard.states[name][:length], elements(whole[name], range_))
            assert not shard.states[name][length:].any()
    saved.close()


def test_a_shard_in_the_place_of_another_is_noticed(tmp_path):
    """Its elements are there twice, the others not at all: together the right number."""
    halves = [ShardRange((4, 2), None, begin, begin + 4) for begin in (0, 4)]
    states = {"step": 1, "exp_avg": torch.ones(4), "exp_avg_sq": torch.ones(4)}
    written(tmp_path / "optimizer", [shard_of(half, states, torch.ones(4)) for half in halves]).close()
    shutil.copyfile(tmp_path / "optimizer" / "rank-0-0.safetensors", tmp_path / "optimizer" / "rank-1-0.safetensors")
    with (
        contextlib.closing(SavedOptimizer(tmp_path / "optimizer")) as saved,
        pytest.raises(UserError, match="are missing, or there twice"),
    ):
        restore_states(saved, [shard_of(ShardRange((4, 2), None, 0, 8), {}, torch.zeros(8))], {})


@pytest.mark.parametrize(
    "change",
    [
        {"end": 5},
        {"end": 9},
        {"begin": -1},
        {"begin": "0"},
        {"step": None},
        {"shape": [4, 2.5]},
        {"shape": None},
        {"cut": {"dimension": 7, "begin": 0, "end": 1}},
        {"cut": {"dimension": 0, "begin": 0, "end": 9}},
        {"cut": [1]},
    ],
)
def test_a_damaged_header_is_refused(tmp_path, change):
    """As found in a checkpoint without checksums, of an earlier version."""
    half = ShardRange((4, 2), None, 0, 4)
    states = {"step": 1, "exp_avg": torch.ones(4), "exp_avg_sq": torch.ones(4)}
    written(tmp_path / "optimizer", [shard_of(half, states, torch.ones(4))]).close()
    path = tmp_path / "optimizer" / "rank-0-0.safetensors"
    entry = {"shape": [4, 2], "cut": None, "begin": 0, "end": 4, "step": 1, **change}
    save_file(load_file(path), path, {"notes": json.dumps({"weight": entry})})
    with pytest.raises(UserError, match=r"the optimizer states in .* cannot be read: "):
        SavedOptimizer(tmp_path / "optimizer")


def test_what_is_missing_is_said(tmp_path):
    """A missing piece is not read as zeros; a parameter that was not trained is named."""
    half = ShardRange((4, 2), None, 0, 4)
    states = {"step": 1, "exp_avg": torch.ones(4), "exp_avg_sq": torch.ones(4)}
    saved = written(tmp_path / "optimizer", [shard_of(half, states, torch.ones(4))])
    whole = shard_of(ShardRange((4, 2), None, 0, 8), {}, torch.zeros(8))
    with pytest.raises(UserError, match=r"incomplete: elements of weight\.master_weight are missing"):
        restore_states(saved, [whole], {})
    with pytest.raises(UserError, match=r"the shape \(4, 2\), the model's is \(2, 4\)"):
        restore_states(saved, [shard_of(ShardRange((2, 4), None, 0, 8), {}, torch.zeros(8))], {})
    (tmp_path / "optimizer" / "rank-0-0.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        SavedOptimizer(tmp_path / "optimizer")


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), max_size=8),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.uint8, torch.int64]),
    block_bytes=st.sampled_from([8, 16, 64, 4096]),
)
def test_the_staging_buffer_copies_every_tensor_and_is_reused(counts, dtype, block_bytes):
    staging, generator = StagingBuffer(pinned=False, block_bytes=block_bytes), np.random.default_rng(len(counts))
    held = None
    for _ in range(2):
        staging.reset()
        tensors = [torch.from_numpy(generator.integers(0, 100, count)).to(dtype) for count in counts]
        kept = [staging.stage(tensor) for tensor in tensors]
        expected = [tensor.clone() for tensor in tensors]
        for tensor in tensors:
            tensor += 1  # training goes on; the copies stay
        for tensor, pieces in zip(expected, kept, strict=True):
            assert torch.equal(torch.cat([*pieces, torch.empty(0, dtype=dtype)]), tensor)
        assert held in (None, staging.allocated_bytes)
        held = staging.allocated_bytes


def test_directories_appear_and_vanish_whole(tmp_path):
    """A process killed while writing a directory leaves a hidden name, which the next deletes."""
    for name in ("replaced", "unfinished", "removed"):
        (tmp_path / f".step-{name}.{name}").mkdir()
        (tmp_path / f".step-{name}.{name}" / "file").write_text(name)
    assert clean_up_interrupted_writes(tmp_path) == ["step-unfinished"]
    assert {path.name for path in tmp_path.iterdir()} == {"step-replaced"}
    new = unfinished_path(tmp_path / "step-replaced")
    new.mkdir()
    replace_directory(new, tmp_path / "step-replaced")
    assert not any((tmp_path / "step-replaced").iterdir())
    remove_directory(tmp_path / "step-replaced")
    assert not any(tmp_path.iterdir())


def test_pickled_checkpoints_of_earlier_versions_are_refused(tmp_path):
    for folder in ("modelling", "optimizer"):
        (tmp_path / folder).mkdir()
    (tmp_path / "running_states.json").write_text(json.dumps({"progress": {"step": 3}, "origin": {}, "world_size": 1}))
    assert read_checkpoint(tmp_path).progress.step == 3
    (tmp_path / "optimizer" / "pytorch_optim.bin.index.json").touch()
    with pytest.raises(UserError, match="pickles are not loaded"):
        read_checkpoint(tmp_path)
