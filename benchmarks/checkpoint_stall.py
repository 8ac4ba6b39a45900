r"""Measures how long training waits for a checkpoint, with and without writing in the background.

    python benchmarks/checkpoint_stall.py --shape 1.25B --work_dir /dev/shm/stall
    python benchmarks/checkpoint_stall.py --shape 170M --work_dir DIR --length_tokens 64 \
        --micro_batch_size 1 --save_interval 4

Both ways train the same in one launch and save three times. The table has the wait for the first
save, which also allocates the staging buffer, the median wait for the later ones, the time of
writing, and the duration of steps during it.
"""

import argparse
import shutil
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.random_run import LENGTH_TOKENS, SHAPES, make_model, make_part, output_options, read_outcome, run_many
from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.console import table

SAVES = 3
WAYS = {"in the background": "True", "training waits": "False"}


def main() -> None:
    """Makes model and data, trains both ways, prints the table."""
    options = parse()
    model, part = options.work_dir / "model", options.work_dir / "part"
    steps = SAVES * options.save_interval + 1  # the step after the last save records its stall
    if not model.exists():
        make_model(model, options.shape)
    shutil.rmtree(part, ignore_errors=True)
    make_part(part, steps * options.micro_batch_size * options.processes, length_tokens=options.length_tokens)
    flags = [
        "--pretrained",
        str(model),
        "--dataset",
        str(part),
        "--plugin",
        options.plugin,
        "--mixed_precision",
        "bf16",
    ]
    flags += ["--max_length", str(options.length_tokens), "--micro_batch_size", str(options.micro_batch_size)]
    flags += ["--use_grad_checkpoint", "--save_interval", str(options.save_interval), "--keep_last", "1"]
    flags += ["--skip_save_each_epoch", "--max_steps", str(steps)]
    run_dirs = {way: options.work_dir / flag for way, flag in WAYS.items()}
    commands = [[*flags, *output_options(run_dirs[way]), "--save_in_background", flag] for way, flag in WAYS.items()]
    done = run_many(options.work_dir / "commands.json", commands, options.processes)
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-6000:])
    print(*(line for line in done.stdout.splitlines() if "saved " in line or "host memory" in line), sep="\n")
    rows = [{"checkpoints": way, **row_of(read_outcome(run_dir, done).entries)} for way, run_dir in run_dirs.items()]
    for run_dir in run_dirs.values():
        shutil.rmtree(run_dir, ignore_errors=True)
    if options.output:
        write_json(options.output, rows)
    print(table(list(rows[0]), [list(row.values()) for row in rows]))


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1.25B")
    parser.add_argument("--work_dir", type=Path, required=True, help="holds two checkpoints of 14 bytes a parameter")
    parser.add_argument("--plugin", default="zero2")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--length_tokens", type=int, default=LENGTH_TOKENS)
    parser.add_argument("--micro_batch_size", type=int, default=8)
    parser.add_argument(
        "--save_interval",
        type=int,
        default=20,
        help="steps between saves; must last longer than the writing of a checkpoint",
    )
    parser.add_argument("--output", type=Path, help="json file for the rows of the table")
    return parser.parse_args()


def row_of(entries: list[dict]) -> dict[str, float]:
    """Figures of one run from its metrics.jsonl."""
    stalls = [entry["save_stall_s"] for entry in entries if "save_stall_s" in entry]
    writes = [entry["save_write_s"] for entry in entries if "save_write_s" in entry]
    undisturbed, disturbed, is_writing = [], [], False
    for number, entry in enumerate(entries):
        is_writing = is_writing or "save_stall_s" in entry
        if number > 2:
            (disturbed if is_writing else undisturbed).append(entry["step_s"])
        is_writing = is_writing and "save_write_s" not in entry
    nan = float("nan")
    return {
        "saves": len(stalls),
        "first stall s": stalls[0] if stalls else nan,
        "later stalls s": statistics.median(stalls[1:]) if stalls[1:] else nan,
        "write s": statistics.median(writes) if writes else nan,
        "step s": statistics.median(undisturbed) if undisturbed else nan,
        "step while writing s": statistics.median(disturbed) if disturbed else nan,
    }


if __name__ == "__main__":
    main()
