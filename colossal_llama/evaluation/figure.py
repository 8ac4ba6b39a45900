"""Figure of scores: a bar for each model by task and group, with standard errors and chance."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossal_llama.evaluation.tables import GROUP, TASK, Row
from colossal_llama.utils.figures import distinct_labels, fonts_for, label_of, ranks_of_unprintable, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURE_TITLE = "evaluation by colossal_llama"
COLOURS = ("#6fb1e8", "#f6c89a", "#a8d8a8", "#d7b9ee", "#f2a7b0", "#cfcfcf", "#f3e08c", "#9fdad6")
_BAR_INCHES, _GAP_BARS, _TASK_GAP_BARS = 0.21, 0.6, 0.7
_INK, _PALE = "#333333", "#8a8a8a"


def draw_scores(rows: Sequence[Row], models: Sequence[str], output: Path) -> dict[str, str]:
    """Draws the scores of tasks and groups.

    Args:
        rows: of the table.
        models: in the order of the bars.
        output: file of the figure.

    Returns:
        What stands in the figure for names that no font of this host can draw.

    Raises:
        UserError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    shown = [row for row in rows if row.level in (TASK, GROUP) and row.scores]
    if not shown:
        return {}
    fonts, missing = fonts_for([*(row.name for row in shown), *models])
    short = ranks_of_unprintable([*(row.name for row in shown), *models], missing)
    middles, height_bars = _places(shown, len(models))
    with matplotlib.rc_context({"font.family": fonts, "font.size": 9}):
        figure = Figure(figsize=(8.5, 1.3 + _BAR_INCHES * height_bars), layout="constrained")
        axes = figure.subplots()
        labels_of_models = distinct_labels([short.get(model, model) for model in models])
        for number, model in enumerate(models):
            _draw_model(axes, shown, middles, model, number, labels_of_models)
        _draw_chance(axes, shown, middles, len(models))
        _label_rows(axes, shown, middles, height_bars, short)
        axes.set_xlim(0, _limit(shown))
        axes.set_xlabel("right answers in percent, ± standard error")
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.grid(axis="x", color="#eeeeee", linewidth=0.8)
        axes.set_axisbelow(True)
        handles, labels = axes.get_legend_handles_labels()
        if labels[0] == "chance":  # lines come before bars
            handles, labels = [*handles[1:], handles[0]], [*labels[1:], labels[0]]
        columns = 1 if max(map(len, labels)) > 22 else min(len(labels), 4)
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False)
        save_figure(figure, output, FIGURE_TITLE)
    return short


def _places(rows: Sequence[Row], models: int) -> tuple[list[float], float]:
    """Middle of each row's bars from the top, in bars, and the height of all."""
    middles: list[float] = []
    at = 0.0
    for row in rows:
        at += _TASK_GAP_BARS if row.level == TASK and middles else 0.0
        middles.append(at + models / 2)
        at += models + _GAP_BARS
    return middles, at


def _draw_model(
    axes: "Axes",
    rows: Sequence[Row],
    middles: Sequence[float],
    model: str,
    number: int,
    labels: Sequence[str],
) -> None:
    colour = COLOURS[number % len(COLOURS)]
    scored = [(row, middle) for row, middle in zip(rows, middles, strict=True) if model in row.scores]
    values = [100 * row.scores[model].mean for row, _ in scored]
    errors = [100 * (row.scores[model].standard_error or 0.0) for row, _ in scored]
    heights = [middle - len(labels) / 2 + number + 0.5 for _, middle in scored]
    axes.barh(
        heights,
        values,
        height=0.86,
        xerr=errors,
        color=colour,
        label=labels[number],
        error_kw={"ecolor": _INK, "elinewidth": 0.8, "capsize": 1.5},
    )
    for value, error, height in zip(values, errors, heights, strict=True):
        axes.annotate(
            f"{value:.1f}",
            (value + error, height),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=_INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )


def _draw_chance(axes: "Axes", rows: Sequence[Row], middles: Sequence[float], models: int) -> None:
    guessed = [(row.chance, middle) for row, middle in zip(rows, middles, strict=True) if row.chance is not None]
    settings: dict[str, Any] = {"colors": _PALE, "linestyles": (0, (2, 2)), "linewidth": 1}
    if guessed:
        axes.vlines(
            [100 * chance for chance, _ in guessed],
            [middle - models / 2 - 0.15 for _, middle in guessed],
            [middle + models / 2 + 0.15 for _, middle in guessed],
            label="chance",
            **settings,
        )


def _label_rows(
    axes: "Axes", rows: Sequence[Row], middles: Sequence[float], height_bars: float, short: Mapping[str, str]
) -> None:
    axes.set_yticks(middles, [label_of(short.get(row.name, row.name)) for row in rows])
    for row, label in zip(rows, axes.get_yticklabels(), strict=True):
        label.set_fontweight("bold" if row.level == TASK else "normal")
        label.set_color(_INK if row.level == TASK else _PALE)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(height_bars, -_GAP_BARS / 2)


def _limit(rows: Sequence[Row]) -> float:
    """End of the axis: room for the numbers behind the longest bar."""
    ends = [score.mean + (score.standard_error or 0.0) for row in rows for score in row.scores.values()]
    return min(112.0, max(40.0, 100 * max(ends) * 1.12))
