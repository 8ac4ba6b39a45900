"""Parallel layouts of `--plugin 3d`: which products of pp, tp, sp and ZeRO exist. Imports no torch.

processes = data-parallel ranks x pp x tp x sp            (sp only in mode all_to_all; the other modes use the tp ranks)
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
products of --plugin 3d (processes = data-parallel ranks x pp x tp, and x sp with all_to_all; tried on 2 to 4 processes):

                              --zero 0   --zero 1   --zero 2
  --tp N                      yes        yes        yes
  --pp N                      yes        yes        no
  --pp N --tp M               yes        yes        no
  --sp N, split_gather, ring  yes        yes        yes        --sp must equal --tp; also with --pp (then no --zero 2)
  --sp N, all_to_all          yes        yes        yes        own processes; also with --tp and --pp (then no --zero 2)

  --zero 1 and 2 need fp16 or bf16. --tp (with all_to_all: --tp x --sp) must divide the attention heads and the key-value
  heads, --pp may not exceed the layers. --lora_rank needs --tp 1, --pp 1 and --sp 1. --freeze_non_embeds_params needs --pp 1 or 2.
"""


@dataclass(frozen=True)
class ModelShape:
    """What a model's config.json says of what can be divided."""

    layers: int
    heads: int
    key_value_heads: int
    intermediate: int


def read_model_shape(directory: Path | None) -> ModelShape | None:
    """The shape in a model directory's config.json, or in that of a checkpoint's model; None where there is none to read."""
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
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


@dataclass(frozen=True)
class Layout:
    """A division of the processes."""

    pp: int = 1
    tp: int = 1
    sp: int = 1
    sp_mode: str = "split_gather"
    zero: int = 1

    @property
    def shares_tp_ranks(self) -> bool:
        """Whether sequences are divided over the tensor parallel ranks rather than over ranks of their own."""
        return self.sp_mode != "all_to_all"

    @property
    def head_parallel_size(self) -> int:
        """Processes among which a layer's attention heads are divided."""
        return self.tp * (1 if self.shares_tp_ranks else self.sp)

    @property
    def model_parallel_size(self) -> int:
        """Processes that hold one copy of the model together."""
        return self.pp * self.head_parallel_size

    def words(self) -> str:
        """The layout as options."""
        shown = [f"--pp {self.pp}", f"--tp {self.tp}", f"--sp {self.sp}", f"--zero {self.zero}"]
        return " ".join(shown)


def layout_of(options: Any) -> Layout:
    """The layout that parsed arguments ask for."""
    return Layout(options.pp, options.tp, options.sp, options.sp_mode, options.zero)


def problem_of(
    layout: Layout, world_size: int, shape: ModelShape | None, half_precision: bool, freezes: bool
) -> str | None:
    """Why a layout is impossible, in one sentence that ends with the nearest possible one; None when it is possible.

    Args:
        layout: what was asked for.
        world_size: number of processes.
        shape: the model's, where it is known.
        half_precision: whether the run computes in fp16 or bf16.
        freezes: whether the run trains the embeddings alone.
    """
    reason = _reason_against(layout, world_size, shape, half_precision, freezes)
    if reason is None:
        return None
    possible = [
        other
        for other in _others(layout, world_size)
        if _reason_against(other, world_size, shape, half_precision, freezes) is None
    ]
    nearest = min(possible, key=lambda other: _distance(layout, other))
    return f"{reason}; the nearest possible setting is {nearest.words()}"


def _reason_against(
    layout: Layout, world_size: int, shape: ModelShape | None, half_precision: bool, freezes: bool
) -> str | None:
    pp, tp, sp, zero = layout.pp, layout.tp, layout.sp, layout.zero
    if sp > 1 and layout.shares_tp_ranks and sp != tp:
        return (
            f"--sp_mode {layout.sp_mode} divides sequences over the tensor parallel ranks, so --sp {sp} must equal "
            "--tp, "
            f"which is {tp} (--sp_mode all_to_all has ranks of its own)"
        )
    if world_size % layout.model_parallel_size:
        return (
            f"--pp {pp}, --tp {tp} and --sp {sp} make one copy of the model out of {layout.model_parallel_size} "
            "processes, which "
            f"does not divide the {world_size} that there are"
        )
    if pp > 1 and zero == 2:
        return "--zero 2 with --pp would exchange all gradients once a pipeline micro-batch, and ColossalAI refuses it"
    if zero and not half_precision:
        return (
            f"--zero {zero} keeps fp32 master weights beside fp16 or bf16 ones, so it is not for --mixed_precision fp32"
        )
    if freezes and pp > 2:
        return f"--freeze_non_embeds_params leaves the middle stages of --pp {pp} nothing to train"
    return None if shape is None else _reason_in_shape(layout, shape)


def _reason_in_shape(layout: Layout, shape: ModelShape) -> str | None:
    if layout.pp > shape.layers:
        return f"--pp {layout.pp} is more than the model's {shape.layers} layers"
    of_heads = layout.head_parallel_size
    name = f"--tp {layout.tp}" if of_heads == layout.tp else f"--tp {layout.tp} x --sp {layout.sp}"
    for what, amount, divisor in (
        ("attention heads", shape.heads, of_heads),
        ("key-value heads", shape.key_value_heads, of_heads),
        ("intermediate units", shape.intermediate, layout.tp),
    ):
        if amount % divisor:
            return f"{name} does not divide the model's {amount} {what}"
    return None


def _others(layout: Layout, world_size: int) -> Iterator[Layout]:
    sizes = [n for n in range(1, world_size + 1) if world_size % n == 0]
    zeros = dict.fromkeys((layout.zero, 1, 0))
    for pp, tp, sp, zero in itertools.product(sizes, sizes, sizes, zeros):
        yield replace(layout, pp=pp, tp=tp, sp=sp, zero=zero)


def _distance(wanted: Layout, other: Layout) -> float:
    sizes = zip((wanted.pp, wanted.tp, wanted.sp), (other.pp, other.tp, other.sp), strict=True)
    return sum(abs(math.log2(a / b)) for a, b in sizes) + 0.4 * abs(wanted.zero - other.zero)


def describe_parallel_layout(plugin: Any, micro_batches: int) -> list[str]:
    """Sentences for the start-up report: pipeline bubble, sequence shards.

    Args:
        plugin: `pp`, `sp`, `sp_mode` and `microbatch_size` as in training.arguments.PluginArguments.
        micro_batches: of a step and rank.
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
