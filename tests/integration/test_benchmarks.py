"""Examples in the docstrings of benchmarks hold."""

import subprocess
import sys


def test_a_peak_is_read_without_what_former_runs_left(project_root):
    command = [sys.executable, "-m", "doctest", "benchmarks/allocated_memory.py"]
    done = subprocess.run(command, cwd=project_root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
