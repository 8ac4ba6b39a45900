"""Patches to functions of ColossalAI 0.5.0 that compute something wrong: symptom, cause and remedy of each.

Each has a test (tests/engine/test_patches.py) that fails when the engine no longer needs it.
Patches of what the model computes when it is divided over processes are in
colossal_llama/engine/patches/llama_parallel.py.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist


def apply_patches() -> None:
    """Puts the functions of this file in the place of the engine's; idempotent."""
    from colossalai.shardformer.layer import _operation

    _operation._ring_as_gather = ring_as_gather
    _leave_out_useless_ddp()
    _unscale_by_the_scale_of_the_loss()


@functools.cache
def _unscale_by_the_scale_of_the_loss() -> None:
    """Patch: in fp16 the gradients of every 1,000th step counted half, in every plugin but `ddp`.

    When a step's gradients have proved good the loss scaler may double its scale; the engine then
    divides these gradients, which come of a loss that was multiplied by the former scale, by the
    new one.
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
        get_grad_div_scale(self)  # notes that they are unscaled now
        return self.scale_of_gradients

    FP16MixedPrecisionMixin.should_skip_step = should_skip_step_and_remember
    FP16MixedPrecisionMixin.get_grad_div_scale = scale_of_gradients


@functools.cache  # it wraps the engine's own function: once
def _leave_out_useless_ddp() -> None:
    """Patch: with plugin 3d, `--zero 2`, one data-parallel rank and accumulation, gradients counted several times.

    The engine wraps a model without data-parallel partners in DistributedDataParallel too. That
    copies every gradient, and at the end of a backward pass writes it to where ZeRO had taken it
    from when a bucket was full (12 Mi elements). There the next micro-batch adds to it, and ZeRO
    takes the sum. (2 micro-batches of a tiny model in small buckets: gradient norm 5.57 in place of
    3.92.) The copies, for which there is no use, are left out with it.
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
    """Patch: `--sp_mode ring` learned nothing right: its weight gradients came from the wrong inputs.

    The original gives the right output, but of the gathered input, which the backward pass
    multiplies with, the last piece is this rank's own again instead of the one received last; with
    more than two ranks all received pieces are references to two buffers that later rounds
    overwrite.

    Args:
        func: computes a piece of the output from a piece of the input and `input_local`.
        input_to_gather: this rank's piece of each input.
        input_local: arguments of `func` that every piece shares.
        process_group: the ring.
        gather_dim: along which pieces are joined.
        keep_item: unused; part of the engine's signature.

    Returns:
        The output of all ranks' pieces in the order of the ranks, and the inputs likewise.
    """
    size, rank = dist.get_world_size(process_group), dist.get_rank(process_group)
    ranks = dist.get_process_group_ranks(process_group)
    sends_to, receives_from = ranks[rank - 1], ranks[(rank + 1) % size]
    pieces, outputs = [input_to_gather], []
    for _ in range(size - 1):
        sent = {name: tensor.contiguous() for name, tensor in pieces[-1].items()}
        received = {name: torch.empty_like(tensor) for name, tensor in sent.items()}
        operations = []
        for name in sent:
            operations.append(dist.P2POp(dist.irecv, received[name], receives_from, group=process_group))
            operations.append(dist.P2POp(dist.isend, sent[name], sends_to, group=process_group))
        requests = dist.batch_isend_irecv(operations)
        outputs.append(func(**pieces[-1], **input_local))  # while the next piece is on its way
        for request in requests:
            request.wait()
        pieces.append(received)
    outputs.append(func(**pieces[-1], **input_local))
    own_first = size - rank  # pieces are those of rank, rank + 1, … size - 1, 0, …
    joined = {
        name: torch.cat([piece[name] for piece in pieces[own_first:] + pieces[:own_first]], dim=gather_dim)
        for name in input_to_gather
    }
    return torch.cat(outputs[own_first:] + outputs[:own_first], dim=gather_dim), joined
