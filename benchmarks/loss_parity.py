r"""Compares losses of fast and reference configurations: 200 steps on the same real rows.

    python benchmarks/loss_parity.py --parts DATA/arrow/part-00000 --work_dir /dev/shm/parity
    python benchmarks/loss_parity.py --parts … --work_dir … --ways fast fast_halves fp8 \
        --seeds 42 43 44 45 --curve parity.png

All runs of train.py start from the same model, a random one without --model, and train on the same
rows in the same order. `fast` uses all fused kernels, `plain` none (--fused_kernels False), `fp8`
8-bit matrix products, `bf16_states` and `8bit_states` optimizer states of so many bits without
master weights. `halves` is `plain` with each micro-batch split in two, which changes the
rounding only. So `halves` measures the noise: `fast` should be as close to `plain` as `halves` is.
`--ways` selects; the others are compared with the first. 7 B needs `--ways recomputed
recomputed_halves fp8_recomputed`.

One run does not show an offset that is smaller than the effect of rounding on a run: `--seeds`
repeats all ways with other row orders. `--model` starts from a trained model, `--trained_steps`
from one that the first way trains for so many steps. Where the loss no longer falls steeply,
rounding changes it much less.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.random_run import PROJECT_ROOT, SHAPES, make_model, output_options, read_outcome, run_many
from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.console import table

PLAIN = ("--fused_kernels", "False")
WAYS = {"plain": PLAIN, "fast": (), "fp8": ("--fp8",), "recomputed": ("--use_grad_checkpoint",)}
WAYS["fp8_recomputed"] = (*WAYS["fp8"], *WAYS["recomputed"])
WAYS |= {f"{states}_states": ("--optimizer_states", states) for states in ("bf16", "8bit")}
HALVES = {"halves": "plain", "fast_halves": "fast", "recomputed_halves": "recomputed"}
"""Ways with micro-batches split in two, each with the way that it equals otherwise."""
TRAINED_SEED = 0
"""Seed of the row order of --trained_steps."""
LEFT_OUT = 20
"""Steps left out at the beginning, where the loss falls steeply and any two runs differ most."""


def main() -> None:
    """Runs all ways seed by seed; prints, writes and plots the differences."""
    options = parse()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    model = options.model or options.work_dir / "model"
    if not model.exists():
        make_model(model, options.shape)
    if options.trained_steps:
        model = trained(options, model)
    losses: dict[str, list[list[float]]] = {way: [] for way in options.ways}
    for seed in options.seeds:
        for way, values in losses_by_way(options, model, seed).items():
            losses[way].append(values)
        rows = compare(losses)
        print(table(list(rows[0]), [[show(value) for value in row.values()] for row in rows]), flush=True)
        if options.output:
            write_json(options.output, {"seeds": options.seeds, "ways": rows, "losses": losses})
    if options.curve:
        draw(options)


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="190M")
    parser.add_argument("--model", type=Path, help="start from this model, not from a random one of --shape")
    parser.add_argument(
        "--trained_steps", type=int, default=0, help="first train the model for so many steps, by the first way"
    )
    parser.add_argument("--parts", nargs="+", required=True)
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200, help=f"more than {LEFT_OUT}")
    parser.add_argument("--micro_batch_size", type=int, default=4)
    parser.add_argument("--max_length", default="4096")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--lr", default="6e-4")
    parser.add_argument("--ways", nargs="+", choices=(*WAYS, *HALVES), default=["plain", "halves", "fast", "fp8"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[42], help="seeds of the row order; one launch each")
    parser.add_argument("--output", type=Path, help="json file for figures and losses, written after every seed")
    parser.add_argument("--curve", type=Path, help="PNG plot of the first seed's losses")
    options = parser.parse_args()
    if options.steps <= LEFT_OUT:
        parser.error(f"--steps {options.steps}: the first {LEFT_OUT} are left out of every figure")
    if options.trained_steps and TRAINED_SEED in options.seeds:
        parser.error(f"--seeds {TRAINED_SEED}: the order in which --trained_steps trains")
    return options


def trained(options: argparse.Namespace, model: Path) -> Path:
    """Trains the model for --trained_steps by the first way, in a row order of no comparison."""
    run_dir = options.work_dir / f"trained-{options.trained_steps}"
    finished = run_dir / "save" / "modelling"
    if not finished.exists():
        train_all(options, [options_of(options, options.ways[0], model, run_dir, TRAINED_SEED, options.trained_steps)])
    return finished


def losses_by_way(options: argparse.Namespace, model: Path, seed: int) -> dict[str, list[float]]:
    """Trains all ways in one launch; returns the loss of every step by way."""
    run_dirs = {way: run_dir_of(options, way, seed) for way in options.ways}
    commands = [options_of(options, way, model, run_dir, seed, options.steps) for way, run_dir in run_dirs.items()]
    done = train_all(options, commands)
    for run_dir in run_dirs.values():
        shutil.rmtree(run_dir / "save")  # 14 GB each at 7 B
    return {way: [entry["loss"] for entry in read_outcome(run_dir, done).entries] for way, run_dir in run_dirs.items()}


def train_all(options: argparse.Namespace, commands: list[list[str]]) -> subprocess.CompletedProcess:
    """Runs the command lines in one launch; exits with the end of the output when one failed."""
    done = run_many(options.work_dir / "commands.json", commands)
    if done.returncode:
        sys.exit(done.stdout[-1000:] + done.stderr[-3000:])
    return done


def options_of(options: argparse.Namespace, way: str, model: Path, run_dir: Path, seed: int, steps: int) -> list[str]:
    """Options of train.py for one run."""
    flags = ["--pretrained", str(model), "--dataset", *options.parts, "--allow_other_data", "--plugin", "zero2"]
    flags += ["--mixed_precision", options.precision, "--max_steps", str(steps), "--skip_save_each_epoch"]
    flags += ["--save_interval", "1000000", "--num_epochs", "100", "--shuffle", "global", "--lr", options.lr]
    flags += ["--max_length", options.max_length, "--seed", str(seed)]
    halves = 2 if way in HALVES else 1
    flags += ["--micro_batch_size", str(options.micro_batch_size // halves), "--accumulation_steps", str(halves)]
    return [*flags, *WAYS[HALVES.get(way, way)], *output_options(run_dir)]


def run_dir_of(options: argparse.Namespace, way: str, seed: int) -> Path:
    """Directory of a run's output files."""
    return options.work_dir / f"{way}-{seed}"


