"""On the GPU: Gemini's gradients stay in their memory until they have been summed, on one GPU and on two."""

import json

import pytest
import torch
from runs import torchrun


@pytest.mark.gpu
@pytest.mark.parametrize("ranks", [1, 2])
def test_memory_is_kept_until_it_is_read(project_root, ranks):
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} GPUs")
    done = torchrun("tests/gpu/gemini_streams.py", [], ranks, project_root, on_gpu=True, timeout_s=120)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert found["ours"]
    if ranks > 1:  # one rank's sum is a copy that was done in time when this ran on an H200
        assert not found["engine's"], "the engine keeps it by itself: keep_memory_until_it_is_read can go"
