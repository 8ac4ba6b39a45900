"""Figure of bits per byte: a bar for each model by category, with standard errors."""

from collections.abc import Sequence
from pathlib import Path

from colossal_llama.evaluation.figure import COLOURS, FIGURE_TITLE
from colossal_llama.evaluation.text_tables import TextRow
from colossal_llama.utils.figures import distinct_labels, fonts_for, label_of, ranks_of_unprintable, save_figure

_MOST_CATEGORIES = 40
"""Bars of the largest categories; the table has all."""
_BAR_INCHES, _GAP_BARS = 0.21, 0.6


def draw_bits(rows: Sequence[TextRow], total: TextRow, output: Path) -> None:
    """Draws the bits per byte of the largest categories and of all texts.

    Args:
        rows: of the categories.
        total: of all texts.
        output: file of the figure.

    Raises:
        UserError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    largest = sorted(rows, key=lambda row: -row.bytes)[:_MOST_CATEGORIES]
    drawn = [*(row for row in rows if row in largest), *([total] if len(rows) > 1 else [])]
    models = list(total.models)
    fonts, missing = fonts_for([*(row.name for row in drawn), *models])
    short = ranks_of_unprintable([*(row.name for row in drawn), *models], missing)
    labels = distinct_labels([short.get(model, model) for model in models])
    step = len(models) + _GAP_BARS
    with matplotlib.rc_context({"font.family": fonts, "font.size": 9}):
        figure = Figure(figsize=(8.5, 1.4 + _BAR_INCHES * step * len(drawn)), layout="constrained")
        axes = figure.subplots()
        for number, model in enumerate(models):
            estimates = [row.models[model].bits_per_byte for row in drawn]
            axes.barh(
                [step * place + number for place in range(len(drawn))],
                [estimate.value for estimate in estimates],
                xerr=[estimate.standard_error or 0 for estimate in estimates],
                color=COLOURS[number % len(COLOURS)],
                label=labels[number],
                height=0.9,
                error_kw={"elinewidth": 0.8, "ecolor": "#555555"},
            )
        axes.set_yticks(
            [step * place + (len(models) - 1) / 2 for place in range(len(drawn))],
            [label_of(short.get(row.name, row.name)) for row in drawn],
        )
        axes.invert_yaxis()
        omitted = f"; {len(rows) - len(largest):,} smaller categories are not drawn" if len(rows) > len(largest) else ""
        axes.set_xlabel(f"bits per byte, lower is better, ± standard error over documents{omitted}")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="x", color="#eeeeee", linewidth=0.8)
        axes.set_axisbelow(True)
        figure.legend(loc="outside upper left", ncols=min(len(models), 4), frameon=False)
        save_figure(figure, output, FIGURE_TITLE)
