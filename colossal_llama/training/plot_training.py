r"""Plots the loss of runs by step and by tokens seen, from their metrics.jsonl.

    python colossal_llama/training/plot_training.py logs_dir --output loss.png
    python colossal_llama/training/plot_training.py run_a/logs run_b/logs \
        --labels "lr 1e-4" "lr 3e-4" --output compare.png

Validation losses and accuracies of benchmark questions are drawn where a run has them.
"""

import argparse
import itertools
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from colossal_llama.utils.cli import CollectingArgumentParser, number_in_range
from colossal_llama.utils.errors import UserError, run_main
from colossal_llama.utils.figures import figure_output_problem, save_figure

if TYPE_CHECKING:
    import numpy as np


_NOT_METRICS = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""Of what is not text, not JSON, or no such numbers."""
_TITLE = "plot_training of colossal-llama"
"""In the metadata of a plot: tells those that may be replaced from other files."""


@dataclass(frozen=True)
class Curve:
    """Losses of one run, an entry for each step that has a loss."""

    label: str
    steps: "np.ndarray"
    tokens: "np.ndarray"
    """Tokens seen up to each step."""
    losses: "np.ndarray"
    """In nats per target token."""
    evaluations: "np.ndarray"
    """(evaluations, 3): step, tokens seen, validation loss."""
    smoothing_steps: int = 1
    accuracies: "dict[str, np.ndarray]" = field(default_factory=dict)
    """By task (evaluations, 2): step, share of right answers."""

    def smoothed(self) -> "np.ndarray":
        """Running mean over the last `smoothing_steps` steps, fewer at the beginning."""
        import numpy as np

        sums = np.cumsum(np.concatenate([[0.0], self.losses]))
        ends = np.arange(1, len(self.losses) + 1)
        begins = np.maximum(0, ends - self.smoothing_steps)
        return (sums[ends] - sums[begins]) / (ends - begins)


def main() -> None:
    """Parses the command line, reads the curves, plots them, and prints first and last loss."""
    options = parse_arguments()
    curves = [
        read_curve(run, label, options.smoothing) for run, label in zip(options.runs, options.labels, strict=True)
    ]
    draw_curves(curves, options.output)
    for curve in curves:
        print(
            f"{curve.label}: loss {curve.losses[0]:.4f} at step {curve.steps[0]}, {curve.losses[-1]:.4f} at step "
            f"{curve.steps[-1]}"
        )
    print(f"plotted: {options.output}")


def parse_arguments() -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = CollectingArgumentParser(
        prog="plot_training.py",
        description="Plot the loss of runs of train.py, by step and by tokens seen.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a --tensorboard_dir, or its metrics.jsonl")
    parser.add_argument(
        "--output", type=Path, default=Path("loss.png"), metavar="FILE", help="file of the plot (png, pdf, svg)"
    )
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="a name for each run (default: its path)")
    parser.add_argument(
        "--smoothing",
        type=number_in_range(int, 1),
        default=1,
        metavar="STEPS",
        help="plot the running mean over so many steps, and the single steps pale behind it",
    )
    options = parser.parse_args()
    options.runs = options.runs or []
    if options.labels is None:
        options.labels = [str(run) for run in options.runs]
    if options.runs and len(options.labels) != len(options.runs):
        parser.problem(f"--labels names {len(options.labels)} runs, but {len(options.runs)} are given")
    if problem := figure_output_problem(options.output, _TITLE):
        parser.problem(f"--output {problem}")
    parser.finish()
    return options


def read_curve(run: Path, label: str, smoothing_steps: int = 1) -> Curve:
    """Reads the curve of a run from its metrics.

    Raises:
        UserError: the file is absent or empty, or is not a metrics.jsonl.
    """
    import numpy as np

    from colossal_llama.training.metrics import METRICS_FILE, read_metrics  # imports torch: not for --help

    try:
        entries = [entry for entry in read_metrics(run) if entry["loss"] is not None]  # null: NaN or Inf
        steps, tokens, losses = (
            np.array([entry[name] for entry in entries], dtype=kind)
            for name, kind in (("step", int), ("tokens_seen", int), ("loss", float))
        )
        if {steps.ndim, tokens.ndim, losses.ndim} != {1}:
            raise ValueError("a step, its tokens and its loss are a number each")
        found = [(e["step"], e["tokens_seen"], e["eval_loss"]) for e in entries if e.get("eval_loss") is not None]
        evaluations = np.array(found, dtype=float).reshape(-1, 3)
        accuracies = _accuracies(entries)
    except OSError as error:
        raise UserError(f"{run}: {METRICS_FILE} cannot be read there ({error.strerror})") from error
    except _NOT_METRICS as error:
        raise UserError(f"{run}: these are not metrics written by train.py ({error})") from error
    if not len(steps):
        raise UserError(f"{run}: the metrics hold no finished step yet")
    return Curve(label, steps, tokens, losses, evaluations, smoothing_steps, accuracies)


def _accuracies(entries: list[dict[str, Any]]) -> "dict[str, np.ndarray]":
    import numpy as np

    found: dict[str, list[tuple[int, float]]] = {}
    for entry in entries:
        for task, share in entry.get("eval_task_accuracy", {}).items():
            found.setdefault(task, []).append((entry["step"], share))
    return {task: np.array(points, dtype=float).reshape(-1, 2) for task, points in found.items()}


def draw_curves(curves: list[Curve], output: Path) -> None:
    """Plots all curves into one figure: by step on the left, by tokens seen next to it.

    A third panel has the accuracies of benchmark questions, where a run has any.

    Raises:
        UserError: the file cannot be written, or matplotlib does not know its format.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    has_accuracies = any(curve.accuracies for curve in curves)
    figure, axes = pyplot.subplots(1, 2 + has_accuracies, figsize=(11 + 5 * has_accuracies, 4), layout="constrained")
    panels = axes[:2]
    panels[1].sharey(panels[0])
    panels[1].tick_params(labelleft=False)
    for curve in curves:
        label = curve.label.replace("$", r"\$")  # no formula
        label = f" {label}" if label.startswith("_") else label  # which matplotlib would leave out
        for column, (panel, x) in enumerate(zip(panels, (curve.steps, curve.tokens), strict=True)):
            marker = "o" if len(curve.steps) == 1 else None
            (line,) = panel.plot(x, curve.smoothed(), label=label, marker=marker)
            if len(curve.evaluations):
                evaluated_at, losses = curve.evaluations[:, column], curve.evaluations[:, 2]
                panel.plot(evaluated_at, losses, "o--", color=line.get_color(), label=f"{label}, validation")
            if curve.smoothing_steps > 1:
                panel.plot(x, curve.losses, color=line.get_color(), alpha=0.25)
    panels[0].set(xlabel="optimizer step", ylabel="loss (nats per target token)")
    panels[1].set(xlabel="tokens seen")
    if has_accuracies:
        _draw_accuracies(curves, axes[2])
    for panel in axes:
        panel.grid(alpha=0.3)
    panels[0].legend()
    try:
        save_figure(figure, output, _TITLE)
    finally:
        pyplot.close(figure)


def _draw_accuracies(curves: list[Curve], panel: Any) -> None:
    """Plots accuracies by step; a task has a colour, a run a line style."""
    tasks = list(dict.fromkeys(task for curve in curves for task in curve.accuracies))
    for curve, style in zip(curves, itertools.cycle(("-", "--", ":", "-.")), strict=False):
        for task, points in curve.accuracies.items():
            label = task if len(curves) == 1 else f"{curve.label}, {task}"
            label = f" {label}" if label.startswith("_") else label
            colour = f"C{tasks.index(task)}"
            panel.plot(*points.T, "o", ls=style, color=colour, label=label.replace("$", r"\$"))
    panel.set(xlabel="optimizer step", ylabel="share of right answers")
    panel.legend()


if __name__ == "__main__":
    run_main(main)
