"""On two GPUs: Gemini's gradients stay in their memory until they have been summed. (One rank's sum
is a copy that is done in time.)
"""

import json

import pytest
import torch

from tests.support.training_runs import torchrun


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_memory_is_kept_until_it_is_read(project_root):
    done = torchrun("tests.support.gemini_streams", [], 2, project_root, on_gpu=True, timeout_s=120)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert found["ours"]
    assert not found["engine's"], "the engine keeps it by itself: keep_memory_until_it_is_read can go"
