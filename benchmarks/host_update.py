"""Times the optimizer step with states in host memory (`zero2_cpu`): ColossalAI's and ours.

    python benchmarks/host_update.py --shape 1.25B --steps 5

Both run in turn in one process. Gradients are those of a few tokens, so that almost all time is
the optimizer step. Prints seconds of a step and the ratio.
"""

import argparse
import gc
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.random_run import SHAPES, VOCABULARY_SIZE
from colossal_llama.engine import launch
from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.console import table


def main() -> None:
    """Times both optimizer steps and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="170M")
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after a warm-up step")
    parser.add_argument("--output", type=Path, help="json file for the figures")
    options = parser.parse_args()
    launch.launch(seed=0)
    threads = launch.take_share_of_cores()
    medians_s = {}
    for way in ("engine", "ours"):
        medians_s[way] = statistics.median(seconds_a_step(options, way))
        gc.collect()  # or reference cycles would keep its states while the next optimizer allocates
    rows = [[way, f"{seconds:.3f}", f"{medians_s['engine'] / seconds:.2f}"] for way, seconds in medians_s.items()]
    print(f"{options.shape}, {threads} threads, {launch.current_device()}")
    print(table(["update", "s a step", "x engine"], rows))
    if options.output:
        write_json(options.output, {"shape": options.shape, "threads": threads, "seconds_a_step": medians_s})
    launch.leave()


def seconds_a_step(options: argparse.Namespace, way: str) -> list[float]:
    """Measures the seconds of each timed `optimizer.step()`."""
    from colossalai.booster import Booster
    from colossalai.booster.plugin import LowLevelZeroPlugin

    from colossal_llama.engine.hybrid_adam import build_optimizer
    from colossal_llama.engine.zero_offload_update import use_overlapped_offload_step

    device = launch.current_device()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with device:
        model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY_SIZE, **SHAPES[options.shape]))
    torch.set_default_dtype(torch.float32)
    plugin = LowLevelZeroPlugin(stage=2, precision="bf16", max_norm=1.0, cpu_offload=True, overlap_communication=False)
    optimizer = build_optimizer(model, lr=1e-5, weight_decay=0.1)
    model, optimizer, *_ = Booster(plugin=plugin).boost(model, optimizer)
    if way == "ours":
        use_overlapped_offload_step(optimizer)
    tokens, durations_s = torch.arange(16, device=device).view(1, 16), []
    for _ in range(options.steps + 1):
        optimizer.backward(model(input_ids=tokens, labels=tokens).loss)
        wait_for(device)
        started = time.perf_counter()
        optimizer.step()
        wait_for(device)
        durations_s.append(time.perf_counter() - started)
        optimizer.zero_grad()
    return durations_s[1:]


def wait_for(device: torch.device) -> None:
    """Waits until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
