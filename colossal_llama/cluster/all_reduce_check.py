"""All-reduce over all processes of torchrun: checks the sum, and prints the bandwidth as JSON.

The bus bandwidth of an all-reduce of S bytes over n processes in t seconds is
S / t * 2 (n - 1) / n. That is what every link must carry, whatever n is
(https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md).
"""

import json
import os
import statistics
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from colossal_llama.utils.cli import CollectingArgumentParser, number_in_range
from colossal_llama.utils.distributed_env import launcher_problems
from colossal_llama.utils.errors import run_main

if TYPE_CHECKING:
    import torch

_ROUNDS = 5


def main() -> None:
    """Joins the process group, times the all-reduce, and prints the result on rank 0."""
    parser = CollectingArgumentParser(
        prog="all_reduce_check.py",
        description="Time an all-reduce over all processes (colossal_llama/cluster/preflight.py runs it on each host).",
    )
    parser.add_argument(
        "--size_mib", type=number_in_range(float, above=0), default=64.0, metavar="MIB", help="size of the tensor"
    )
    options = parser.parse_args()
    for problem in launcher_problems() or ([] if "RANK" in os.environ else ["start this script with torchrun"]):
        parser.problem(problem)
    parser.finish()
    import torch
    import torch.distributed as dist

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(seconds=60))
    result = timed_all_reduce(int(options.size_mib * 2**20), torch.device("cuda" if on_gpu else "cpu"))
    if dist.get_rank() == 0:
        print(json.dumps(result), flush=True)
    dist.destroy_process_group()


def timed_all_reduce(size_bytes: int, device: "torch.device") -> dict[str, float | int | str]:
    """Times all-reduces of a float32 tensor, after a first one that opens the connections.

    Args:
        size_bytes: size of the tensor on each process.
        device: of the tensor.

    Returns:
        The number of processes, the size, the median time of five rounds and the bus bandwidth.

    Raises:
        RuntimeError: the sum is wrong.
    """
    import torch
    import torch.distributed as dist

    world, seconds = dist.get_world_size(), []
    for _ in range(_ROUNDS + 1):
        tensor = torch.full((size_bytes // 4,), float(dist.get_rank() + 1), dtype=torch.float32, device=device)
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(tensor)
        last = tensor[-1].item()  # waits for the device
        seconds.append(time.perf_counter() - started)
        expected = world * (world + 1) / 2
        if last != expected or not bool((tensor == expected).all()):
            raise RuntimeError(f"the all-reduce returned {last} instead of {expected}")
    median_s = statistics.median(seconds[1:])
    bus_bytes_per_s = size_bytes / median_s * 2 * (world - 1) / world
    return {
        "processes": world,
        "size_bytes": size_bytes,
        "seconds": median_s,
        "bus_bytes_per_s": bus_bytes_per_s,
        "device": device.type,
    }


if __name__ == "__main__":
    run_main(main)
