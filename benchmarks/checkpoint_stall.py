"""How long training stands still for a checkpoint: written in the background, and while training waits.

    python benchmarks/checkpoint_stall.py --shape 1.25B --work_dir /dev/shm/stall --output stall.json
    python benchmarks/checkpoint_stall.py --shape 170M --work_dir DIR --length_tokens 64 --micro_batch_size 1 --save_interval 4

Both ways train the same in one launch and save three times. Printed for each: how long training
waited for the first save, which also takes its memory from the system, and for the later ones
(median), how long the writing took, and how much longer steps were during it.
"""

import argparse
import shutil
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.random_run import LENGTH_TOKENS, SHAPES, make_model, make_part, outcome_of, outputs_under, run_many
from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.console import table

SAVES = 3
WAYS = {"in the background": "True", "training waits": "False"}


def main() -> None:
    """Makes model and data, trains both ways, prints the table."""
    options = parsed()
    model, part = options.work_dir / "model", options.work_dir / "part"
    steps = SAVES * options.save_interval + 1  # the last save is followed by a step, whose entry has its stall
    if not model.exists():
        make_model(model, options.shape)
    shutil.rmtree(part, ignore_errors=True)
    make_part(part, steps * options.micro_batch_size * options.processes, length_tokens=options.length_tokens)
    words = [
        "--pretrained",
        str(model),
        "--dataset",
        str(part),
        "--plugin",
        options.plugin,
        "--mixed_precision",
        "bf16",
    ]
    words += ["--max_length", str(options.length_tokens), "--micro_batch_size", str(options.micro_batch_size)]
    words += ["--use_grad_checkpoint", "--save_interval", str(options.save_interval), "--keep_last", "1"]
    words += ["--skip_save_each_epoch", "--max_steps", str(steps)]
    places = {way: options.work_dir / flag for way, flag in WAYS.items()}
    commands = [[*words, *outputs_under(places[way]), "--save_in_background", flag] for way, flag in WAYS.items()]
    done = run_many(options.work_dir / "commands.json", commands, options.processes)
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-6000:])
    print(*(line for line in done.stdout.splitlines() if "saved " in line or "host memory" in line), sep="\n")
    rows = [{"checkpoints": way, **row_of(outcome_of(place, done).entries)} for way, place in places.items()]
    for place in places.values():
        shutil.rmtree(place, ignore_errors=True)
    if options.output:
        write_json(options.output, rows)
    print(table(list(rows[0]), [list(row.values()) for row in rows]))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1.25B")
    parser.add_argument("--work_dir", type=Path, required=True, help="holds two checkpoints of 14 bytes a parameter")
    parser.add_argument("--plugin", default="zero2")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--length_tokens", type=int, default=LENGTH_TOKENS)
    parser.add_argument("--micro_batch_size", type=int, default=8)
    parser.add_argument(
        "--save_interval", type=int, default=20, help="steps; long enough for a checkpoint to be written"
    )
    parser.add_argument("--output", type=Path, help="json file for the rows of the table")
    return parser.parse_args()


def row_of(entries: list[dict]) -> dict[str, float]:
    """The figures of one run from its metrics.jsonl."""
    stalls = [entry["save_stall_s"] for entry in entries if "save_stall_s" in entry]
    writes = [entry["save_write_s"] for entry in entries if "save_write_s" in entry]
    undisturbed, disturbed, is_writing = [], [], False
    for number, entry in enumerate(entries):
        is_writing = is_writing or "save_stall_s" in entry
        if number > 2:
            (disturbed if is_writing else undisturbed).append(entry["step_s"])
        is_writing = is_writing and "save_write_s" not in entry
    nothing = float("nan")
    return {
        "saves": len(stalls),
        "first stall s": stalls[0] if stalls else nothing,
        "later stalls s": statistics.median(stalls[1:]) if stalls[1:] else nothing,
        "write s": statistics.median(writes) if writes else nothing,
        "step s": statistics.median(undisturbed) if undisturbed else nothing,
        "step while writing s": statistics.median(disturbed) if disturbed else nothing,
    }


if __name__ == "__main__":
    main()
