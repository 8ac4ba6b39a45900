"""Triton kernels, interpreted on a host without GPU, compute what plain PyTorch does."""

import os
import subprocess
import sys


def test_kernels_equal_plain_pytorch(project_root):
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.kernels_in_interpreter"],
        cwd=project_root,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines() == [
        "norms: equal",
        "model: equal",
        "selective_recomputation: equal",
        "update: equal",
        "low_precision_update: equal",
    ]
