"""Parallel layouts of `--plugin 3d`: possible products of pp, tp, sp and ZeRO. Imports no torch.

    processes = data-parallel ranks x pp x tp x sp

sp is a factor in mode all_to_all only; the other modes use the tensor parallel ranks.
"""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

SP_MODES = ("split_gather", "ring", "all_to_all")

TABLE = """\
products of --plugin 3d (processes = data-parallel ranks x pp x tp, x sp with all_to_all; tested on 2 to 4):

                              --zero 0   --zero 1   --zero 2
  --tp N                      yes        yes        yes
  --pp N                      yes        yes        no
  --pp N --tp M               yes        yes        no
  --sp N, split_gather, ring  yes        yes        yes        --sp must equal --tp; also with --pp (not --zero 2)
  --sp N, all_to_all          yes        yes        yes        separate ranks; also with --tp, --pp (not --zero 2)

  --zero 1 and 2 need fp16 or bf16. --tp (with all_to_all: --tp x --sp) must divide the attention heads and the
  key-value heads, --pp may not exceed the layers. --lora_rank needs --tp 1, --pp 1 and --sp 1.
  --train_only embeddings and new_rows need --pp 1 or 2; --freeze_layers must leave each stage a layer to train,
  but for the first and the last.
"""


@dataclass(frozen=True)
class ModelShape:
    """Sizes in a model's config.json that a parallel layout must divide."""

    layers: int
    heads: int
    key_value_heads: int
    intermediate: int


