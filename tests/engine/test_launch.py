"""Rank 0 ends the process groups last."""

import pytest

from tests.support.ranks import run_ranks

STAYS_LONGER = """
import sys, time
import torch.distributed as dist
from colossal_llama.engine import launch
launch.launch(seed=0)
if dist.get_rank() == 1:
    time.sleep(2)
    dist.distributed_c10d._get_default_store().check(["anything"])
    print("the store is still there")
launch.leave()
"""


@pytest.mark.distributed
def test_rank_0_which_has_the_store_leaves_with_the_others(project_root, tmp_path):
    """Else a checkpoint whose end another rank has not heard of yet counts as failed there."""
    script = tmp_path / "stays_longer.py"
    script.write_text(STAYS_LONGER)
    done = run_ranks(str(script), [], 2, project_root)
    assert done.returncode == 0, done.stdout
    assert "the store is still there" in done.stdout
