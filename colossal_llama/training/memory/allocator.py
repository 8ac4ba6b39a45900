"""Setting of PyTorch's CUDA allocator: expandable segments, where a run asks for them.

With segments of fixed sizes gaps remain between kept and freed blocks: 6.0 GiB beside 131.6
allocated on an H200, a 7 B model with selective recomputation, and the run ran out of memory by
0.5 GiB. Imports no torch.
"""

import os
import re

_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""PyTorch's names (https://pytorch.org/docs/stable/notes/cuda.html, "Optimizing memory usage").

The second counts only where the first is absent; the empty text is a setting (2.13.0)."""


def enable_expandable_segments() -> None:
    """Sets expandable segments, before the first allocation on a GPU; a user's setting stays."""
    if not _setting():
        os.environ[_VARIABLES[0]] = "expandable_segments:True"


def expandable_segments_enabled() -> bool:
    """True when the allocator uses expandable segments."""
    setting = _setting()
    words = re.findall(r"expandable_segments:(\w+)", setting.replace(" ", ""))
    return words[-1:] == ["True"] and "cudaMallocAsync" not in setting


def _setting() -> str:
    return next((os.environ[name] for name in _VARIABLES if name in os.environ), "")
