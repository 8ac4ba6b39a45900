"""Figure of a cleaning: what was dropped by which reason and from which category, and lengths."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from colossal_llama.cleaning.output_files import FIGURE
from colossal_llama.cleaning.report_tables import largest_categories, largest_reasons
from colossal_llama.dataset.category_charts import frame
from colossal_llama.dataset.mixture.amounts import short_number
from colossal_llama.utils.figures import fonts_for, label_of, ranks_of_unprintable, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "cleaning by colossal_llama"
"""Title in the file, by which an earlier figure is recognised."""
_SHOWN_REASONS = 19
"""Reasons with colours of their own; the palette has no more that can be told apart."""
_SHOWN_CATEGORIES = 14
_WIDE_RANGE = 50
"""From this factor between the largest and the smallest share on, the axis is logarithmic."""
_OTHERS_COLOUR = "#757575"


def draw_report(report: Mapping[str, Any], output_dir: Path) -> dict[str, str]:
    """Draws a report into `cleaning.png`.

    Returns:
        Names that no font of this host can draw, with the labels in their place.

    Raises:
        UserError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    reasons, categories = _shown_reasons(report), _shown_categories(report)
    texts = [*reasons, *categories, *report["changes"]]
    fonts, missing = fonts_for(texts)
    short = ranks_of_unprintable(texts, missing)
    labels = {text: label_of(short.get(text, text)) for text in texts}
    with matplotlib.rc_context({"font.family": fonts, "font.size": 9}):
        rows = (max(len(reasons), 5), max(len(categories), min(len(report["changes"]), _SHOWN_CATEGORIES), 5))
        figure = Figure(figsize=(13, 3 + 0.23 * sum(rows)), layout="constrained")
        (of_reasons, lengths), (of_categories, changes) = figure.subplots(
            2, 2, width_ratios=(1.35, 1), height_ratios=rows
        )
        colours = _draw_reasons(of_reasons, report, reasons, labels)
        _draw_categories(of_categories, report, categories, reasons, colours, labels, room=rows[1])
        _draw_lengths(lengths, report["lengths"])
        _draw_changes(changes, report["changes"], labels, room=rows[1])
        figure.suptitle(_title(report["totals"]))
        save_figure(figure, output_dir / FIGURE, TITLE)
    return short


def _title(totals: Mapping[str, Any]) -> str:
    incoming, kept = totals["incoming"], totals["kept"]
    parts = []
    for part in ("documents", "characters"):
        share = 100 * kept[part] / max(incoming[part], 1)
        parts.append(f"{short_number(kept[part])} of {short_number(incoming[part])} {part} ({share:.4g} %)")
    return f"kept: {', '.join(parts)}"


def _shown_reasons(report: Mapping[str, Any]) -> dict[str, list[str]]:
    """Reasons by the name they are drawn under: the largest as they are, all others as one."""
    names = largest_reasons(report)
    own = names if len(names) <= _SHOWN_REASONS else names[: _SHOWN_REASONS - 1]
    rest = names[len(own) :]
    return {name: [name] for name in own} | ({f"{len(rest)} other reasons": rest} if rest else {})


def _shown_categories(report: Mapping[str, Any]) -> dict[str, list[str]]:
    """Categories by the name they are drawn under: the largest as they are, all others as one."""
    names = largest_categories(report)
    own = names if len(names) <= _SHOWN_CATEGORIES else names[: _SHOWN_CATEGORIES - 1]
    rest = names[len(own) :]
    return {name: [name] for name in own} | ({f"{len(rest):,} other categories": rest} if rest else {})


def _colours(reasons: Mapping[str, list[str]]) -> dict[str, Any]:
    import matplotlib

    name = "tab10" if len(reasons) < 10 else "tab20"
    palette = matplotlib.colormaps[name]
    greys = (7,) if name == "tab10" else (14, 15)
    distinct = [palette(number) for number in range(palette.N) if number not in greys]
    own = dict(zip(reasons, distinct, strict=False))
    return {name: own.get(name, _OTHERS_COLOUR) for name in reasons}


