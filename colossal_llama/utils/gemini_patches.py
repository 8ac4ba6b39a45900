"""Patches to ColossalAI's Gemini, which runs on GPUs only. The patches for all hosts are in utils.engine."""

import torch


def keep_norms_on_the_device() -> None:
    """Patch: Gemini reads the norm of every chunk's gradient back to the host within the backward pass.

    Each reading waits for the device, and the device then for the host: 27 times a step at 1.25 B, 555 ms against 509 without. The
    squared norm stays a tensor here; `GeminiOptimizer._calc_global_norm` adds them up and reads the sum once.
    """
    from colossalai.zero.gemini.chunk.chunk import Chunk

    def set_l2_norm(self: Chunk) -> None:
        assert self.l2_norm is None, "the norm of this chunk is there already"
        gradient = (
            self.cuda_global_chunk[: self.utilized_size] if self.is_gathered else self.cuda_shard[: self.valid_end]
        )
        self.l2_norm = torch.linalg.vector_norm(gradient, dtype=torch.float32).square()

    Chunk.set_l2_norm = set_l2_norm
