"""Host memory that holds a copy of the training state while it is written in the background."""

from pathlib import Path

import psutil
import torch

_BLOCK_BYTES = 256 * 2**20
_ALIGNMENT_BYTES = 8  # the widest item; every piece then starts and ends between two items


class HostMemory:
    """Blocks of (on a GPU host page-locked) memory, filled one after the other, kept and filled again.

    Page-locked memory is what a GPU copies to at full speed and without being waited for, but the
    system takes long to give it. PyTorch rounds each such allocation up to a power of two, hence
    equal blocks, over whose borders tensors are laid:

        | a a a a b b | b b b b b b | b c c . . . |        three blocks, three tensors
    """

    def __init__(self, pinned: bool, block_bytes: int = _BLOCK_BYTES):
        self._pinned, self._block_bytes = pinned, block_bytes
        self._blocks: list[torch.Tensor] = []
        self._filled_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Memory taken from the system, in use or not."""
        return len(self._blocks) * self._block_bytes

    def clear(self) -> None:
        """Declares everything free; pieces given out before will be written over."""
        self._filled_bytes = 0

    def keep(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Copies a tensor here; from a GPU the copy may still be under way (`torch.cuda.synchronize` waits for it).

        Returns:
            Flat pieces of the tensor's dtype, in order.
        """
        flat = tensor.detach().reshape(-1)
        if flat.stride(0) != 1:
            flat = flat.clone(memory_format=torch.contiguous_format)
        source = flat.view(torch.uint8)
        pieces, done = [], 0
        while done < source.numel():
            block, offset = self._free_place()
            taken = min(self._block_bytes - offset, source.numel() - done)
            place = block[offset : offset + taken]
            place.copy_(source[done : done + taken], non_blocking=True)
            pieces.append(place.view(tensor.dtype))
            done += taken
            self._filled_bytes += taken + -taken % _ALIGNMENT_BYTES
        return pieces

    def _free_place(self) -> tuple[torch.Tensor, int]:
        index, offset = divmod(self._filled_bytes, self._block_bytes)
        if index == len(self._blocks):
            self._blocks.append(torch.empty(self._block_bytes, dtype=torch.uint8, pin_memory=self._pinned))
        return self._blocks[index], offset


def available_bytes() -> int:
    """Memory that this host can still give: what the system calls available, or less where a container has a limit."""
    available = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return available
    if limit.isdigit():
        # Cached files count as used until somebody else wants the memory.
        available = min(available, int(limit) - used + int(statistics.get("inactive_file", 0)))
    return max(0, available)
