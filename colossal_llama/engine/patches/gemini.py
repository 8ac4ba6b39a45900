"""Patches of Gemini in ColossalAI 0.5.0, which runs on GPUs only; with any transformers."""

import functools
from typing import Any

import torch


@functools.cache  # some wrap ColossalAI's own function: once
def apply_gemini_patches() -> None:
    """Applies all of them; idempotent."""
    keep_norms_on_the_device()
    _count_accumulated_gradients_once()
    _discard_overflowed_gradients()
    keep_memory_until_it_is_read()


def keep_norms_on_the_device() -> None:
    """Patch: Gemini copies the norm of every chunk's gradient to the host during the backward pass.

    Each copy waits for the device, and the device then for the host: 27 times a step at 1.25 B,
    where Gemini took 555 ms and zero2 509 with the same kernels; without these copies 543 against
    516, on another H200. Remedy: the squared norm stays a tensor; `_calc_global_norm` of
    `GeminiOptimizer` adds them up and copies the sum once. They are in fp64: the chunks are added
    in the order of their addresses, which in fp32 gave a resumed run another last digit.
    """
    from colossalai.zero.gemini.chunk.chunk import Chunk

    def set_l2_norm(self: Chunk) -> None:
        assert self.l2_norm is None, "the norm of this chunk is already computed"
        gradient = (
            self.cuda_global_chunk[: self.utilized_size] if self.is_gathered else self.cuda_shard[: self.valid_end]
        )
        self.l2_norm = torch.linalg.vector_norm(gradient, dtype=torch.float32).double().square()

    Chunk.set_l2_norm = set_l2_norm


def _count_accumulated_gradients_once() -> None:
    """Patch: with several ranks, chunks that are kept gathered sum micro-batches wrongly.

    Models under 32 Mi parameters have such chunks. Cause: the gradient of earlier micro-batches,
    already the mean over the ranks, is multiplied by the number of ranks, summed over them and
    divided by their number. That is right where one rank alone holds it, and that many times too
    much where all do. Remedy: it is divided by the number of ranks before.
    """
    from colossalai.zero.gemini.chunk import Chunk, ChunkManager

    original = ChunkManager.rearrange_accumulated_grad_chunk

    def rearrange_accumulated_grad_chunk(self: ChunkManager, chunk: Chunk) -> Chunk:
        if chunk.grad_chunk.is_gathered:
            chunk.grad_chunk.cuda_global_chunk.div_(chunk.pg_size)
        return original(self, chunk)

    ChunkManager.rearrange_accumulated_grad_chunk = rearrange_accumulated_grad_chunk


def _discard_overflowed_gradients() -> None:
    """Patch: after a step that overflowed in fp16 every later step overflows too.

    Cause: its accumulated gradients are kept. Remedy: they are discarded after every step.
    """
    from colossalai.zero import GeminiOptimizer

    original = GeminiOptimizer.step

    def step(self: GeminiOptimizer, *arguments: Any, **settings: Any) -> Any:
        result = original(self, *arguments, **settings)
        self.module.chunk_manager.accumulating_grads = False
        return result

    GeminiOptimizer.step = step


def keep_memory_until_it_is_read() -> None:
    """Patch: gradients can be overwritten before they are summed, in memory freed too early.

    Cause: Gemini sums a chunk over the ranks on a stream of its own, and frees the chunk's memory
    as soon as that is queued. The allocator, which knows the main stream only, may give it to the
    next layer's backward pass while the chunk is still to be read. (NCCL informed the allocator up
    to PyTorch 2.7; since 2.8 it holds references to tensors, and this is a storage that is resized
    to 0 under a tensor.) Remedy: `record_stream` informs the allocator, and NCCL works on that
    stream.
    """
    from colossalai.zero.gemini.chunk.chunk import Chunk

    reduce, scatter = Chunk.reduce, Chunk._Chunk__scatter

    def record_stream(chunk: Chunk) -> None:
        whole = chunk.cuda_global_chunk
        if chunk.is_gathered and whole.is_cuda:
            whole.record_stream(torch.cuda.current_stream())

    def reduce_announced(self: Chunk, async_op: bool = False) -> None:
        record_stream(self)
        reduce(self, async_op=False)  # the host does not wait for it either

    def scatter_announced(self: Chunk) -> None:
        record_stream(self)
        scatter(self)

    Chunk.reduce, Chunk._Chunk__scatter = reduce_announced, scatter_announced


def clear_gemini_caches() -> None:
    """Frees the weights of finished runs, which Gemini's caches keep until the process ends.

    Two methods are wrapped in `functools.lru_cache` of unlimited size; their arguments, the manager
    or its chunks, stay referenced.
    """
    from colossalai.zero.gemini.gemini_mgr import GeminiManager
    from colossalai.zero.gemini.placement_policy import AutoPlacementPolicy

    GeminiManager._get_layout_info.cache_clear()
    AutoPlacementPolicy._sort_can_evict_chunks.cache_clear()
