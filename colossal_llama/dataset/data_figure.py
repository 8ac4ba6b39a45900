"""Figure of prepared data: tokens by category and bucket, lengths of documents, fill of rows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from colossal_llama.dataset.category_charts import (
    ShownCategories,
    choose_categories,
    draw_buckets,
    draw_fill,
    draw_lengths,
    draw_totals,
)
from colossal_llama.dataset.count_tables import counts_as_record, counts_as_tables
from colossal_llama.dataset.figure_titles import DATA_TITLE
from colossal_llama.dataset.mixture.amounts import short_number
from colossal_llama.dataset.part_counts import PartCounts, count_parts
from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.figures import label_of, save_figure

_NARROW_LENGTHS = 16
"""Up to this factor between short and long segments the histogram's axis is linear."""


def plot_parts(parts: Sequence[Path], name: str, output: Path) -> str:
    """Counts and plots parts; returns the counts as tables.

    Args:
        parts: their directories.
        name: of the data, for the title.
        output: file of the plot; the counts go into one of the same name with the ending .json.

    Raises:
        UserError: a part is damaged, or a file cannot be written.
    """
    counts = count_parts(parts)
    shown = choose_categories(counts.categories, counts.tokens.sum(axis=0))
    _draw(counts, shown, name, output)
    write_json(output.with_suffix(".json"), counts_as_record(counts))
    replaced = [f"{label} in the picture: {name} (no font here can draw it)" for name, label in shown.replaced.items()]
    return "\n\n".join((counts_as_tables(counts), *(["\n".join(replaced)] if replaced else []), f"plotted: {output}"))


def _draw(counts: PartCounts, shown: ShownCategories, name: str, output: Path) -> None:
    """Draws the four charts into one file."""
    import matplotlib
    from matplotlib.figure import Figure

    tokens = shown.sums(counts.tokens.T)
    with matplotlib.rc_context({"font.family": list(shown.fonts)}):
        figure = Figure(figsize=(13, 8), layout="constrained")
        (totals, buckets), (lengths, fill) = figure.subplots(2, 2, width_ratios=(1, 1.35))
        draw_totals(totals, shown, tokens.sum(axis=1))
        draw_buckets(buckets, shown, tokens)
        draw_lengths(lengths, shown, *_lengths(counts, shown))
        draw_fill(fill, *_fill(counts), 100 * counts.fill_of())
        facts = (
            f"{len(counts.parts):,} bucket{'s' if len(counts.parts) > 1 else ''}",
            f"{short_number(counts.total_tokens)} tokens",
            f"{short_number(int(counts.segments.sum()))} segments",
            f"{short_number(int(counts.rows.sum()))} rows of up to {counts.max_length:,} tokens",
        )
        figure.suptitle(f"{label_of(name)}: {', '.join(facts)}")
        save_figure(figure, output, DATA_TITLE)


def _fill(counts: PartCounts) -> tuple[np.ndarray, np.ndarray]:
    """Edges in per cent and rows of a histogram that begins at the emptiest row."""
    bins = len(counts.fill)
    emptiest = min(int(np.argmax(counts.fill > 0)), bins - min(bins, 20))
    step = max(1, (bins - emptiest) // 50)
    first = max(0, bins - step * (-(-(bins - emptiest) // step) + 1))
    starts = np.arange(first, bins, step)
    return np.append(starts, bins) * (100 / bins), np.add.reduceat(counts.fill, starts)


def _lengths(counts: PartCounts, shown: ShownCategories) -> tuple[np.ndarray, np.ndarray, bool]:
    """Edges, counts and scale of the histogram of lengths, without empty bins at its ends."""
    shortest, longest = counts.length_quantile(0.005), counts.length_quantile(1)
    is_logarithmic = longest > _NARROW_LENGTHS * max(shortest, 1)
    edges, per_category = (
        (counts.log_edges, counts.log_lengths) if is_logarithmic else (counts.linear_edges, counts.linear_lengths)
    )
    filled = np.flatnonzero(per_category.sum(axis=0))
    first, last = (filled[0], filled[-1] + 1) if len(filled) else (0, 1)
    step = 1 if is_logarithmic else max(1, (last - first) // 40)
    last = min(first + -(-(last - first) // step) * step, per_category.shape[1])
    starts = np.arange(first, last, step)
    merged = np.add.reduceat(shown.sums(per_category)[:, :last], starts, axis=1)
    return np.append(edges[starts], edges[last]), merged, is_logarithmic
