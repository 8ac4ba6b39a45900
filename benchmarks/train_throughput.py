r"""Compares throughput: our train step, the plain ColossalAI recipe, and Hugging Face Trainer.

    python benchmarks/train_throughput.py --work_dir /dev/shm/speed
    python benchmarks/train_throughput.py --work_dir /dev/shm/speed --shape 7B \
        --micro_batch_size 4 --ways ours plain trainer
    python benchmarks/train_throughput.py --work_dir DIR --shape 7B --micro_batch_size 4 \
        --processes 2 --ways ours ours_gemini ours_tp trainer_kept
    python benchmarks/train_throughput.py --work_dir DIR \
        --pretrain_parts data/arrow --sft_parts chats/arrow

The first measures the 1.25 B shape with micro-batch 8 on one GPU, the third two GPUs, where all
ways but `ours_tp`, `ours_pp` and `ours_sp` have a micro-batch on each; the last measures also real
data. All ways run in turn on one machine.

`ours` is train.py --benchmark as a user starts it: plugin, fp32 master weights and states,
clipping, data loader, metrics. Figures are medians over the steps after the third.
`ours_documents` has rows of 16 documents with document masking, `packed` the rows of
--pretrain_parts. `sft_packed` and `sft_padded` are the conversations of --sft_parts packed, and one
a row padded to 4,096. `plain_sft` is the plain recipe on the same padded rows. Tokens/s exclude
padding. Ratios are to `plain`; MFU is model FLOPs utilisation (README, "Train").
"""

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from transformers import AutoConfig

from benchmarks.allocated_memory import allocated_before_gib
from benchmarks.random_run import (
    LENGTH_TOKENS,
    PROJECT_ROOT,
    SHAPES,
    make_model,
    make_part,
    metrics_file_of,
    output_options,
    run_many,
)
from colossal_llama.dataset.part_paths import find_parts
from colossal_llama.engine.launch import current_device
from colossal_llama.model.param_count import flops_per_token
from colossal_llama.training.benchmark import WARM_UP_STEPS, speed
from colossal_llama.training.metrics import peak_flops
from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.console import table

PROCESSES = "PROCESSES"
"""Stands for their number."""
OURS = {
    "ours": ("--plugin", "zero2"),
    "ours_3d": ("--plugin", "3d", "--zero", "2"),
    "ours_recomputed": ("--plugin", "zero2", "--use_grad_checkpoint"),
    "ours_plain": ("--plugin", "zero2", "--fused_kernels", "False"),
    "ours_gemini": ("--plugin", "gemini"),
    "ours_fp8": ("--plugin", "zero2", "--fp8"),
    "ours_fp8_recomputed": ("--plugin", "zero2", "--fp8", "--use_grad_checkpoint"),
    "ours_bf16_states": ("--plugin", "zero2", "--optimizer_states", "bf16"),
    "ours_8bit_states": ("--plugin", "zero2", "--optimizer_states", "8bit"),
    "ours_zero2_cpu": ("--plugin", "zero2_cpu"),
    "ours_tp": ("--plugin", "3d", "--zero", "0", "--tp", PROCESSES),
    "ours_pp": ("--plugin", "3d", "--zero", "1", "--pp", PROCESSES),
    "ours_sp": ("--plugin", "3d", "--zero", "1", "--sp", PROCESSES, "--sp_mode", "all_to_all"),
}
OTHERS = {
    "plain": ("plain",),
    "plain_sft": ("plain",),
    "trainer": ("trainer",),
    "trainer_kept": ("trainer", "--no_checkpointing"),
}
ON_DATA = {
    "packed": ("--plugin", "zero2"),
    "sft_packed": ("--plugin", "zero2"),
    "sft_padded": ("--plugin", "zero2", "--padding_mode", "max_length"),
}
DEFAULT_WAYS = ("ours", "ours_documents", "ours_3d", "ours_gemini", "plain", "trainer", "trainer_kept")


@dataclass(frozen=True)
class Figures:
    """Medians of one way."""

    tokens_per_s: float
    step_s: float
    peak_memory_gib: float
    steps: int


def main() -> None:
    """Makes a random model, measures every way, and prints the table after each launch."""
    options = parse()
    model, part = options.work_dir / "model", options.work_dir / "part"
    if not model.exists():
        make_model(model, options.shape)
        make_part(part, rows=options.steps * options.micro_batch_size * options.processes)
    measured: dict[str, Figures | None] = {}
    ours = [way for way in options.ways if way not in OTHERS]
    if ours:
        measured |= of_ours(options, {way: options_of(options, way, model) for way in ours})
        report(options, measured, model)
    for way in (way for way in options.ways if way in OTHERS):
        rows = find_parts(options.sft_parts, "--sft_parts").paths[0] if way == "plain_sft" else part
        measured[way] = of_other(options, OTHERS[way], model, rows, options.work_dir / way)
        report(options, measured, model)


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1.25B")
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument(
        "--ways", nargs="+", choices=(*OURS, "ours_documents", *OTHERS, *ON_DATA), default=list(DEFAULT_WAYS)
    )
    parser.add_argument("--processes", type=int, default=1, help="one on each GPU; figures are of all together")
    parser.add_argument("--micro_batch_size", type=int, default=8)
    parser.add_argument("--accumulation_steps", type=int, default=1, help="micro-batches a step of our ways")
    parser.add_argument("--steps", type=int, default=WARM_UP_STEPS + 10)
    parser.add_argument("--pretrain_parts", nargs="+", default=[], help="prepared parts for `packed`, as for --dataset")
    parser.add_argument(
        "--sft_parts", nargs="+", default=[], help="the same of conversations for `sft_packed`, `sft_padded`"
    )
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="further options of our train.py")
    parser.add_argument("--output", type=Path, help="json file for the figures")
    return parser.parse_args()