def compare(losses: dict[str, list[list[float]]]) -> list[dict[str, str | float | None]]:
    """Compares every way with the first one, over the seeds so far.

    Args:
        losses: for each way and seed, the loss of every step.

    Returns:
        A row for each way: means over the seeds, and the standard error of the mean difference in
        the second half of the steps; None for a single seed.
    """
    reference = np.array(next(iter(losses.values())))
    rows = []
    for way, values in losses.items():
        differences = np.array(values) - reference
        second_half = differences[:, differences.shape[1] // 2 :].mean(axis=1)
        error = float(second_half.std(ddof=1) / len(second_half) ** 0.5) if len(second_half) > 1 else None
        rows.append(
            {
                "way": way,
                "mean |difference|": float(np.abs(differences[:, LEFT_OUT:]).mean()),
                "mean difference": float(differences[:, LEFT_OUT:].mean()),
                "of the second half": float(second_half.mean()),
                "its standard error": error,
                "loss of the last 20": float(np.array(values)[:, -20:].mean()),
                "seeds": len(values),
            }
        )
    return rows


def show(value: str | float | None) -> str | int:
    """Formats a cell of the table."""
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else value


def draw(options: argparse.Namespace) -> None:
    """Plots the curves of the first seed with colossal_llama/training/plot_training.py."""
    logs = [str(run_dir_of(options, way, options.seeds[0]) / "logs") for way in options.ways]
    command = [sys.executable, "colossal_llama/training/plot_training.py", *logs, "--labels", *options.ways]
    subprocess.run([*command, "--output", str(options.curve)], cwd=PROJECT_ROOT, check=True)


if __name__ == "__main__":
    main()
