"""Bytes of all tensors that are alive, counted by a dispatch mode; needs no GPU."""

import weakref

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that are alive, and their peak in each phase since it was begun.

    Every operation passes through it; it notes each new storage and its end. A phase's peak is what
    a device's allocator would have had to hold, without its rounding and gaps.
    """

    def __init__(self):
        super().__init__()
        self.live, self.peaks, self._sizes, self._phase = 0, {}, {}, None
        self._communicates = False

    def enter(self, phase: str) -> None:
        """Begins a phase; its former peak is forgotten."""
        self._phase = phase
        self.peaks[phase] = self.live

    def note(self, tensor: torch.Tensor) -> None:
        """Counts a tensor's storage until it is freed; once, however many tensors share it."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, 0 if self._communicates else storage.nbytes()
        if key in self._sizes:
            return
        self._sizes[key] = size
        self.live += size
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.namespace == "c10d" and not self._communicates:
            return self._communicate(operation, args, kwargs or {})
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self.note(tensor)
        self.peaks[self._phase] = max(self.peaks[self._phase], self.live)
        return result

    def _communicate(self, operation: torch._ops.OpOverload, args: tuple, kwargs: dict) -> object:
        """Runs a collective to its end on copies, and counts neither them nor gloo's own tensors.

        Gloo's threads drop their references to a collective's tensors some time after `wait` has
        returned. On a busy host that may be a phase later: a count of the tensors themselves would
        depend on the host's load.
        """
        self._communicates = True
        with self:
            copies = tree_map_only(torch.Tensor, torch.clone, args)
            result = operation(*copies, **kwargs)
            dist.Work.unbox(result[-1] if isinstance(result, tuple) else result).wait()
            for tensor, copy in zip(tree_iter(args), tree_iter(copies), strict=True):
                if isinstance(tensor, torch.Tensor):
                    tensor.copy_(copy)
        self._communicates = False
        return result
