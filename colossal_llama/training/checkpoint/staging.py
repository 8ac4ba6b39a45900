"""Staging buffer: host memory for the copy of the training state that is being written."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from colossal_llama.model.weights.stored_tensors import TensorShape

HEADER_ENTRIES = "notes"
"""Key in a file's header (part of the format) under which `StagedFile.entries` are stored."""
_BLOCK_BYTES = 256 * 2**20
_ALIGNMENT_BYTES = 8  # the widest item; every slice then starts and ends between two items


@dataclass
class StagedFile:
    """A safetensors file to be written, whose tensors are in the staging buffer."""

    name: str
    """Relative to the checkpoint's directory."""
    shapes: dict[str, TensorShape] = field(default_factory=dict)
    slices: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    entries: dict[str, Any] = field(default_factory=dict)
    """JSON values about the tensors, for the header."""
    bytes: int = 0

    def add(self, name: str, shape: TensorShape, slices: list[torch.Tensor], entries: Mapping[str, Any]) -> None:
        """Adds a tensor, given as consecutive flat slices."""
        self.shapes[name], self.slices[name] = shape, slices
        self.entries |= entries
        self.bytes += shape.bytes

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of the header."""
        return {"format": "pt"} | ({HEADER_ENTRIES: json.dumps(self.entries)} if self.entries else {})


class StagingBuffer:
    """Blocks of host memory, filled one after the other and reused for every checkpoint.

    On a GPU host they are page-locked. A GPU copies to page-locked memory at full speed, and the
    host need not wait for it; but the system takes long to allocate it. PyTorch rounds each such
    allocation up to a power of two, hence equal blocks, across whose borders tensors are laid:

        | a a a a b b | b b b b b b | b c c . . . |        three blocks, three tensors
    """

    def __init__(self, pinned: bool, block_bytes: int = _BLOCK_BYTES):
        self._pinned, self._block_bytes = pinned, block_bytes
        self._blocks: list[torch.Tensor] = []
        self._filled_bytes = 0

    @property
    def allocated_bytes(self) -> int:
        """Memory allocated from the system, in use or not."""
        return len(self._blocks) * self._block_bytes

    def reset(self) -> None:
        """Frees everything for reuse; slices returned before will be overwritten."""
        self._filled_bytes = 0

    def stage(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Copies a tensor; from a GPU asynchronously (`torch.cuda.synchronize` waits for the copy).

        Returns:
            Flat slices of the tensor's dtype, in order.
        """
        flat = tensor.detach().reshape(-1)
        if flat.stride(0) != 1:
            flat = flat.clone(memory_format=torch.contiguous_format)
        source = flat.view(torch.uint8)
        slices, done = [], 0
        while done < source.numel():
            block, offset = self._next_free()
            taken = min(self._block_bytes - offset, source.numel() - done)
            target = block[offset : offset + taken]
            target.copy_(source[done : done + taken], non_blocking=True)
            slices.append(target.view(tensor.dtype))
            done += taken
            self._filled_bytes += taken + -taken % _ALIGNMENT_BYTES
        return slices

    def _next_free(self) -> tuple[torch.Tensor, int]:
        """The block with the next free byte, and that byte's offset in it."""
        index, offset = divmod(self._filled_bytes, self._block_bytes)
        if index == len(self._blocks):
            self._blocks.append(torch.empty(self._block_bytes, dtype=torch.uint8, pin_memory=self._pinned))
        return self._blocks[index], offset


def available_bytes() -> int:
    """Available host memory: the system's figure, or less where cgroup v2 sets a limit."""
    available = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return available
    if limit.isdigit():
        # Cached files count as used, but are evicted when memory is needed.
        available = min(available, int(limit) - used + int(statistics.get("inactive_file", 0)))
    return max(0, available)
