"""Row segments: rows of one matrix that are trained with another learning rate, or not at all.

The input and the output embedding are each one parameter, whose rows of old and of new tokens lie
in the same shard of a process (engine.optimizer_shards):

    a shard's elements     | old rows        | new rows              | rows of padding |
    new rows alone         | -               | new_row_lr            | -               |
    new rows faster        | lr              | new_row_lr            | lr              |

Rows that are frozen have no gradient: a hook on the parameter removes it before anything is
reduced, so that the norm does not count it. They have no update either, weight decay included.
AdamW works on elements, so an update range by range is that of separate parameters.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from colossal_llama.engine.optimizer_shards import OptimizerShard, ShardRange
from colossal_llama.engine.parameter_groups import NewRows


@dataclass(frozen=True)
class Segment:
    """Elements of a flat shard that are updated with one learning rate."""

    elements: slice
    rate: str
    """Key of the learning rate in the parameter group."""


def hide_frozen_rows(optimizer: torch.optim.Optimizer) -> None:
    """Removes gradients of frozen rows of whole matrices, before a plugin wraps them.

    Gemini's own hook on a parameter takes its gradient away, so this one must come first.
    """
    for group in optimizer.param_groups:
        if (new_rows := NewRows.of(group)) is not None and new_rows.others_are_frozen:
            for parameter in group["params"]:
                parameter.register_hook(_gradient_of(new_rows.first, new_rows.end))


def divide_rows(optimizer: Any, shards: Sequence[OptimizerShard], hides_frozen: bool) -> None:
    """Registers the segments of this process's shards, and removes gradients of frozen rows.

    Args:
        optimizer: prepared by the plugin, with groups of engine.parameter_groups.
        shards: of the optimizer.
        hides_frozen: False after `hide_frozen_rows`.
    """
    inner = optimizer.optim
    by_key = {shard.key: shard for shard in shards}
    for group in inner.param_groups:
        new_rows = NewRows.of(group)
        if new_rows is None:
            continue
        for key in group["params"]:
            shard = by_key[key]
            inner.row_segments[key] = segments(shard.range, new_rows)
            if hides_frozen and new_rows.others_are_frozen:
                shard.parameter.register_hook(_gradient_of(*_local_rows(shard.range, new_rows)))


def updates_of(inner: Any, group: dict[str, Any], key: torch.Tensor) -> list[tuple[slice | None, float]]:
    """Ranges of a flat shard that are updated, with their learning rates; None is all of it.

    Args:
        inner: the optimizer that the plugin has wrapped.
        group: of the shard.
        key: of the shard's states.
    """
    divided = getattr(inner, "row_segments", {})
    if key not in divided:
        return [(None, group["lr"])]
    return [(segment.elements, group[segment.rate]) for segment in divided[key]]


def segments(elements: ShardRange, new_rows: NewRows) -> tuple[Segment, ...]:
    """Divides the elements of a shard into segments, without the frozen ones.

    What a plugin has appended to make its shards equal is in none.
    """
    width = math.prod(elements.shard_shape[1:])
    first, end = (row * width for row in _local_rows(elements, new_rows))
    borders = (0, first, end, math.prod(elements.shard_shape))
    rates = (None, "new_row_lr", None) if new_rows.others_are_frozen else ("lr", "new_row_lr", "lr")
    found = []
    for begin, stop, rate in zip(borders[:-1], borders[1:], rates, strict=True):
        begin, stop = (min(max(border, elements.begin), elements.end) - elements.begin for border in (begin, stop))
        if rate is not None and begin < stop:
            found.append(Segment(slice(begin, stop), rate))
    return tuple(found)


def _local_rows(elements: ShardRange, new_rows: NewRows) -> tuple[int, int]:
    """First and end of the new rows among the rows of the tensor-parallel shard."""
    offset, rows = 0, elements.shard_shape[0]
    if elements.shard is not None and elements.shard.dimension == 0:
        offset = elements.shard.begin
    first, end = (min(max(row - offset, 0), rows) for row in (new_rows.first, new_rows.end))
    return first, end


def _gradient_of(first: int, end: int) -> Callable[[torch.Tensor], None]:
    def remove(gradient: torch.Tensor) -> None:
        # In place: a copy would take the memory of a whole embedding. Nothing else has this tensor,
        # which a matrix product or a look-up has just made.
        gradient[:first].zero_()
        gradient[end:].zero_()

    return remove
