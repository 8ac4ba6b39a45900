"""Draws the record of a plan as a PNG: shares by bucket, and epochs by category."""

from pathlib import Path
from typing import Any

import numpy as np

from colossal_llama.dataset.category_charts import ShownCategories, choose_categories, draw_buckets, frame
from colossal_llama.dataset.figure_titles import PLAN_TITLE
from colossal_llama.dataset.mixture.amounts import short_number
from colossal_llama.utils.figures import save_figure


def draw_plan(record: dict, path: Path) -> None:
    """Draws the plan into a file.

    Raises:
        UserError: it cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    entries = record["categories"]
    columns = {key: [entry[key] for entry in entries.values()] for key in ("group", "available_tokens")}
    bucket_tokens = np.array([entry["bucket_tokens"] for entry in entries.values()], np.int64)
    shown = choose_categories(list(entries), bucket_tokens.sum(axis=1), columns["group"])
    tokens, available = shown.sums(bucket_tokens), shown.sums(np.array(columns["available_tokens"], np.int64))
    with matplotlib.rc_context({"font.family": list(shown.fonts)}):
        figure = Figure(figsize=(13, 3.2 + 0.28 * len(tokens)), layout="constrained")
        times, shares = figure.subplots(1, 2, width_ratios=(2, 3))
        _draw_epochs(times, shown, tokens.sum(axis=1), available)
        draw_buckets(shares, shown, tokens, as_shares=True)
        figure.suptitle(f"{short_number(record['total_tokens'])} tokens in {tokens.shape[1]:,} buckets")
        save_figure(figure, path, PLAN_TITLE)


def _draw_epochs(axes: Any, shown: ShownCategories, tokens: np.ndarray, available: np.ndarray) -> None:
    positions, epochs = np.arange(len(tokens)), tokens / np.maximum(available, 1)
    bars = axes.barh(positions, epochs, color=shown.colours, height=0.75)
    labels = [f"{epoch:.2f} ({short_number(int(count))})" for epoch, count in zip(epochs, tokens, strict=True)]
    axes.bar_label(bars, labels, padding=4, fontsize="small")
    axes.set_yticks(positions, shown.labels, fontsize="small")
    axes.set_ylim(len(tokens) - 0.5, -0.5)
    axes.set(xlabel="epochs", title="epochs (tokens) by category", xlim=(0, 1.4 * max(epochs.max(initial=0), 1)))
    frame(axes, "x")
