"""How PyTorch's allocator on a GPU gets its memory: in segments that grow, where a run asks for them and the user says nothing else.

With segments of fixed sizes gaps remain between what is kept and what was freed: 6.0 GiB beside
131.6 allocated on an H200, a model of 7 B whose layers keep as little as they can
(model.activation_checkpointing), and the run ended for want of 0.5 GiB. Imports no torch.
"""

import os
import re

_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""PyTorch's names,
https://pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-alloc-conf; it
looks at the second
only where the first is not there at all, and takes the empty text for a setting (2.13.0)."""


def let_segments_grow() -> None:
    """Before the first allocation on a GPU; what the user has set stays as it is."""
    if not _setting():
        os.environ[_VARIABLES[0]] = "expandable_segments:True"


def segments_grow() -> bool:
    """Whether they do."""
    setting = _setting()
    words = re.findall(r"expandable_segments:(\w+)", setting.replace(" ", ""))
    return words[-1:] == ["True"] and "cudaMallocAsync" not in setting


def _setting() -> str:
    return next((os.environ[name] for name in _VARIABLES if name in os.environ), "")
