"""Patches for all hosts and plugins of functions of ColossalAI 0.5.0 that compute wrong results.

They touch nothing of transformers, and are applied with any version of it. Those of a parallelised
model's forward functions are in engine/patches/llama_parallel.py.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist


def apply_patches() -> None:
    """Replaces ColossalAI's functions by those of this file; idempotent."""
    from colossalai.shardformer.layer import _operation

    _operation._ring_as_gather = ring_as_gather
    _skip_ddp_without_partners()
    _unscale_by_the_scale_of_the_loss()


@functools.cache
def _unscale_by_the_scale_of_the_loss() -> None:
    """Patch: in fp16 the gradients of every 1,000th step are halved, in every plugin but `ddp`.

    Cause: when a step's gradients are finite the loss scaler may double its scale; ColossalAI then
    divides these gradients, which were computed from a loss with the former scale, by the new one.
    Remedy: the scale of the gradients is remembered, and they are divided by it.
    """
    from colossalai.amp.naive_amp.mixed_precision_mixin import FP16MixedPrecisionMixin

    should_skip_step, get_grad_div_scale = (
        FP16MixedPrecisionMixin.should_skip_step,
        FP16MixedPrecisionMixin.get_grad_div_scale,
    )

    def should_skip_step_and_remember(self: FP16MixedPrecisionMixin) -> bool:
        self.scale_of_gradients = self.loss_scale
        return should_skip_step(self)

    def scale_of_gradients(self: FP16MixedPrecisionMixin) -> float:
        get_grad_div_scale(self)  # marks them as unscaled
        return self.scale_of_gradients

    FP16MixedPrecisionMixin.should_skip_step = should_skip_step_and_remember
    FP16MixedPrecisionMixin.get_grad_div_scale = scale_of_gradients


@functools.cache  # wraps ColossalAI's own function: once
def _skip_ddp_without_partners() -> None:
    """Patch: with `3d` and `--zero 2` accumulated gradients count several times.

    It occurs with one data-parallel rank. Cause: ColossalAI wraps a model without data-parallel
    partners in DistributedDataParallel too. That copies every gradient, and at the end of a
    backward pass writes it back to where ZeRO had taken it from when a bucket was full (12 Mi
    elements). There the next micro-batch adds to it, and ZeRO takes the sum. (2 micro-batches of a
    tiny model in small buckets: gradient norm 5.57 instead of 3.92.) Remedy: the wrapper is left
    out, and with it copies that have no use.
    """
    from colossalai.booster.plugin.hybrid_parallel_plugin import HybridParallelModule

    original = HybridParallelModule.__init__

    def __init__(self: HybridParallelModule, *arguments: Any, use_ddp: bool, dp_group: Any, **settings: Any) -> None:
        use_ddp = use_ddp and dist.get_world_size(dp_group) > 1
        original(self, *arguments, use_ddp=use_ddp, dp_group=dp_group, **settings)

    HybridParallelModule.__init__ = __init__


def ring_as_gather(
    func: Callable[..., torch.Tensor],
    input_to_gather: dict[str, torch.Tensor],
    input_local: dict[str, torch.Tensor],
    process_group: Any = None,
    gather_dim: int = 1,
    keep_item: bool = False,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Patch: `--sp_mode ring` computes wrong weight gradients.

    Cause: the output is right, but the gathered input, with which the backward pass multiplies,
    ends with this rank's own shard again instead of the one received last. With more than two ranks
    all received shards are references to two buffers that later rounds overwrite. Remedy: this
    function, which keeps every received shard.

    Args:
        func: computes a shard of the output from a shard of the input and `input_local`.
        input_to_gather: this rank's shard of each input.
        input_local: arguments of `func` that all shards have in common.
        process_group: the ring.
        gather_dim: along which shards are concatenated.
        keep_item: unused; part of ColossalAI's signature.

    Returns:
        The output of all ranks' shards in the order of the ranks, and the inputs likewise.
    """
    size, rank = dist.get_world_size(process_group), dist.get_rank(process_group)
    ranks = dist.get_process_group_ranks(process_group)
    sends_to, receives_from = ranks[rank - 1], ranks[(rank + 1) % size]
    shards, outputs = [input_to_gather], []
    for _ in range(size - 1):
        sent = {name: tensor.contiguous() for name, tensor in shards[-1].items()}
        received = {name: torch.empty_like(tensor) for name, tensor in sent.items()}
        operations = []
        for name in sent:
            operations.append(dist.P2POp(dist.irecv, received[name], receives_from, group=process_group))
            operations.append(dist.P2POp(dist.isend, sent[name], sends_to, group=process_group))
        requests = dist.batch_isend_irecv(operations)
        outputs.append(func(**shards[-1], **input_local))  # while the next shard is being received
        for request in requests:
            request.wait()
        shards.append(received)
    outputs.append(func(**shards[-1], **input_local))
    rank_zero = size - rank  # shards are those of rank, rank + 1, … size - 1, 0, …
    joined = {
        name: torch.cat([shard[name] for shard in shards[rank_zero:] + shards[:rank_zero]], dim=gather_dim)
        for name in input_to_gather
    }
    return torch.cat(outputs[rank_zero:] + outputs[:rank_zero], dim=gather_dim), joined
