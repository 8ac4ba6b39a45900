"""Optimizer shards: the elements of each parameter that this process updates, for every plugin.

They are found without communication.

a parameter             its tensor-parallel shards     a range of each flat shard (ZeRO, Gemini)
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
from colossalai.booster.plugin.plugin_base import Plugin
from colossalai.tensor.d_tensor import is_distributed_tensor
from colossalai.zero import GeminiOptimizer, LowLevelZeroOptimizer
from colossalai.zero.low_level._utils import get_nd_rank

from colossal_llama.engine.process_groups import replicas
from colossal_llama.engine.state_formats import StateFormat

_EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class TensorShard:
    """The slice [begin, end) of one dimension, which a tensor-parallel rank holds."""

    dimension: int
    begin: int
    end: int

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """A view of this slice of a whole parameter."""
        return whole.narrow(self.dimension, self.begin, self.end - self.begin)


@dataclass(frozen=True)
class ShardRange:
    """Elements [begin, end) of a parameter's flattened tensor-parallel shard.

    Without tensor parallelism they are elements of the flattened parameter.
    """

    shape: tuple[int, ...]
    """Shape of the whole parameter, without padding."""
    shard: TensorShard | None
    """None: the parameter is not divided over tensor-parallel ranks."""
    begin: int
    end: int

    @property
    def shard_shape(self) -> tuple[int, ...]:
        """Shape of the tensor-parallel shard."""
        if self.shard is None:
            return self.shape
        lengths = list(self.shape)
        lengths[self.shard.dimension] = self.shard.end - self.shard.begin
        return tuple(lengths)

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """These elements of a whole parameter, flat."""
        shard = whole if self.shard is None else self.shard.of(whole)
        return shard.reshape(-1)[self.begin : self.end]


@dataclass(frozen=True)
class OptimizerShard:
    """One parameter of the inner optimizer."""

    name: str
    """As in the unwrapped model."""
    range: ShardRange
    key: torch.Tensor
    """Key of its states in the inner optimizer. Padding, if any, comes after the elements of the
    range."""
    shape: torch.Size
    """Shape of the states."""
    states: dict[str, Any]
    master: torch.Tensor
    """The fp32 weights that are updated, beginning with the elements of the range."""
    keeps_master: bool
    """True when these are separate from the model's own, half-precision weights."""
    is_written_here: bool
    """True when this process, of all that have the same elements, writes them."""
    parameter: torch.Tensor
    """The model's own, whose gradient autograd computes."""
    state_format: StateFormat = "fp32"
    """Of the states (engine.low_precision_update)."""


def optimizer_shards(plugin: Plugin, model: Any, optimizer: Any) -> list[OptimizerShard]:
    """The parameters of this process's inner optimizer, in its order."""
    network = model.unwrap(unwrap_peft=False)
    names = {id(parameter): saved_name(network, name) for name, parameter in network.named_parameters()}
    if isinstance(optimizer, GeminiOptimizer):
        return list(_gemini_shards(optimizer, names))
    return list(_shards(plugin, optimizer, names))


def saved_name(network: torch.nn.Module, name: str) -> str | None:
    """The name of a parameter in files; None for an output layer tied to the embedding.

    The last stage of a pipeline has such an output layer as a parameter of its own.
    """
    is_tied = name == "lm_head.weight" and getattr(network.config, "tie_word_embeddings", False)
    return None if is_tied else name


def _shards(plugin: Plugin, optimizer: Any, names: Mapping[int, str | None]) -> Iterator[OptimizerShard]:
    is_zero = isinstance(optimizer, LowLevelZeroOptimizer)
    working_of = _working_parameters(optimizer)
    whole_shapes = getattr(optimizer, "param_info", {}).get("param2shape", {})
    keys = [key for group in optimizer.optim.param_groups for key in group["params"]]
    for number, key in enumerate(keys):
        working = working_of.get(id(key), key)
        shape = tuple(whole_shapes.get(id(working), working.shape))
        shard = _tensor_parallel_shard(plugin, working, shape)
        begin, end = 0, math.prod(ShardRange(shape, shard, 0, 0).shard_shape)
        if is_zero:
            first = get_nd_rank(optimizer.param_to_pg[working]) * key.numel()
            begin, end = min(first, end), min(first + key.numel(), end)
        count, index = replicas(plugin, over_data=not is_zero, over_tensor=shard is None)
        yield OptimizerShard(
            name=names[id(working)] or _EMBEDDING,
            range=ShardRange(shape, shard, begin, end),
            parameter=working,
            key=key,
            shape=key.shape,
            states=optimizer.optim.state[key],
            master=key.data.view(-1),
            keeps_master=optimizer._master_weights if is_zero else isinstance(optimizer, MixedPrecisionOptimizer),
            is_written_here=number % count == index and names[id(working)] is not None,
            state_format=getattr(optimizer, "state_format", "fp32"),
        )


def _working_parameters(optimizer: torch.optim.Optimizer) -> Mapping[int, torch.Tensor]:
    """The model's parameters by the id of the inner optimizer's, where they differ."""
    if isinstance(optimizer, LowLevelZeroOptimizer | MixedPrecisionOptimizer):
        return optimizer.get_master_to_working_map()
    return {}


def _tensor_parallel_shard(plugin: Plugin, local: torch.Tensor, shape: tuple[int, ...]) -> TensorShard | None:
    """The shard of a parameter that this rank holds.

    Only the vocabulary, dimension 0, is padded, after the last rank's rows.
    """
    if not is_distributed_tensor(local):
        return None
    dimension = next((d for d, length in enumerate(shape) if length > local.shape[d]), 0)
    first = dist.get_rank(plugin.tp_group) * local.shape[dimension]
    begin, end = (min(edge, shape[dimension]) for edge in (first, first + local.shape[dimension]))
    return TensorShard(dimension, begin, end)


def _gemini_shards(optimizer: GeminiOptimizer, names: Mapping[int, Any]) -> Iterator[OptimizerShard]:
    """Shards of Gemini, which concatenates parameters to chunks and divides these over the ranks.

    A chunk may be divided at any element.
    """
    for number, (parameter_id, key) in enumerate(optimizer.id_to_fake_params.items()):
        chunk = optimizer.param_to_chunk16[key]
        begin_in_chunk, end_in_chunk = optimizer.param_to_range[key]
        # Chunk sizes that were searched for are NumPy's integers, which a file's JSON header cannot
        # hold.
        begin, length = (int(number) for number in optimizer.get_offsets(parameter_id)[1:])
        weights = chunk.paired_chunk if optimizer.module.master_weights else chunk
        count, index = (chunk.pg_size, chunk.pg_rank) if chunk.keep_gathered else (1, 0)
        shape = tuple(optimizer.params_info["id2shape"][parameter_id])
        yield OptimizerShard(
            name=names[id(optimizer.id_to_real_params[parameter_id])],
            range=ShardRange(shape, None, begin, begin + length),
            parameter=optimizer.id_to_real_params[parameter_id],
            key=key,
            shape=torch.Size([length]),
            states=optimizer.optim.state[key],
            master=weights.payload[begin_in_chunk:end_in_chunk],
            keeps_master=optimizer.module.master_weights,
            is_written_here=number % count == index,
        )
