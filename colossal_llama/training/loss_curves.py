"""Loss curves: read from a run's record, drawn by step and by tokens."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from colossal_llama.training.metrics import METRICS_FILE, read_metrics
from colossal_llama.utils.errors import UserError


@dataclass(frozen=True)
class Curve:
    """One run: `steps`, `tokens` (seen so far) and `losses` (nats per target token), one of each a step that had a loss."""

    label: str
    steps: np.ndarray
    tokens: np.ndarray
    losses: np.ndarray
    evaluations: np.ndarray
    """(evaluations, 3): step, tokens and validation loss."""
    smoothing: int = 1

    def smoothed(self) -> np.ndarray:
        """Running mean over the last `smoothing` steps (fewer at the beginning)."""
        sums = np.cumsum(np.concatenate([[0.0], self.losses]))
        ends = np.arange(1, len(self.losses) + 1)
        begins = np.maximum(0, ends - self.smoothing)
        return (sums[ends] - sums[begins]) / (ends - begins)


def read_curve(run: Path, label: str, smoothing: int = 1) -> Curve:
    """Reads a run's metrics.jsonl.

    Raises:
        UserError: there is none, it is empty, or it is not one.
    """
    try:
        entries = [entry for entry in read_metrics(run) if entry["loss"] is not None]  # null: a bad step
        steps, tokens, losses = (
            np.array([entry[name] for entry in entries], dtype=kind)
            for name, kind in (("step", int), ("tokens_seen", int), ("loss", float))
        )
    except OSError as error:
        raise UserError(f"{run}: no {METRICS_FILE} can be read there ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:  # no text, no JSON, no such numbers
        raise UserError(f"{run}: this is not a record written by train.py ({error})") from error
    if not len(steps):
        raise UserError(f"{run}: the record is empty, no step was finished yet")
    found = [(e["step"], e["tokens_seen"], e["eval_loss"]) for e in entries if e.get("eval_loss") is not None]
    evaluations = np.array(found, dtype=float).reshape(-1, 3)
    return Curve(label, steps, tokens, losses, evaluations, smoothing)


def draw_curves(curves: list[Curve], output: Path) -> None:
    """Draws all curves into one picture with two panels.

    Raises:
        UserError: the picture cannot be written, or not in the format that its name asks for.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
    for curve in curves:
        for column, (panel, position) in enumerate(zip(panels, (curve.steps, curve.tokens), strict=True)):
            marker = "o" if len(curve.steps) == 1 else None
            (line,) = panel.plot(position, curve.smoothed(), label=curve.label, marker=marker)
            if len(curve.evaluations):
                places, losses = curve.evaluations[:, column], curve.evaluations[:, 2]
                panel.plot(places, losses, "o--", color=line.get_color(), label=f"{curve.label}, validation")
            if curve.smoothing > 1:
                panel.plot(position, curve.losses, color=line.get_color(), alpha=0.25)
    panels[0].set(xlabel="optimizer step", ylabel="loss (nats per target token)")
    panels[1].set(xlabel="tokens seen")
    for panel in panels:
        panel.grid(alpha=0.3)
    panels[0].legend()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, dpi=130)
    except (OSError, ValueError) as error:
        raise UserError(f"{output} cannot be drawn: {getattr(error, 'strerror', None) or error}") from error
    finally:
        pyplot.close(figure)
