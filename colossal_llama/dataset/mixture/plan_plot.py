"""Draws the record of a plan as a PNG: shares by bucket, and epochs by category."""

from pathlib import Path
from typing import Any

import numpy as np

from colossal_llama.dataset.mixture.amounts import short_number
from colossal_llama.utils.atomic_io import atomic_file

TITLE = "plan of the mixture by colossal_llama"
"""Title in the file, by which an earlier plot is recognised."""
SHOWN_CATEGORIES = 18
OTHERS = "others"


def draw_plan(record: dict, path: Path) -> None:
    """Draws the plan into a file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["font.family"], known = _fonts()
    names, tokens, epochs = _largest(record)
    names = [_plain(name, known) for name in names]
    height = 3.2 + 0.28 * len(names)
    figure, (shares, times) = pyplot.subplots(1, 2, figsize=(13, height), width_ratios=(3, 2), layout="constrained")
    colours = [pyplot.get_cmap("tab20")(number % 20) for number in range(len(names))]
    _draw_shares(shares, names, tokens, colours)
    _draw_epochs(times, names, epochs, tokens.sum(axis=1), colours)
    total = short_number(record["total_tokens"])
    figure.suptitle(f"{total} tokens in {tokens.shape[1]:,} buckets")
    try:
        with atomic_file(path) as file:
            figure.savefig(file, format="png", dpi=130, metadata={"Title": TITLE, "Software": None})
    finally:
        pyplot.close(figure)


def _largest(record: dict) -> tuple[list[str], np.ndarray, list[float]]:
    """Labels, tokens (categories, buckets) and epochs; by group, small categories as one."""
    entries = record["categories"]
    most = sorted(entries, key=lambda name: -entries[name]["tokens"])[:SHOWN_CATEGORIES]
    shown = sorted(most, key=lambda name: (entries[name]["group"] or "", name))
    tokens = [entries[name]["bucket_tokens"] for name in shown]
    epochs = [entries[name]["epochs"] for name in shown]
    labels = [f"{name} ({entries[name]['group']})" if entries[name]["group"] else name for name in shown]
    if hidden := [name for name in entries if name not in set(most)]:
        tokens.append(np.sum([entries[name]["bucket_tokens"] for name in hidden], axis=0).tolist())
        available = sum(entries[name]["available_tokens"] for name in hidden)
        epochs.append(sum(tokens[-1]) / max(available, 1))
        labels.append(OTHERS)
    return labels, np.array(tokens, np.int64), epochs


def _plain(label: str, known: set[int]) -> str:
    """The label for matplotlib: no formula, none that a legend leaves out, no empty boxes."""
    if any(ord(character) not in known for character in label):
        label = label.encode("ascii", "backslashreplace").decode()
    label = label[:48].replace("$", r"\$")
    return f" {label}" if label.startswith("_") else label


def _fonts() -> tuple[list[str], set[int]]:
    """Matplotlib's own font and those of this host for Chinese names, and the characters of all."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    wanted = ("Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "SimHei")
    names = ["DejaVu Sans", *(name for name in wanted if name in installed)]
    paths = [font_manager.findfont(font_manager.FontProperties(family=name)) for name in names]
    return names, set().union(*(font_manager.get_font(path).get_charmap() for path in paths))


def _draw_shares(axes: Any, names: list[str], tokens: np.ndarray, colours: list) -> None:
    shares = 100 * tokens / np.maximum(tokens.sum(axis=0), 1)
    lower = np.zeros(tokens.shape[1])
    for name, share, colour in zip(names, shares, colours, strict=True):
        axes.bar(np.arange(len(share)), share, width=0.9, bottom=lower, label=name, color=colour)
        lower += share
    axes.set(xlabel="bucket", ylabel="share of the tokens (%)", ylim=(0, 100), title="shares by bucket")
    axes.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")


def _draw_epochs(axes: Any, names: list[str], epochs: list[float], tokens: np.ndarray, colours: list) -> None:
    positions = np.arange(len(names))
    bars = axes.barh(positions, epochs, color=colours)
    labels = [f"{epoch:.2f} ({short_number(count)})" for epoch, count in zip(epochs, tokens, strict=True)]
    axes.bar_label(bars, labels, padding=3, fontsize="small")
    axes.set_yticks(positions, names, fontsize="small")
    axes.set(xlabel="epochs", title="epochs (tokens) by category", xlim=(0, 1.4 * max(*epochs, 1)))
