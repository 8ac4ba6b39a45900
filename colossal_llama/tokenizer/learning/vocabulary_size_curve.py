"""Compression against rows: what a growing number of new pieces saves, really measured, and how many are worth it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from colossal_llama.tokenizer.encoding import TextEncoder
from colossal_llama.tokenizer.expansion.pieces import Piece
from colossal_llama.tokenizer.expansion.source import Source
from colossal_llama.utils.console import progress_bar, table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SHARES = (1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)


@dataclass(frozen=True)
class Point:
    """One size of vocabulary.

    Attributes:
        pieces: new pieces, the first of the learned list.
        rows: rows they cost, with bridges.
        tokens: tokens of the held-out text.
        tokens_per_character: compression.
        saving_percent_per_1000_rows: tokens saved against the previous point, of the previous point's tokens.
    """

    pieces: int
    rows: int
    tokens: int
    tokens_per_character: float
    saving_percent_per_1000_rows: float


def measure_curve(
    source: Source, tokenizer: "PreTrainedTokenizerFast", pieces: Sequence[str], texts: Sequence[str]
) -> list[Point]:
    """Expands the source by growing parts of the list and encodes the texts with each result.

    Args:
        source, tokenizer: the tokenizer to expand, opened for expanding and loaded.
        pieces: learned pieces, best first.
        texts: held-out documents.
    """
    characters = max(1, sum(map(len, texts)))
    tokens = sum(map(len, TextEncoder(tokenizer).encode_beginning(texts)))
    points = [Point(0, 0, tokens, tokens / characters, 0.0)]
    sizes = sorted({max(1, round(share * len(pieces))) for share in _SHARES})
    for size in progress_bar(sizes, desc="measuring", unit="size"):
        expansion = source.expand([Piece(piece, "") for piece in pieces[:size]])
        rows = expansion.size - expansion.source_size
        tokens = sum(map(len, expansion.encoders[-1](texts)))
        before = points[-1]
        saved = 100 * (before.tokens - tokens) / max(1, before.tokens)
        points.append(Point(size, rows, tokens, tokens / characters, 1000 * saved / max(1, rows - before.rows)))
    return points


def choose(points: Sequence[Point], num_pieces: int | None, min_saving_percent: float) -> Point:
    """The size to keep: `num_pieces` if given, else the last point before 1,000 more rows save too little.

    A given number between two points is placed on the straight line between them.
    """
    if num_pieces is not None:
        return _interpolate(points, min(num_pieces, points[-1].pieces))
    chosen = points[1]
    for point in points[1:]:
        if point.saving_percent_per_1000_rows < min_saving_percent:
            break
        chosen = point
    return chosen


def _interpolate(points: Sequence[Point], pieces: int) -> Point:
    after = next(point for point in points if point.pieces >= pieces)
    if after.pieces == pieces:
        return after
    before = points[points.index(after) - 1]
    part = (pieces - before.pieces) / (after.pieces - before.pieces)

    def between(name: str) -> float:
        return getattr(before, name) + part * (getattr(after, name) - getattr(before, name))

    rows, tokens = round(between("rows")), round(between("tokens"))
    return Point(pieces, rows, tokens, between("tokens_per_character"), after.saving_percent_per_1000_rows)


def curve_table(points: Sequence[Point], chosen: Point) -> str:
    """The curve as a table; the chosen size is marked."""
    rows = []
    for point in sorted({*points, chosen}, key=lambda point: point.pieces):
        saved = 100 * (1 - point.tokens / max(1, points[0].tokens))
        mark = "<- chosen" if point == chosen else ""
        marginal = f"{point.saving_percent_per_1000_rows:.3f} %" if point.pieces else ""
        rows.append([point.pieces, point.rows, f"{point.tokens_per_character:.4f}", f"{saved:.2f} %", marginal, mark])
    return table(["pieces", "rows", "tokens/char", "tokens saved", "saved by 1,000 more rows", ""], rows)


def draw_curve(points: Sequence[Point], chosen: Point, path: Path) -> None:
    """Draws compression against rows as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    axes.plot([point.rows for point in points], [point.tokens_per_character for point in points], marker="o")
    axes.plot([chosen.rows], [chosen.tokens_per_character], marker="o", markersize=12, fillstyle="none", color="black")
    axes.annotate(
        f"{chosen.pieces:,} pieces, {chosen.rows:,} rows\n{chosen.tokens_per_character:.4f} tokens/character",
        (chosen.rows, chosen.tokens_per_character),
        xytext=(0, 20),  # above the point: the curve falls, so that is empty
        textcoords="offset points",
        ha="right" if chosen.rows > points[-1].rows / 2 else "left",
    )
    axes.set_xlabel("new rows (pieces and bridges)")
    axes.set_ylabel("tokens per character on held-out text")
    axes.set_title("What more pieces save")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150, format="png")
    pyplot.close(figure)