def _draw_reasons(
    axes: "Axes", report: Mapping[str, Any], reasons: Mapping[str, list[str]], labels: Mapping[str, str]
) -> dict[str, Any]:
    """Draws the share that each reason dropped, the legend of the categories' chart.

    Returns:
        The colour of each reason.
    """
    colours, incoming = _colours(reasons), report["totals"]["incoming"]
    dropped = {
        part: np.array([sum(report["reasons"][reason][part] for reason in listed) for listed in reasons.values()])
        for part in ("documents", "characters")
    }
    shares = {part: 100 * counts / max(incoming[part], 1) for part, counts in dropped.items()}
    places = np.arange(len(reasons))
    axes.barh(places - 0.14, shares["documents"], color=list(colours.values()), height=0.5)
    axes.barh(places + 0.25, shares["characters"], color="#555555", height=0.2)
    highest = max((share.max(initial=0) for share in shares.values()), default=0) or 1
    for place, (documents, characters) in enumerate(zip(shares["documents"], shares["characters"], strict=True)):
        text = f"{short_number(int(dropped['documents'][place]))}   {documents:.3g} %, {characters:.3g} %"
        axes.annotate(
            text, (max(documents, characters), place), (4, 0), textcoords="offset points", va="center", fontsize=8
        )
    _name_rows(axes, [labels[reason] for reason in reasons], 5)
    positive = np.concatenate([share[share > 0] for share in shares.values()])
    if len(positive) and highest > _WIDE_RANGE * positive.min():
        axes.set_xscale("log")
        axes.set_xlim(positive.min() / 2, highest * (highest / positive.min()) ** 0.45)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axes.set_xlim(0, 1.35 * highest)
    axes.set_xlabel("% of all documents (coloured) and of their characters (grey)")
    axes.set_title("dropped by reason: documents, % of documents, % of characters")
    frame(axes, "x")
    return colours


def _draw_categories(
    axes: "Axes",
    report: Mapping[str, Any],
    categories: Mapping[str, list[str]],
    reasons: Mapping[str, list[str]],
    colours: Mapping[str, Any],
    labels: Mapping[str, str],
    room: int,
) -> None:
    """Draws what each reason dropped from each category, as one bar."""
    entries = [[report["categories"][name] for name in listed] for listed in categories.values()]
    wholes, kept = (
        np.array([sum(entry[side]["documents"] for entry in listed) for listed in entries], int)
        for side in ("incoming", "kept")
    )
    right, places = np.zeros(len(entries)), np.arange(len(entries))
    for name, listed_reasons in reasons.items():
        counts = [
            sum(entry["dropped"].get(reason, {}).get("documents", 0) for entry in listed for reason in listed_reasons)
            for listed in entries
        ]
        widths = 100 * np.array(counts) / np.maximum(wholes, 1)
        axes.barh(places, widths, left=right, color=colours[name], height=0.75)
        right += widths
    for place, (whole, rest) in enumerate(zip(wholes, kept, strict=True)):
        text = f"{short_number(int(rest))} moved here"
        if whole:
            text = f"kept {short_number(int(rest))} of {short_number(int(whole))} ({100 * rest / whole:.4g} %)"
        axes.annotate(text, (right[place], place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    _name_rows(axes, [labels[name] for name in categories], room)
    axes.set_xlim(0, 1.6 * (right.max(initial=0) or 1))
    axes.set_xlabel("% of the category's documents")
    axes.set_title("dropped by category, in the colours above")
    frame(axes, "x")


def _draw_lengths(axes: "Axes", lengths: Mapping[str, list[int]]) -> None:
    """Draws the histograms of lengths before and after, over each other."""
    edges = np.maximum(lengths["edges"], 0.5)  # a logarithm has no 0
    if len(edges):
        axes.stairs(lengths["before"], edges, fill=True, color="#bdbdbd", label="as they came in")
        axes.stairs(lengths["after"], edges, color="tab:blue", linewidth=1.6, label="as they are written")
        axes.set_xscale("log")
        axes.legend(frameon=False, fontsize=8)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter(lambda value, _: short_number(value))
    axes.set_ylim(bottom=0)
    axes.set(title="lengths of documents", xlabel="characters of a document", ylabel="documents")
    frame(axes, "y")


def _draw_changes(axes: "Axes", changes: Mapping[str, Any], labels: Mapping[str, str], room: int) -> None:
    """Draws how many kept documents each kind of change concerned, as many as there is room for."""
    names = sorted(changes, key=lambda name: (-changes[name]["documents"], name))
    shown = names[:room]
    counts = [changes[name]["documents"] for name in shown]
    axes.barh(np.arange(len(shown)), counts, color="tab:blue", height=0.6)
    for place, name in enumerate(shown):
        text = f"{short_number(counts[place])}   {short_number(changes[name]['times'])} times"
        axes.annotate(text, (counts[place], place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    _name_rows(axes, [labels[name] for name in shown], room)
    axes.set_xlim(0, 1.4 * max(counts, default=1))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.xaxis.set_major_formatter(lambda value, _: short_number(value))
    more = f" (the {room} most frequent of {len(names)})" if len(names) > len(shown) else ""
    axes.set(title=f"changed in kept documents{more}", xlabel="documents")
    frame(axes, "x")


def _name_rows(axes: "Axes", names: list[str], room: int) -> None:
    """Names the bars of a chart, which has room for so many, from the top on."""
    axes.set_yticks(np.arange(len(names)), names, fontsize=8)
    axes.set_ylim(max(len(names), room) - 0.5, -0.6)
