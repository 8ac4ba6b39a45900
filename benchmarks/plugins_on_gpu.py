"""Measures ten steps of every plugin on one GPU, with and without flash attention, and a resume.

    python benchmarks/plugins_on_gpu.py --shape 1.25B --work_dir /dev/shm/plugins

Each run saves after six steps and is resumed. Printed are tokens/s (median of the steps after the
third), peak memory, the wait for a save and the time of its writing. `resume diff` is the largest
difference of the losses after step six between the whole and the resumed run. A checkpoint of the
1.25 B shape has 17.5 GB: give a directory in memory or on a fast disk.
"""

import argparse
import re
import shutil
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.random_run import (
    SHAPES,
    Outcome,
    make_model,
    make_part,
    output_options,
    read_outcome,
    run_many,
)
from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.console import table

SAVED_STEP = 6
PLUGINS = ("zero2", "zero2_cpu", "gemini", "gemini_auto", "3d")


def main() -> None:
    """Makes model and data once, runs every plugin, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1.25B")
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--plugins", nargs="+", default=PLUGINS)
    parser.add_argument(
        "--flash", nargs="+", choices=("yes", "no"), default=("yes", "no"), help="with --use_flash_attn or without"
    )
    parser.add_argument("--micro_batch_size", default="8")
    parser.add_argument("--output", type=Path, help="json file for the rows of the table")
    options = parser.parse_args()
    model, part = options.work_dir / "model", options.work_dir / "part"
    if not model.exists():
        make_model(model, options.shape)
        make_part(part, rows=10 * int(options.micro_batch_size))
    rows = []
    for plugin, flash in product(options.plugins, options.flash):
        rows.append(measure(options, model, part, plugin, flash))
        print(table(list(rows[0]), [list(row.values()) for row in rows]), flush=True)
        if options.output:
            write_json(options.output, rows)


def measure(options: argparse.Namespace, model: Path, part: Path, plugin: str, flash: str) -> dict:
    """Measures a row of the table: a whole run and its resumed second half, in one launch."""
    run_dir = options.work_dir / f"{plugin}-{flash}"
    run_dir.mkdir(parents=True)
    flags = ["--pretrained", str(model), "--dataset", str(part), "--plugin", plugin, "--mixed_precision", "bf16"]
    flags += ["--micro_batch_size", options.micro_batch_size, "--use_grad_checkpoint"]
    flags += ["--save_interval", str(SAVED_STEP), "--skip_save_each_epoch", "--max_steps", "10"]
    flags += ["--use_flash_attn"] if flash == "yes" else []
    load = ["--load_checkpoint", str(run_dir / "whole" / "save" / f"epoch-0_step-{SAVED_STEP}")]
    commands = [[*flags, *output_options(run_dir / "whole")], [*flags, *output_options(run_dir / "again"), *load]]
    started = time.time()
    done = run_many(run_dir / "commands.json", commands)
    seconds = time.time() - started
    if done.returncode:
        print(plugin, done.stdout[-1500:], done.stderr[-3000:], flush=True)
    print(plugin, f"{seconds:.0f} s;", *re.findall(r"[0-9.]+ GiB still allocated", done.stdout), flush=True)
    row = row_of(plugin, flash, run_dir, done)
    shutil.rmtree(run_dir, ignore_errors=True)
    return row


def row_of(plugin: str, flash: str, run_dir: Path, done: subprocess.CompletedProcess) -> dict:
    """Figures of a whole run and of its resumed half."""
    whole, again = read_outcome(run_dir / "whole", done), read_outcome(run_dir / "again", done)
    last = whole.entries[-1] if whole.entries else {}
    saved = r"saved \S+: training waited ([0-9.]+) s, \S+ GB were written in ([0-9.]+) s"
    stall_s, write_s = next(iter(re.findall(saved, done.stdout + done.stderr)), ("nan", "nan"))
    return {
        "plugin": plugin,
        "flash": flash,
        "tok/s": whole.median("tokens_per_s"),
        "MFU": whole.median("model_flops_utilisation"),
        "peak GiB": last.get("peak_memory_gib", float("nan")),
        "stall s": float(stall_s),
        "write s": float(write_s),
        "loss 1": whole.entries[0]["loss"] if whole.entries else float("nan"),
        "loss 10": last.get("loss", float("nan")),
        "resume diff": resume_difference(whole, again),
    }


def resume_difference(whole: Outcome, again: Outcome) -> float:
    """Largest difference of the losses in the steps of both runs."""
    losses = {entry["step"]: entry["loss"] for entry in whole.entries}
    differences = [abs(entry["loss"] - losses[entry["step"]]) for entry in again.entries if entry["step"] in losses]
    return max(differences) if len(differences) == 10 - SAVED_STEP else float("nan")


if __name__ == "__main__":
    main()
