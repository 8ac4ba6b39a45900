"""Draw the loss of one or several runs, by step and by tokens seen, from their metrics.jsonl.

python colossal_llama/training/plot_training.py logs_dir --output loss.png
python colossal_llama/training/plot_training.py run_a/logs run_b/logs --labels "lr 1e-4" "lr 3e-4" --output compare.png
"""

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from colossal_llama.utils.cli import CollectingArgumentParser, number_in_range
from colossal_llama.utils.errors import run_main


def main() -> None:
    """Parse, read, draw, say."""
    options = parse_arguments()
    from colossal_llama.training.loss_curves import draw_curves, read_curve

    curves = [
        read_curve(run, label, options.smoothing) for run, label in zip(options.runs, options.labels, strict=True)
    ]
    draw_curves(curves, options.output)
    for curve in curves:
        print(
            f"{curve.label}: loss {curve.losses[0]:.4f} at step {curve.steps[0]}, {curve.losses[-1]:.4f} at step "
            f"{curve.steps[-1]}"
        )
    print(f"drawn: {options.output}")


def parse_arguments() -> argparse.Namespace:
    """The command line, checked."""
    parser = CollectingArgumentParser(
        prog="plot_training.py",
        description="Draw the loss of runs of train.py, by step and by tokens seen.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a --tensorboard_dir, or its metrics.jsonl")
    parser.add_argument(
        "--output", type=Path, default=Path("loss.png"), metavar="FILE", help="the picture (png, pdf, svg)"
    )
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="a name for each run (default: its path)")
    parser.add_argument(
        "--smoothing",
        type=number_in_range(int, 1),
        default=1,
        metavar="STEPS",
        help="draw the mean of so many steps over the single ones",
    )
    options = parser.parse_args()
    if options.labels is None:
        options.labels = [str(run) for run in options.runs]
    if len(options.labels) != len(options.runs):
        parser.problem(f"--labels names {len(options.labels)} runs, but {len(options.runs)} are given")
    if options.output.suffix.lower() not in (".png", ".pdf", ".svg"):
        parser.problem(f"--output {options.output}: the name must end in .png, .pdf or .svg")
    parser.finish()
    return options


if __name__ == "__main__":
    run_main(main)