def options_of(options: argparse.Namespace, way: str, model: Path) -> list[str]:
    """Options of train.py for one of our ways."""
    flags = ["--pretrained", str(model), "--mixed_precision", "bf16", *output_options(options.work_dir / way)]
    flags += ["--micro_batch_size", str(options.micro_batch_size), "--max_length", str(LENGTH_TOKENS)]
    flags += ["--accumulation_steps", str(options.accumulation_steps), *options.options]
    rows = options.steps * options.micro_batch_size * options.accumulation_steps * options.processes
    if way in OURS:
        way_flags = [str(options.processes) if flag is PROCESSES else flag for flag in OURS[way]]
        return [*flags, *way_flags, "--benchmark", "--num_samples", str(rows)]
    if way == "ours_documents":
        part = options.work_dir / "part-documents"
        if not part.exists():
            make_part(part, rows=rows, documents_per_row=16)
        return [*flags, *OURS["ours"], *on_parts([str(part)], options.steps)]
    parts = options.pretrain_parts if way == "packed" else options.sft_parts
    # Real rows vary from step to step: more of them for a stable median, except where they are
    # mostly padding.
    steps = options.steps if way == "sft_padded" else 3 * options.steps
    return [*flags, *ON_DATA[way], *on_parts(parts, steps)]


def on_parts(parts: list[str], steps: int) -> list[str]:
    """Options for a run of `steps` steps over prepared parts that saves no checkpoint."""
    flags = ["--dataset", *parts, "--allow_other_data", "--max_steps", str(steps)]
    return [*flags, "--skip_save_each_epoch", "--save_interval", str(10**6), "--shuffle", "global"]


def of_ours(options: argparse.Namespace, commands: dict[str, list[str]]) -> dict[str, Figures | None]:
    """Runs every command line in one launch, and reads the metrics; tokens exclude padding."""
    for way in commands:
        shutil.rmtree(options.work_dir / way, ignore_errors=True)
    done = run_many(options.work_dir / "commands.json", list(commands.values()), options.processes)
    if done.returncode:
        print(done.stdout[-1000:], done.stderr[-3000:], flush=True)
    measured: dict[str, Figures | None] = {}
    for way, before_gib in zip(commands, allocated_before_gib(done.stdout), strict=False):
        record = metrics_file_of(options.work_dir / way)
        figures = speed(record) if record.exists() else {"steps": 0}
        shutil.rmtree(options.work_dir / way / "save", ignore_errors=True)
        measured[way] = None
        if figures["steps"]:
            peak = (figures["peak_memory_gib"] or float("nan")) - before_gib
            measured[way] = Figures(figures["tokens_per_s"], figures["step_s"], peak, figures["steps"])
    return measured


def of_other(
    options: argparse.Namespace, recipe: tuple[str, ...], model: Path, part: Path, run_dir: Path
) -> Figures | None:
    """Runs another recipe; None when it failed, after printing the end of its output."""
    shutil.rmtree(run_dir, ignore_errors=True)
    run_dir.mkdir(parents=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={options.processes}"]
    command += ["benchmarks/other_recipes.py", *recipe, "--model", str(model), "--part", str(part)]
    command += ["--micro_batch_size", str(options.micro_batch_size), "--steps", str(options.steps)]
    command += ["--output", str(run_dir / "figures.json")]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(run_dir.name, done.stdout[-500:], done.stderr[-3000:], flush=True)
        return None
    figures = json.loads((run_dir / "figures.json").read_text())
    step_s = np.array(figures["step_s"][WARM_UP_STEPS:])
    rates = np.array(figures["tokens"][WARM_UP_STEPS:]) / step_s
    peak = figures["peak_memory_gib"] or float("nan")
    return Figures(float(np.median(rates)), float(np.median(step_s)), peak, len(rates))


def report(options: argparse.Namespace, measured: dict[str, Figures | None], model: Path) -> None:
    """Prints and writes the figures measured so far."""
    flops = flops_per_token(AutoConfig.from_pretrained(model, trust_remote_code=False), LENGTH_TOKENS)
    peak = (peak_flops(current_device()) or 0.0) * options.processes
    plain = measured.get("plain")
    rows = []
    for way, figures in measured.items():
        if figures is None:
            rows.append([way, "failed", "", "", "", "", ""])
            continue
        ratio = f"{figures.tokens_per_s / plain.tokens_per_s:.2f}" if plain else ""
        used = f"{figures.tokens_per_s * flops / peak:.3f}" if peak else ""
        numbers = [f"{figures.tokens_per_s:,.0f}", f"{figures.step_s:.3f}", f"{figures.peak_memory_gib:.1f}"]
        rows.append([way, *numbers, used, ratio, figures.steps])
    print(table(["way", "tok/s", "step s", "peak GiB", "MFU", "x plain", "steps"], rows), flush=True)
    if options.output:
        write_json(options.output, {way: figures.__dict__ if figures else None for way, figures in measured.items()})


if __name__ == "__main__":
    main()
