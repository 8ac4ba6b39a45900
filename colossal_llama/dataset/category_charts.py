"""Charts of categories, in one look: the largest ones in colours, the others as one.

The same category has the same colour in every chart of a figure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from colossal_llama.dataset.mixture.amounts import short_number
from colossal_llama.utils.figures import fonts_for, label_of, ranks_of_unprintable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN_CATEGORIES = 14
"""Bars of categories in a chart, with that of all others: more cannot be told apart."""
MOST_BARS = 120
"""Bars of buckets that a chart has room for; beyond, each stands for several buckets."""
_OTHERS_COLOUR = "0.72"


@dataclass(frozen=True)
class ShownCategories:
    """Categories of a figure, the largest first, small ones summed up.

    Attributes:
        labels: as they are drawn.
        colours: one each.
        members: numbers of the categories that each stands for.
        fonts: for the setting `font.family`.
        replaced: names that no font of this host can draw, with the labels in their place.
    """

    labels: tuple[str, ...]
    colours: tuple[Any, ...]
    members: tuple[tuple[int, ...], ...]
    fonts: tuple[str, ...]
    replaced: dict[str, str]

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums an array (categories, …) to (shown categories, …)."""
        return np.stack([values[list(members)].sum(axis=0) for members in self.members])


def choose_categories(
    names: Sequence[str], tokens: np.ndarray, groups: Sequence[str | None] | None = None
) -> ShownCategories:
    """Chooses the categories to show.

    Args:
        names: of all, at least one.
        tokens: (categories,) their sizes.
        groups: of each category; with it the shown ones are in the order of groups and names.
    """
    order = sorted(range(len(names)), key=lambda number: (-tokens[number], names[number]))
    own = order if len(order) <= SHOWN_CATEGORIES else order[: SHOWN_CATEGORIES - 1]
    rest = tuple(order[len(own) :])
    if groups is not None:
        own = sorted(own, key=lambda number: (groups[number] or "", names[number]))
    labels = [label_of(names[number], groups[number] if groups else None) for number in own]
    fonts, missing = fonts_for(labels)
    replaced = ranks_of_unprintable(labels, missing)
    colours = _colours(len(own))
    members: list[tuple[int, ...]] = [(number,) for number in own]
    drawn = [replaced.get(label, label) for label in labels]
    if rest:
        drawn.append(f"{len(rest):,} others")
        colours.append(_OTHERS_COLOUR)
        members.append(rest)
    by_name = {names[number]: replaced[label] for number, label in zip(own, labels, strict=True) if label in replaced}
    return ShownCategories(tuple(drawn), tuple(colours), tuple(members), tuple(fonts), by_name)


def _colours(count: int) -> list[Any]:
    """Colours that can be told apart, without grey: that is the others'."""
    import matplotlib

    name, greys = ("tab10", (7,)) if count < 10 else ("tab20", (14, 15))
    palette = matplotlib.colormaps[name]
    return [palette(number) for number in range(palette.N) if number not in greys][:count]


def draw_totals(axes: "Axes", shown: ShownCategories, tokens: np.ndarray) -> None:
    """Draws a bar for each category, with its tokens and share: the legend of the other charts.

    Args:
        axes: to draw into.
        shown: categories.
        tokens: (shown categories,).
    """
    total = max(int(tokens.sum()), 1)
    positions = np.arange(len(tokens))
    bars = axes.barh(positions, tokens, color=shown.colours, height=0.75)
    texts = [f"{short_number(count)}  {100 * count / total:.3g} %" for count in tokens]
    axes.bar_label(bars, texts, padding=4, fontsize="small")
    axes.set_yticks(positions, shown.labels, fontsize="small")
    axes.set_ylim(max(len(tokens), 6) - 0.5, -0.5)
    axes.set_xlim(0, 1.3 * max(int(tokens.max(initial=0)), 1))
    _count_axis(axes.xaxis)
    axes.set(title="tokens by category", xlabel="tokens")
    frame(axes, "x")


