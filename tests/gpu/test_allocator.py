"""On the GPU: the allocator's segments grow where a run asks for it before it begins."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.gpu
PROGRAM = """
import torch
from colossal_llama.engine import launch
from colossal_llama.training.memory.allocator import enable_expandable_segments
enable_expandable_segments()
launch.launch(seed=0)
torch.empty(2**26, device="cuda")
segments = [segment for segment in torch.cuda.memory_snapshot() if segment["total_size"] >= 2**26]
print("grows:", {segment["is_expandable"] for segment in segments})
launch.leave()
"""


def test_segments_grow(project_root):
    environment = {**os.environ, "PYTORCH_ALLOC_CONF": "", "PYTORCH_CUDA_ALLOC_CONF": ""}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=project_root, env=environment, capture_output=True, text=True, check=False
    )
    assert "grows: {True}" in done.stdout, done.stdout + done.stderr
