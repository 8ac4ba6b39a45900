"""Profiles a training step of train.py: time by group of kernels, for several configurations.

    python benchmarks/profile_step.py --work_dir /dev/shm/profile --ways ours ours_3d ours_gemini

The ways are those of benchmarks/train_throughput.py. `span` is the time from the begin of the first
kernel to the end of the last, `idle` the part of it without a kernel: there the device waited for
the host. Without a GPU the table is of the operations on the CPU.
"""

import argparse
import re
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.random_run import SHAPES, make_model, output_options
from benchmarks.train_many import free_memory
from benchmarks.train_throughput import OURS
from colossal_llama.engine import launch
from colossal_llama.training import train
from colossal_llama.training.command_line import parse_arguments
from colossal_llama.training.memory.allocator import enable_expandable_segments
from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.console import table

PROFILED_STEP = 6
"""Number of the step that is profiled. The profiler's start lengthens the first profiled step, so
the step before it is profiled too, and discarded."""
GROUPS = {
    "attention": r"flash|fmha|sdpa|cudnn|attention|_sdp_",
    "matrix products": r"gemm|nvjet|cutlass|xmma|wgmma|::(add|b|ba)?d?d?bmm|::(add)?mm\b|scaled_mm",
    "norm": r"rms_?norm|norm_(for|back)ward",
    "rotary": r"rope",
    "SwiGLU": r"swiglu|silu",
    "cross-entropy and norm of gradients": r"softmax|cross_entropy|lp_?norm|multi_tensor|foreach",
    "quantization to 8 bits": r"fp8|round|quantize|amax",
    "update": r"adam|triton_(poi|red|per)_fused",  # nothing else is compiled by PyTorch
    "copies": r"memcpy|memset|copy|nccl",
    "elementwise": r"elementwise|vectorized|reduce|::(add|mul|sum)_?\b",
}
"""Groups of kernels; the first regular expression that is found in a kernel's name decides."""


@dataclass(frozen=True)
class StepProfile:
    """Times of one step in milliseconds."""

    span_ms: float
    busy_ms: float
    by_group_ms: dict[str, float]
    by_kernel_ms: dict[str, float]


def main() -> None:
    """Profiles a step of every configuration and prints the table."""
    options = parse()
    model = options.work_dir / "model"
    if not model.exists():
        make_model(model, options.shape)
    if "--use_grad_checkpoint" in options.options:
        enable_expandable_segments()  # as train.py does
    launch.launch(seed=0)
    profiles = {way: profile_of(options, way, model) for way in options.ways}
    report(profiles, options.top)
    if options.output:
        write_json(options.output, {way: asdict(step) for way, step in profiles.items()})
    launch.leave()


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1.25B")
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--ways", nargs="+", choices=tuple(OURS), default=["ours", "ours_3d", "ours_gemini"])
    parser.add_argument("--micro_batch_size", type=int, default=8)
    parser.add_argument("--max_length", type=int, default=4096)
    parser.add_argument("--top", type=int, default=12, help="number of kernels listed for each way")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="further options of train.py")
    parser.add_argument("--output", type=Path, help="json file for the figures")
    return parser.parse_args()


def profile_of(options: argparse.Namespace, way: str, model: Path) -> StepProfile:
    """Trains some steps on random rows as `--benchmark` does, and profiles one."""
    from colossal_llama.training.train_step import TrainStep

    flags = ["--pretrained", str(model), "--mixed_precision", "bf16", *output_options(options.work_dir / way)]
    flags += ["--micro_batch_size", str(options.micro_batch_size), "--max_length", str(options.max_length)]
    flags += [*OURS[way], "--benchmark", "--num_samples", str((PROFILED_STEP + 1) * options.micro_batch_size)]
    arguments = parse_arguments([*flags, *options.options], has_gpu=launch.has_gpu(), world_size=1)
    found: list[StepProfile] = []
    step = TrainStep.step

    def profiled_step(self, micro_batches, number: int, *others, **settings):
        """As `TrainStep.step`; the first profiled step only starts the profiler up."""
        if number not in (PROFILED_STEP - 1, PROFILED_STEP):
            return step(self, micro_batches, number, *others, **settings)
        with profile(activities=_activities()) as profiler:
            result = step(self, micro_batches, number, *others, **settings)
            if launch.has_gpu():
                torch.cuda.synchronize()
        found[:] = [summed_up(profiler)]
        return result

    TrainStep.step = profiled_step
    try:
        train.train(arguments)
    finally:
        TrainStep.step = step
    free_memory()
    return found[0]


def _activities() -> list[ProfilerActivity]:
    return [ProfilerActivity.CUDA, ProfilerActivity.CPU] if launch.has_gpu() else [ProfilerActivity.CPU]


def summed_up(profiler: profile) -> StepProfile:
    """Sums times by kernel and by group; concurrent kernels count once in `busy_ms`."""
    on = DeviceType.CUDA if launch.has_gpu() else DeviceType.CPU
    events = sorted(
        (event for event in profiler.events() if event.device_type == on and not event.is_user_annotation),
        key=lambda e: e.time_range.start,
    )
    by_kernel: dict[str, float] = defaultdict(float)
    busy_us, end = 0.0, events[0].time_range.start
    for event in events:
        own_us = event.time_range.elapsed_us() if launch.has_gpu() else event.self_cpu_time_total
        by_kernel[event.name] += own_us / 1e3
        busy_us += max(0.0, event.time_range.end - max(end, event.time_range.start))
        end = max(end, event.time_range.end)
    by_group: dict[str, float] = defaultdict(float)
    for name, duration_ms in by_kernel.items():
        by_group[group_of(name)] += duration_ms
    ordered = dict(sorted(by_kernel.items(), key=lambda item: -item[1]))
    return StepProfile((end - events[0].time_range.start) / 1e3, busy_us / 1e3, dict(by_group), ordered)


def group_of(kernel: str) -> str:
    """Group of a kernel, by its name."""
    return next((group for group, pattern in GROUPS.items() if re.search(pattern, kernel, re.IGNORECASE)), "other")


def report(profiles: dict[str, StepProfile], top: int) -> None:
    """Prints milliseconds by group, one column a way, and the longest kernels of each way."""
    rows = [["span", *(f"{step.span_ms:.1f}" for step in profiles.values())]]
    rows += [["idle", *(f"{step.span_ms - step.busy_ms:.1f}" for step in profiles.values())]]
    for group in (*GROUPS, "other"):
        times_ms = [step.by_group_ms.get(group, 0.0) for step in profiles.values()]
        if any(times_ms):
            rows.append([group, *(f"{time_ms:.1f}" for time_ms in times_ms)])
    print(table(["ms", *profiles], rows))
    for way, step in profiles.items():
        print(f"\n{way}")
        print(
            table(["ms", "kernel"], [[f"{ms:.2f}", name[:110]] for name, ms in list(step.by_kernel_ms.items())[:top]])
        )


if __name__ == "__main__":
    main()
