"""The same loss by the fast way and by the plain one: 200 steps on the same real rows, with the curves drawn.

    python benchmarks/loss_parity.py --parts DATA/arrow/part-00000 --work_dir /dev/shm/parity --curve parity.png

Runs of train.py from the same random model over the same rows in the same order: everything fused, everything plain
(--fused_kernels False), plain with each micro-batch cut in two, which changes nothing but the rounding, and fused in 8 bits (--fp8).
The plain way in halves is the noise: the fast way should be no farther from the plain one than that is. `--ways` chooses; the first
one chosen is what the others are compared with. 7 B needs `--ways recomputed recomputed_halves fp8_recomputed`.
"""

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.random_run import PROJECT_ROOT, SHAPES, make_model, outcome_of, outputs_under, run_many
from colossal_llama.utils.files import write_json

PLAIN = ("--fused_kernels", "False")
WAYS = {"plain": PLAIN, "halves": PLAIN, "fast": (), "fp8": ("--fp8",), "recomputed": ("--use_grad_checkpoint",)}
WAYS["fp8_recomputed"] = (*WAYS["fp8"], *WAYS["recomputed"])
WAYS["recomputed_halves"] = WAYS["recomputed"]
LEFT_OUT = 20
"""Steps of steep descent at the beginning, where any two runs differ most."""


def main() -> None:
    """Runs the three ways, prints and writes how far they are apart, draws the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="190M")
    parser.add_argument("--parts", nargs="+", required=True)
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--micro_batch_size", type=int, default=4)
    parser.add_argument("--max_length", default="4096")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--lr", default="6e-4")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["plain", "halves", "fast", "fp8"])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--curve", type=Path)
    options = parser.parse_args()
    model = options.work_dir / "model"
    if not model.exists():
        make_model(model, options.shape)
    losses = losses_by_way(options, model)
    figures = compare(losses)
    print(figures, flush=True)
    if options.output:
        write_json(options.output, {**figures, "losses": losses})
    if options.curve:
        draw(options)


def losses_by_way(options: argparse.Namespace, model: Path) -> dict[str, list[float]]:
    """The loss of every step by way."""
    common = ["--pretrained", str(model), "--dataset", *options.parts, "--allow_other_data", "--plugin", "zero2"]
    common += ["--mixed_precision", options.precision, "--max_steps", str(options.steps), "--skip_save_each_epoch"]
    common += ["--save_interval", "1000000", "--num_epochs", "100", "--shuffle", "global", "--lr", options.lr]
    common += ["--max_length", options.max_length]
    whole = ["--micro_batch_size", str(options.micro_batch_size)]
    halves = ["--micro_batch_size", str(options.micro_batch_size // 2), "--accumulation_steps", "2"]
    places = {way: options.work_dir / way for way in options.ways}
    commands = []
    for way, place in places.items():
        rows = halves if way.endswith("halves") else whole
        commands.append([*common, *rows, *WAYS[way], *outputs_under(place)])
    done = run_many(options.work_dir / "commands.json", commands)
    if done.returncode:
        sys.exit(done.stdout[-1000:] + done.stderr[-3000:])
    return {way: [entry["loss"] for entry in outcome_of(place, done).entries] for way, place in places.items()}


def compare(losses: dict[str, list[float]]) -> dict[str, float]:
    """Mean absolute differences from the first way, and the mean loss of the last 20 steps of each."""
    first, *others = losses
    figures = {}
    for way in others:
        differences = np.array(losses[way])[LEFT_OUT:] - np.array(losses[first])[LEFT_OUT:]
        figures[f"{way} - {first}: mean |difference|"] = float(np.abs(differences).mean())
        figures[f"{way} - {first}: mean difference"] = float(differences.mean())
    return {**figures, **{f"{way}: last 20 steps": float(np.mean(values[-20:])) for way, values in losses.items()}}


def draw(options: argparse.Namespace) -> None:
    """The curves, with plot_training.py."""
    logs = [str(options.work_dir / way / "logs") for way in options.ways]
    words = [sys.executable, "plot_training.py", *logs, "--labels", *options.ways]
    subprocess.run([*words, "--output", str(options.curve)], cwd=PROJECT_ROOT, check=True)


if __name__ == "__main__":
    main()
