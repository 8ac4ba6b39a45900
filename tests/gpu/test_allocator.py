"""On the GPU: the allocator's segments grow, unless the user's settings say otherwise."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.gpu
PROGRAM = """
import torch
from colossal_llama.utils import engine
engine.launch(seed=0)
torch.empty(2**26, device="cuda")
print("grows:", {segment["is_expandable"] for segment in torch.cuda.memory_snapshot() if segment["total_size"] >= 2**26})
engine.leave()
"""


@pytest.mark.parametrize(("setting", "grows"), [("", True), ("max_split_size_mb:512", False)])
def test_segments(project_root, setting, grows):
    environment = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": setting}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=project_root, env=environment, capture_output=True, text=True, check=False
    )
    assert f"grows: {{{grows}}}" in done.stdout, done.stdout + done.stderr
