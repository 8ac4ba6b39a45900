"""The same loss by the fast way and by the plain one: 200 steps on the same real rows, with the curves drawn.

    python benchmarks/loss_parity.py --parts DATA/arrow/part-00000 --work_dir /dev/shm/parity --curve parity.png
    python benchmarks/loss_parity.py --parts … --work_dir … --ways fast fast_halves fp8 --seeds 42 43 44 45

Runs of train.py from the same model, a random one unless --model names another, over the same rows
in the same order: everything fused, everything plain (--fused_kernels False), plain with each
micro-batch cut in two, which changes nothing but the rounding, and fused in 8 bits (--fp8). The
plain way in halves is the noise: the fast way should be no farther from the plain one than that is.
`--ways` chooses; the first one chosen is what the others are compared with. 7 B needs `--ways
recomputed recomputed_halves fp8_recomputed`.

One run does not show an offset that is smaller than what rounding alone does to a run: `--seeds`
repeats all ways with other orders of the rows. `--model` starts from a trained model,
`--trained_steps` from the one that the first way makes of the random one in so many steps: where
the loss no longer falls steeply, rounding moves it much less.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.random_run import PROJECT_ROOT, SHAPES, make_model, outcome_of, outputs_under, run_many
from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.console import table

PLAIN = ("--fused_kernels", "False")
WAYS = {"plain": PLAIN, "fast": (), "fp8": ("--fp8",), "recomputed": ("--use_grad_checkpoint",)}
WAYS["fp8_recomputed"] = (*WAYS["fp8"], *WAYS["recomputed"])
HALVES = {"halves": "plain", "fast_halves": "fast", "recomputed_halves": "recomputed"}
"""Each way whose micro-batches are cut in two, and the way it is otherwise."""
TRAINED_SEED = 0
"""Of the order in which --trained_steps trains."""
LEFT_OUT = 20
"""Steps of steep descent at the beginning, where any two runs differ most."""


def main() -> None:
    """Runs all ways seed by seed; after each seed prints and writes how far they are apart so far; draws the curves."""
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
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="190M")
    parser.add_argument("--model", type=Path, help="start from this one instead of a random one of --shape")
    parser.add_argument(
        "--trained_steps", type=int, default=0, help="train the model so many steps by the first way before"
    )
    parser.add_argument("--parts", nargs="+", required=True)
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200, help=f"more than {LEFT_OUT}")
    parser.add_argument("--micro_batch_size", type=int, default=4)
    parser.add_argument("--max_length", default="4096")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--lr", default="6e-4")
    parser.add_argument("--ways", nargs="+", choices=(*WAYS, *HALVES), default=["plain", "halves", "fast", "fp8"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[42], help="of the order of the rows; one launch each")
    parser.add_argument("--output", type=Path, help="json file for figures and losses, written after every seed")
    parser.add_argument("--curve", type=Path, help="PNG of the first seed's losses")
    options = parser.parse_args()
    if options.steps <= LEFT_OUT:
        parser.error(f"--steps {options.steps}: the first {LEFT_OUT} are left out of every figure")
    if options.trained_steps and TRAINED_SEED in options.seeds:
        parser.error(f"--seeds {TRAINED_SEED}: the order in which --trained_steps trains")
    return options


def trained(options: argparse.Namespace, model: Path) -> Path:
    """The model after --trained_steps steps by the first way, over the rows in an order that no comparison has."""
    place = options.work_dir / f"trained-{options.trained_steps}"
    finished = place / "save" / "modelling"
    if not finished.exists():
        train_all(options, [words_of(options, options.ways[0], model, place, TRAINED_SEED, options.trained_steps)])
    return finished


def losses_by_way(options: argparse.Namespace, model: Path, seed: int) -> dict[str, list[float]]:
    """The loss of every step by way, in one launch."""
    places = {way: place_of(options, way, seed) for way in options.ways}
    commands = [words_of(options, way, model, place, seed, options.steps) for way, place in places.items()]
    done = train_all(options, commands)
    for place in places.values():
        shutil.rmtree(place / "save")  # 14 GB each at 7 B
    return {way: [entry["loss"] for entry in outcome_of(place, done).entries] for way, place in places.items()}


def train_all(options: argparse.Namespace, commands: list[list[str]]) -> subprocess.CompletedProcess:
    """Runs the command lines in one launch; ends with the last words of one that failed."""
    done = run_many(options.work_dir / "commands.json", commands)
    if done.returncode:
        sys.exit(done.stdout[-1000:] + done.stderr[-3000:])
    return done


def words_of(options: argparse.Namespace, way: str, model: Path, place: Path, seed: int, steps: int) -> list[str]:
    """The options of train.py for one run."""
    words = ["--pretrained", str(model), "--dataset", *options.parts, "--allow_other_data", "--plugin", "zero2"]
    words += ["--mixed_precision", options.precision, "--max_steps", str(steps), "--skip_save_each_epoch"]
    words += ["--save_interval", "1000000", "--num_epochs", "100", "--shuffle", "global", "--lr", options.lr]
    words += ["--max_length", options.max_length, "--seed", str(seed)]
    halves = 2 if way in HALVES else 1
    words += ["--micro_batch_size", str(options.micro_batch_size // halves), "--accumulation_steps", str(halves)]
    return [*words, *WAYS[HALVES.get(way, way)], *outputs_under(place)]


def place_of(options: argparse.Namespace, way: str, seed: int) -> Path:
    """Where a run's outputs lie."""
    return options.work_dir / f"{way}-{seed}"


def compare(losses: dict[str, list[list[float]]]) -> list[dict[str, str | float | None]]:
    """How far every way is from the first one, over the seeds so far.

    Args:
        losses: by way, for each seed, of every step.

    Returns:
        A row for each way: means over the seeds, and the standard error of the mean difference of
            the second half of the steps, which is
        not known (None) of a single seed.
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
    """A cell of the table."""
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else value


def draw(options: argparse.Namespace) -> None:
    """The curves of the first seed, with colossal_llama/training/plot_training.py."""
    logs = [str(place_of(options, way, options.seeds[0]) / "logs") for way in options.ways]
    words = [sys.executable, "colossal_llama/training/plot_training.py", *logs, "--labels", *options.ways]
    subprocess.run([*words, "--output", str(options.curve)], cwd=PROJECT_ROOT, check=True)


if __name__ == "__main__":
    main()
