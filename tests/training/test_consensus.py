"""Ranks that differ end with the same message, on every one of them."""

import json
import sys

import pytest

from tests.support.slurm import as_two_tasks

AGREEING = """
import json, os, socket, sys
from colossal_llama.utils.distributed_env import adopt_slurm_variables
adopt_slurm_variables()
import torch.distributed as dist
from colossal_llama.training.distributed import consensus
from colossal_llama.utils.errors import UserError

dist.init_process_group("gloo")
rank = dist.get_rank()
socket.gethostname = lambda: f"node-{rank + 1}"
said = []

def work(name):
    def fails_on(number, error):
        if rank == number:
            raise error
    match name:
        case "all is well":
            with consensus.raise_on_all_ranks():
                pass
            consensus.check_same({"the data": "a"})
        case "only rank 1 lacks a file":
            with consensus.raise_on_all_ranks():
                fails_on(1, UserError("x does not exist"))
        case "rank 0 meets something unforeseen":
            with consensus.raise_on_all_ranks():
                fails_on(0, ValueError("unforeseen"))
        case "both have the same problem":
            consensus.raise_problems(["y is wrong"])
        case "a copy is stale":
            consensus.check_same({"the data": "a" if rank == 0 else "b", "the model": "c"})

for name in sys.argv[1:]:
    try:
        work(name)
        said.append(None)
    except consensus.CollectiveError as error:
        said.append(error.problems)
print(json.dumps(said))
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.distributed
def test_ranks_that_differ_end_together_with_the_same_words(project_root):
    expected = {
        "all is well": None,
        "only rank 1 lacks a file": ["on node-2: x does not exist"],
        "rank 0 meets something unforeseen": ["on node-1: ValueError: unforeseen"],
        "both have the same problem": ["y is wrong"],
        "a copy is stale": [
            "the data on node-2 is not the same as on node-1: copy it again, or use a file system that both share"
        ],
    }
    done = as_two_tasks([sys.executable, "-c", AGREEING, *expected], project_root)
    for task in done:
        assert task.returncode == 0, task
        assert json.loads(task.stdout.splitlines()[-1]) == list(expected.values())
    assert "ValueError: unforeseen" in done[0].stderr  # the traceback, where it happened
    assert "Traceback" not in done[1].stderr
