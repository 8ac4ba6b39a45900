"""Which elements of which parameter this process optimizes, for every plugin, without asking any other process.

a parameter             cut by tensor parallelism      a range of the (flat) cut, by ZeRO or Gemini
[ 0 1 2 3 ]             [ 0 1 | 2 3 ]                  rank A: 0 1 4 | rank B: 5 8 9
[ 4 5 6 7 ]      ►      [ 4 5 | 6 7 ]      ►
[ 8 9 . . ]             [ 8 9 | . . ]
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from colossalai.amp.naive_amp.mixed_precision_optimizer import MixedPrecisionOptimizer
from colossalai.booster.plugin import HybridParallelPlugin
from colossalai.tensor.d_tensor import is_distributed_tensor
from colossalai.zero import GeminiOptimizer, LowLevelZeroOptimizer
from colossalai.zero.low_level._utils import get_nd_rank

from colossal_llama.engine.plugins import Engine

_EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Cut:
    """The slice [begin, end) of one dimension."""

    dimension: int
    begin: int
    end: int


@dataclass(frozen=True)
class Place:
    """Some elements of a parameter: [begin, end) of its flattened cut, or of itself when it is not cut."""

    shape: tuple[int, ...]
    """Of the whole parameter, without padding."""
    cut: Cut | None
    begin: int
    end: int

    @property
    def cut_shape(self) -> tuple[int, ...]:
        """Shape of the cut."""
        if self.cut is None:
            return self.shape
        lengths = list(self.shape)
        lengths[self.cut.dimension] = self.cut.end - self.cut.begin
        return tuple(lengths)


@dataclass(frozen=True)
class Slot:
    """One parameter of the inner optimizer."""

    name: str
    """As in the unwrapped model."""
    place: Place
    key: torch.Tensor
    """Under which the inner optimizer keeps its states. Padding, if any, stands behind the
    elements of the place."""
    shape: torch.Size
    """Of the states."""
    states: dict[str, Any]
    master: torch.Tensor
    """The fp32 weights that are updated, with the elements of the place in front."""
    keeps_master: bool
    """Whether these are copies beside the model's own, half-precision weights."""
    is_mine: bool
    """Whether this process, of all that have the same elements, writes them."""


def optimizer_slots(engine: Engine, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[Slot]:
    """The parameters of this process's inner optimizer, in its order."""
    network = model.unwrap(unwrap_peft=False)
    names = {id(parameter): saved_name(network, name) for name, parameter in network.named_parameters()}
    if isinstance(optimizer, GeminiOptimizer):
        return list(_gemini_slots(optimizer, names))
    return list(_slots(engine, optimizer, names))


def saved_name(network: torch.nn.Module, name: str) -> str | None:
    """Under which name a parameter is saved; None for an output layer that is the embedding, which the last pipeline stage has too."""
    is_tied = name == "lm_head.weight" and getattr(network.config, "tie_word_embeddings", False)
    return None if is_tied else name


def replicas(engine: Engine, over_data: bool, over_tensor: bool) -> tuple[int, int]:
    """How many processes hold a copy of the same, and the number of this one among them.

    Args:
        engine: whose plugin divides the processes.
        over_data: whether data-parallel ranks have copies of it.
        over_tensor: whether tensor-parallel ranks do.
    """
    if not isinstance(engine.plugin, HybridParallelPlugin):
        return (dist.get_world_size(), dist.get_rank()) if over_data else (1, 0)
    count, index = 1, 0
    for group, is_copied in ((engine.plugin.mixed_dp_group, over_data), (engine.plugin.tp_group, over_tensor)):
        if is_copied:
            count, index = count * dist.get_world_size(group), index * dist.get_world_size(group) + dist.get_rank(group)
    return count, index


def _slots(engine: Engine, optimizer: torch.optim.Optimizer, names: Mapping[int, str | None]) -> Iterator[Slot]:
    is_zero = isinstance(optimizer, LowLevelZeroOptimizer)
    working_of = _working_parameters(optimizer)
    whole_shapes = getattr(optimizer, "param_info", {}).get("param2shape", {})
    keys = [key for group in optimizer.optim.param_groups for key in group["params"]]
    for number, key in enumerate(keys):
        working = working_of.get(id(key), key)
        shape = tuple(whole_shapes.get(id(working), working.shape))
        cut = _tensor_parallel_cut(engine, working, shape)
        begin, end = 0, math.prod(Place(shape, cut, 0, 0).cut_shape)
        if is_zero:
            first = get_nd_rank(optimizer.param_to_pg[working]) * key.numel()
            begin, end = min(first, end), min(first + key.numel(), end)
        count, index = replicas(engine, over_data=not is_zero, over_tensor=cut is None)
        yield Slot(
            name=names[id(working)] or _EMBEDDING,
            place=Place(shape, cut, begin, end),
            key=key,
            shape=key.shape,
            states=optimizer.optim.state[key],
            master=key.data.view(-1),
            keeps_master=is_zero or isinstance(optimizer, MixedPrecisionOptimizer),
            is_mine=number % count == index and names[id(working)] is not None,
        )


def _working_parameters(optimizer: torch.optim.Optimizer) -> Mapping[int, torch.Tensor]:
    """From the id of the inner optimizer's parameter to the model's, where these are not the same."""
    if isinstance(optimizer, LowLevelZeroOptimizer | MixedPrecisionOptimizer):
        return optimizer.get_master_to_working_map()
    return {}


def _tensor_parallel_cut(engine: Engine, local: torch.Tensor, shape: tuple[int, ...]) -> Cut | None:
    """The part of a parameter that this rank holds. Only the vocabulary, dimension 0, is padded, behind the last rank's rows."""
    if not is_distributed_tensor(local):
        return None
    dimension = next((d for d, length in enumerate(shape) if length > local.shape[d]), 0)
    first = dist.get_rank(engine.plugin.tp_group) * local.shape[dimension]
    begin, end = (min(edge, shape[dimension]) for edge in (first, first + local.shape[dimension]))
    return Cut(dimension, begin, end)


def _gemini_slots(optimizer: GeminiOptimizer, names: Mapping[int, str]) -> Iterator[Slot]:
    """Gemini lays parameters end to end into chunks and divides the chunks, at any element, among the ranks."""
    for number, (parameter_id, key) in enumerate(optimizer.id_to_fake_params.items()):
        chunk = optimizer.param_to_chunk16[key]
        begin_in_chunk, end_in_chunk = optimizer.param_to_range[key]
        # Chunk sizes that were searched for are NumPy's integers, which a file's JSON header cannot
        # hold.
        begin, length = (int(number) for number in optimizer.get_offsets(parameter_id)[1:])
        weights = chunk.paired_chunk if optimizer.module.master_weights else chunk
        count, index = (chunk.pg_size, chunk.pg_rank) if chunk.keep_gathered else (1, 0)
        shape = tuple(optimizer.params_info["id2shape"][parameter_id])
        yield Slot(
            name=names[id(optimizer.id_to_real_params[parameter_id])],
            place=Place(shape, None, begin, begin + length),
            key=key,
            shape=torch.Size([length]),
            states=optimizer.optim.state[key],
            master=weights.payload[begin_in_chunk:end_in_chunk],
            keeps_master=optimizer.module.master_weights,
            is_mine=number % count == index,
        )