def draw_buckets(axes: "Axes", shown: ShownCategories, tokens: np.ndarray, as_shares: bool = False) -> None:
    """Draws each bucket as a bar, its categories stacked.

    Args:
        axes: to draw into.
        shown: categories.
        tokens: (shown categories, buckets).
        as_shares: True: every bar is 100 %.
    """
    buckets = tokens.shape[1]
    per_bar = -(-buckets // MOST_BARS) or 1
    starts = np.arange(0, buckets, per_bar)
    heights = np.add.reduceat(tokens, starts, axis=1).astype(float) if buckets else tokens.astype(float)
    widths = np.diff([*starts, buckets])
    heights /= np.maximum(heights.sum(axis=0), 1) / 100 if as_shares else np.maximum(widths, 1)
    is_dense = len(starts) > 40
    below = np.zeros(len(starts))
    for label, colour, height in reversed(list(zip(shown.labels, shown.colours, heights, strict=True))):
        centres = starts + (widths - 1) / 2
        axes.bar(centres, height, widths * (1 if is_dense else 0.82), below, color=colour, label=label)
        below += height
    side = 1.5 if buckets == 1 else 0.02 * buckets
    axes.set_xlim(-0.5 - side, buckets - 0.5 + side)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    if buckets == 1:
        axes.set_xticks([0])
    if as_shares:
        axes.set(ylim=(0, 100), ylabel="share of the tokens (%)")
    else:
        _count_axis(axes.yaxis)
        axes.set(ylabel="tokens" if per_bar == 1 else "tokens of a bucket, mean of a bar")
    several = f" (each bar: {per_bar:,} buckets)" if per_bar > 1 else ""
    axes.set(title="shares by bucket" if as_shares else "tokens by bucket", xlabel=f"bucket{several}")
    frame(axes, "y")


def draw_lengths(
    axes: "Axes", shown: ShownCategories, edges: np.ndarray, counts: np.ndarray, is_logarithmic: bool
) -> None:
    """Draws a histogram of the segments' lengths for each category, as outlines over each other.

    Args:
        axes: to draw into.
        shown: categories.
        edges: (bins + 1,) lengths in tokens.
        counts: (shown categories, bins).
        is_logarithmic: the edges grow by factors.
    """
    peaks = counts.max(axis=1, initial=0)
    alpha = 0.15 if len(counts) < 5 else 0  # areas of many hide each other
    for colour, of_category in zip(shown.colours, counts, strict=True):
        if of_category.any():
            axes.stairs(of_category, edges, color=colour, linewidth=1.6)
            axes.stairs(of_category, edges, color=colour, fill=True, alpha=alpha)
    if is_logarithmic:
        axes.set_xscale("log", base=2)
    else:
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.xaxis.set_major_formatter(_formatter(lambda value: f"{value:,.0f}"))
    if len(positive := peaks[peaks > 0]) and positive.max() > 20 * positive.min():
        axes.set_yscale("log")
        axes.set_ylim(0.7, 2 * positive.max())
    _count_axis(axes.yaxis)
    axes.set(title="lengths of documents", ylabel="segments")
    axes.set_xlabel("tokens of a segment: a document, or a piece of one longer than a row")
    frame(axes, "y")


def draw_fill(axes: "Axes", edges: np.ndarray, counts: np.ndarray, mean: float) -> None:
    """Draws how full rows are.

    Args:
        axes: to draw into.
        edges: (bins + 1,) fill in per cent.
        counts: (bins,) rows.
        mean: fill of all rows together, in per cent.
    """
    axes.stairs(counts, edges, fill=True, color="tab:blue", alpha=0.75)
    positive = counts[counts > 0]
    if len(positive) and positive.max() > 50 * np.median(positive):
        axes.set_yscale("log")
        axes.set_ylim(0.7, 3 * positive.max())
    _count_axis(axes.yaxis)
    axes.axvline(mean, color="black", linestyle="--", linewidth=1)
    axes.set(title=f"fill of rows: {mean:.5g} % together", ylabel="rows")
    axes.set_xlabel("tokens of a row, in % of the longest that is allowed")
    axes.xaxis.set_major_formatter(_formatter(lambda value: f"{value:.6g}"))
    frame(axes, "y")


def _count_axis(axis: Any) -> None:
    """Labels an axis of counts, which begins at 0 unless it is logarithmic."""
    if axis.get_scale() == "linear":
        axis.get_major_locator().set_params(integer=True)
        _, last = axis.get_view_interval()
        axis.set_view_interval(0, max(last, 1), ignore=True)
    axis.set_major_formatter(_formatter(short_number))


def _formatter(function: Callable[[float], str]) -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: function(value))


def frame(axes: "Axes", grid: str) -> None:
    """Gives charts one look: a pale grid along an axis, no frame at the top and on the right."""
    axes.grid(axis=grid, alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