def read_model_shape(directory: Path | None) -> ModelShape | None:
    """Reads the model shape from the config.json of a model directory or of a checkpoint.

    None without a readable file.
    """
    if directory is None:
        return None
    for file in (directory / "config.json", directory / "modelling" / "config.json"):
        try:
            config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            heads = int(config["num_attention_heads"])
            return ModelShape(
                layers=int(config["num_hidden_layers"]),
                heads=heads,
                key_value_heads=int(config.get("num_key_value_heads") or heads),
                intermediate=int(config["intermediate_size"]),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            continue
    return None


@dataclass(frozen=True)
class FrozenLayers:
    """Decoder layers that are not trained."""

    option: str
    """The option that freezes them, as on the command line."""
    number: int | None
    """The first so many; None: all, and the norm behind them."""


@dataclass(frozen=True)
class Layout:
    """Parallel sizes of the processes, and the ZeRO stage."""

    pp: int = 1
    tp: int = 1
    sp: int = 1
    sp_mode: str = "split_gather"
    zero: int = 1

    @property
    def shares_tp_ranks(self) -> bool:
        """True when sequences are sharded over tensor parallel ranks, not over separate ranks."""
        return self.sp_mode != "all_to_all"

    @property
    def head_parallel_size(self) -> int:
        """Number of processes over which the attention heads of a layer are divided."""
        return self.tp * (1 if self.shares_tp_ranks else self.sp)

    @property
    def model_parallel_size(self) -> int:
        """Number of processes that hold one copy of the model."""
        return self.pp * self.head_parallel_size

    def as_options(self) -> str:
        """Formats the layout as options of train.py."""
        return f"--pp {self.pp} --tp {self.tp} --sp {self.sp} --zero {self.zero}"


def layout_of(plugin: Any) -> Layout:
    """Parallel layout of the plugin's arguments (training.arguments.PluginArguments)."""
    return Layout(plugin.pp, plugin.tp, plugin.sp, plugin.sp_mode, plugin.zero)


def layout_problem(
    layout: Layout, world_size: int, shape: ModelShape | None, half_precision: bool, frozen: FrozenLayers | None = None
) -> str | None:
    """Explains why a layout is impossible, and names the nearest possible one.

    Args:
        layout: as requested.
        world_size: number of processes.
        shape: of the model; None where it is unknown.
        half_precision: True when the run computes in fp16 or bf16.
        frozen: layers that are not trained; None: all are.

    Returns:
        One sentence; None when the layout is possible.
    """
    reason = _impossible_reason(layout, world_size, shape, half_precision, frozen)
    if reason is None:
        return None
    possible = [
        other
        for other in _candidates(layout, world_size)
        if _impossible_reason(other, world_size, shape, half_precision, frozen) is None
    ]
    nearest = min(possible, key=lambda other: _distance(layout, other))
    return f"{reason}; the nearest possible setting is {nearest.as_options()}"


def _impossible_reason(
    layout: Layout, world_size: int, shape: ModelShape | None, half_precision: bool, frozen: FrozenLayers | None = None
) -> str | None:
    pp, tp, sp, zero = layout.pp, layout.tp, layout.sp, layout.zero
    if sp > 1 and layout.shares_tp_ranks and sp != tp:
        return (
            f"--sp_mode {layout.sp_mode} divides sequences over the tensor parallel ranks, so --sp {sp} must equal "
            f"--tp, which is {tp} (--sp_mode all_to_all has separate ranks)"
        )
    if world_size % layout.model_parallel_size:
        return (
            f"--pp {pp}, --tp {tp} and --sp {sp} need {layout.model_parallel_size} processes for one copy of the "
            f"model, which does not divide the {world_size} processes of the run"
        )
    if pp > 1 and zero == 2:
        return "--zero 2 with --pp would reduce all gradients once a pipeline micro-batch, and ColossalAI refuses it"
    if zero and not half_precision:
        return (
            f"--zero {zero} keeps fp32 master weights of fp16 or bf16 weights, so it is not for --mixed_precision fp32"
        )
    if frozen is not None and (stage := _stage_without_training(layout, shape, frozen)) is not None:
        return f"{frozen.option} leaves stage {stage + 1} of --pp {pp} nothing to train"
    return None if shape is None else _shape_reason(layout, shape)


def layers_of_stages(layers: int, stages: int) -> list[int]:
    """Number of layers of each pipeline stage, as ColossalAI divides them: more in the middle."""
    each, left = divmod(layers, stages)
    first = stages // 2 - left // 2
    return [each + (first <= stage < first + left) for stage in range(stages)]


def _stage_without_training(layout: Layout, shape: ModelShape | None, frozen: FrozenLayers) -> int | None:
    """Index of a stage without anything to train; first and last have the embeddings."""
    middle = range(1, layout.pp - 1)
    if frozen.number is None:
        return next(iter(middle), None)
    ends = list(itertools.accumulate(layers_of_stages(shape.layers, layout.pp))) if shape is not None else []
    return next((stage for stage in middle if ends and ends[stage] <= frozen.number), None)


def _shape_reason(layout: Layout, shape: ModelShape) -> str | None:
    if layout.pp > shape.layers:
        return f"--pp {layout.pp} is more than the model's {shape.layers} layers"
    head_ranks = layout.head_parallel_size
    name = f"--tp {layout.tp}" if head_ranks == layout.tp else f"--tp {layout.tp} x --sp {layout.sp}"
    for what, amount, divisor in (
        ("attention heads", shape.heads, head_ranks),
        ("key-value heads", shape.key_value_heads, head_ranks),
        ("intermediate units", shape.intermediate, layout.tp),
    ):
        if amount % divisor:
            return f"{name} does not divide the model's {amount} {what}"
    return None


def _candidates(layout: Layout, world_size: int) -> Iterator[Layout]:
    sizes = [n for n in range(1, world_size + 1) if world_size % n == 0]
    zeros = dict.fromkeys((layout.zero, 1, 0))
    for pp, tp, sp, zero in itertools.product(sizes, sizes, sizes, zeros):
        yield replace(layout, pp=pp, tp=tp, sp=sp, zero=zero)


def _distance(requested: Layout, other: Layout) -> float:
    sizes = zip((requested.pp, requested.tp, requested.sp), (other.pp, other.tp, other.sp), strict=True)
    return sum(abs(math.log2(a / b)) for a, b in sizes) + 0.4 * abs(requested.zero - other.zero)


def describe_parallel_layout(plugin: Any, micro_batches: int) -> list[str]:
    """Describes pipeline bubble and sequence shards for the start-up report, one sentence each.

    Args:
        plugin: its arguments (training.arguments.PluginArguments).
        micro_batches: number of a step and rank.
    """
    notes = []
    if plugin.pp > 1:
        bubble = (plugin.pp - 1) / (micro_batches + plugin.pp - 1)
        notes.append(
            f"pipeline: {plugin.pp} stages, {micro_batches} micro-batches of {plugin.microbatch_size} rows a step and "
            f"rank: the pipeline bubble is {bubble:.0%} of the time (more --accumulation_steps, smaller bubble)"
        )
    if plugin.sp > 1:
        notes.append(f"sequences divided over {plugin.sp} ranks ({plugin.sp_mode}), rows padded to a multiple of that")
    return notes
