"""Started by torchrun: prints whether Gemini sums gradients as they were, or what came into their
memory afterwards.

A chunk is reduced on a second stream, which the last rank keeps busy for a second before;
everything that the main stream can get of the chunk's memory is filled meanwhile, as the next
layer's backward pass would do. Rank 0 prints as JSON whether its sum was right: with the suite's
patches, and without.
"""

import json
import os

import torch
import torch.distributed as dist
from colossalai.zero.gemini.chunk.chunk import Chunk

from colossal_llama.engine import launch

ELEMENTS = 2**26
BUSY_CYCLES = 2 * 10**9  # about a second


def main() -> None:
    """With the patches, then without."""
    # ColossalAI sets 1: then what is queued first begins first on all streams, which hides most of
    # the fault.
    os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "8"
    originals = Chunk.reduce, Chunk._Chunk__scatter
    launch.launch(seed=0)
    found = {"ours": is_right()}
    Chunk.reduce, Chunk._Chunk__scatter = originals
    found["engine's"] = is_right()
    if dist.get_rank() == 0:
        print(json.dumps(found), flush=True)
    launch.leave()


def is_right() -> bool:
    """Whether a chunk of ones becomes a chunk of as many as there are ranks."""
    ranks = dist.get_world_size()
    chunk = Chunk(ELEMENTS, dist.group.WORLD, torch.float32)
    chunk.append_tensor(torch.nn.Parameter(torch.ones(ELEMENTS, device="cuda")))
    chunk.close_chunk()
    chunk.access_chunk()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    second = torch.cuda.Stream()
    with torch.cuda.stream(second):  # what would take time below: the connections, and memory for the result
        shard = torch.empty(ELEMENTS // ranks, device="cuda")
        dist.reduce_scatter_tensor(shard, torch.ones(ELEMENTS, device="cuda"))
        del shard
    torch.cuda.synchronize()
    with torch.cuda.stream(second):
        if dist.get_rank() == ranks - 1:
            torch.cuda._sleep(BUSY_CYCLES)
        chunk.reduce(async_op=True)
        chunk.wait_async_reduce()
    others = [torch.full((ELEMENTS,), 7.0, device="cuda") for _ in range(3)]
    torch.cuda.synchronize()
    del others
    return bool((chunk.cuda_shard == ranks).all())


if __name__ == "__main__":
    main()
