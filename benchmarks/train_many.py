"""Runs several command lines of train.py in one process group; started by torchrun.

    torchrun --standalone --nproc_per_node 2 benchmarks/train_many.py commands.json

commands.json holds a list of command lines, [["--pretrained", …], …]. A start takes longer than
training a small model for some steps, so tests and benchmarks with many runs share one.
"""

import gc
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from colossal_llama.engine import launch
from colossal_llama.engine.patches.gemini import clear_gemini_caches
from colossal_llama.training import train
from colossal_llama.training.command_line import parse_arguments
from colossal_llama.training.memory.allocator import enable_expandable_segments


def main() -> None:
    """Launches once, trains many times."""
    commands = json.loads(Path(sys.argv[1]).read_text())
    if any("--use_grad_checkpoint" in command for command in commands):
        enable_expandable_segments()  # as train.py does
    launch.launch(seed=0)

    for command in commands:
        arguments = parse_arguments(command, has_gpu=launch.has_gpu(), world_size=int(os.environ["WORLD_SIZE"]))
        torch.manual_seed(arguments.data.seed)
        train.train(arguments)
        free_memory()
    launch.leave()


def free_memory() -> None:
    """Frees a run's tensors, so that the next run's peak is its own."""
    clear_gemini_caches()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        print(f"{torch.cuda.memory_allocated() / 2**30:.2f} GiB still allocated after the run", flush=True)
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
