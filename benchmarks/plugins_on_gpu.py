"""Ten steps of every plugin on one GPU, with and without flash attention, saved after six and resumed.

    python benchmarks/plugins_on_gpu.py --shape 1.25B --work_dir /dev/shm/plugins

Prints, for each, tokens/s (median of the steps after the third), peak memory, the time of a save, and the largest difference
between the losses of the steps after the sixth in the whole run and in the resumed one. A checkpoint of the 1.25 B shape has 17.5 GB; in memory (/dev/shm) the table takes 13 minutes.
"""

import argparse
import re
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.random_run import SHAPES, Outcome, make_model, make_part, run_training
from colossal_llama.utils.console import table
from colossal_llama.utils.files import write_json

SAVED_STEP = 6
PLUGINS = ("zero2", "zero2_cpu", "gemini", "gemini_auto", "3d")


def main() -> None:
    """Makes model and data once, runs every plugin, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1.25B")
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--plugins", nargs="+", default=PLUGINS)
    parser.add_argument("--micro_batch_size", default="8")
    parser.add_argument("--output", type=Path, help="json file for the rows of the table")
    options = parser.parse_args()
    model, part = options.work_dir / "model", options.work_dir / "part"
    if not model.exists():
        make_model(model, options.shape)
        make_part(part, rows=10 * int(options.micro_batch_size))
    rows = []
    for plugin in options.plugins:
        for flash in (True, False):
            rows.append(measure(options, model, part, plugin, flash))
            print(table(list(rows[0]), [list(row.values()) for row in rows]), flush=True)
            if options.output:
                write_json(options.output, rows)


def measure(options: argparse.Namespace, model: Path, part: Path, plugin: str, flash: bool) -> dict:
    """One plugin's whole run and its resumed half."""
    words = ["--pretrained", str(model), "--dataset", str(part), "--plugin", plugin, "--mixed_precision", "bf16"]
    words += [
        "--micro_batch_size",
        options.micro_batch_size,
        "--use_grad_checkpoint",
        "--save_interval",
        str(SAVED_STEP),
    ]
    words += ["--skip_save_each_epoch", "--max_steps", "10", *(["--use_flash_attn"] if flash else [])]
    whole, again = options.work_dir / "whole", options.work_dir / "again"
    begun = time.time()
    first = run_training(whole, *words)
    second = run_training(again, *words, "--load_checkpoint", str(whole / "save" / f"epoch-0_step-{SAVED_STEP}"))
    seconds = time.time() - begun
    for outcome in (first, second):
        if outcome.returncode:
            print(plugin, flash, outcome.output[-3000:], flush=True)
    for place in (whole, again):
        shutil.rmtree(place, ignore_errors=True)
    return {
        "plugin": plugin,
        "flash": str(flash),
        "tok/s": first.tokens_per_s(),
        "MFU": first.entries[-1]["model_flops_utilisation"] if first.entries else float("nan"),
        "peak GiB": first.entries[-1]["peak_memory_gib"] if first.entries else float("nan"),
        "save s": save_seconds(first),
        "loss 10": first.entries[-1]["loss"] if first.entries else float("nan"),
        "resume diff": resume_difference(first, second),
        "both runs s": round(seconds),
    }


def save_seconds(outcome: Outcome) -> float:
    """The longest save that the run reported."""
    return max(
        (float(number) for number in re.findall(r"saved \S+ in ([0-9.]+) s", outcome.output)), default=float("nan")
    )


def resume_difference(whole: Outcome, again: Outcome) -> float:
    """Largest difference of the losses of the steps that both runs did."""
    losses = {entry["step"]: entry["loss"] for entry in whole.entries}
    differences = [abs(entry["loss"] - losses[entry["step"]]) for entry in again.entries if entry["step"] in losses]
    return max(differences) if len(differences) == 10 - SAVED_STEP else float("nan")


if __name__ == "__main__":
    main()
