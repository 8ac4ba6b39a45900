"""Measures compression against the number of new pieces, and chooses that number."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from colossal_llama.tokenizer.encoding import TextEncoder
from colossal_llama.tokenizer.expansion.pieces import Piece
from colossal_llama.tokenizer.expansion.source import SourceTokenizer
from colossal_llama.utils.console import progress_bar, table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SHARES = (1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)


@dataclass(frozen=True)
class CurvePoint:
    """One vocabulary size.

    Attributes:
        pieces: number of new pieces, the first of the learned list.
        rows: embedding rows they need, intermediate pieces included.
        tokens: tokens of the held-out text.
        tokens_per_character: compression.
        saving_percent_per_1000_rows: tokens saved since the previous point, in percent of that
            point's tokens, scaled to 1,000 rows.
    """

    pieces: int
    rows: int
    tokens: int
    tokens_per_character: float
    saving_percent_per_1000_rows: float


def measure_curve(
    source: SourceTokenizer, tokenizer: "PreTrainedTokenizerFast", pieces: Sequence[str], texts: Sequence[str]
) -> list[CurvePoint]:
    """Expands the source by growing prefixes of the list and encodes the texts with each result.

    Args:
        source: the tokenizer to expand.
        tokenizer: the same tokenizer, loaded by transformers.
        pieces: learned pieces, best first.
        texts: held-out documents.
    """
    characters = max(1, sum(map(len, texts)))
    tokens = sum(map(len, TextEncoder(tokenizer).encode_beginning(texts)))
    points = [CurvePoint(0, 0, tokens, tokens / characters, 0.0)]
    sizes = sorted({max(1, round(share * len(pieces))) for share in _SHARES})
    for size in progress_bar(sizes, desc="measuring", unit="size"):
        expansion = source.expand([Piece(piece, "") for piece in pieces[:size]])
        rows = expansion.size - expansion.source_size
        tokens = sum(map(len, expansion.encoders[-1](texts)))
        before = points[-1]
        saved = 100 * (before.tokens - tokens) / max(1, before.tokens)
        points.append(CurvePoint(size, rows, tokens, tokens / characters, 1000 * saved / max(1, rows - before.rows)))
    return points


def choose_size(points: Sequence[CurvePoint], num_pieces: int | None, min_saving_percent: float) -> CurvePoint:
    """Chooses `num_pieces` if given, else the last point before the saving gets too small.

    A given number between two points is interpolated linearly.

    Args:
        points: the curve.
        num_pieces: the number of pieces to keep, or None.
        min_saving_percent: the least `saving_percent_per_1000_rows`.
    """
    if num_pieces is not None:
        return _interpolate(points, min(num_pieces, points[-1].pieces))
    chosen = points[1]
    for point in points[1:]:
        if point.saving_percent_per_1000_rows < min_saving_percent:
            break
        chosen = point
    return chosen


def _interpolate(points: Sequence[CurvePoint], pieces: int) -> CurvePoint:
    after = next(point for point in points if point.pieces >= pieces)
    if after.pieces == pieces:
        return after
    before = points[points.index(after) - 1]
    fraction = (pieces - before.pieces) / (after.pieces - before.pieces)

    def between(name: str) -> float:
        return getattr(before, name) + fraction * (getattr(after, name) - getattr(before, name))

    rows, tokens = round(between("rows")), round(between("tokens"))
    return CurvePoint(pieces, rows, tokens, between("tokens_per_character"), after.saving_percent_per_1000_rows)


def curve_table(points: Sequence[CurvePoint], chosen: CurvePoint) -> str:
    """Formats the curve as a table; the chosen size is marked."""
    listed = sorted({*points, chosen}, key=lambda point: point.pieces)
    rows = []
    for before, point in zip([listed[0], *listed], listed, strict=False):
        mark = "<- chosen" if point == chosen else ""
        last = f"{_saved_percent(before, point):.3f} % by {point.rows - before.rows:,} rows" if point.pieces else ""
        in_all = f"{_saved_percent(listed[0], point):.2f} %"
        rows.append([point.pieces, point.rows, f"{point.tokens_per_character:.4f}", in_all, last, mark])
    return table(["pieces", "rows", "tokens/char", "tokens saved", "of the line above", ""], rows)


def _saved_percent(before: CurvePoint, after: CurvePoint) -> float:
    return 100 * (before.tokens - after.tokens) / max(1, before.tokens)


def draw_curve(points: Sequence[CurvePoint], chosen: CurvePoint, path: Path) -> None:
    """Draws compression against embedding rows as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    axes.plot([point.rows for point in points], [point.tokens_per_character for point in points], marker="o")
    axes.plot([chosen.rows], [chosen.tokens_per_character], marker="o", markersize=12, fillstyle="none", color="black")
    axes.annotate(
        f"{chosen.pieces:,} pieces, {chosen.rows:,} rows\n{chosen.tokens_per_character:.4f} tokens/character",
        (chosen.rows, chosen.tokens_per_character),
        xytext=(0, 20),  # above the point, where a falling curve leaves space
        textcoords="offset points",
        ha="right" if chosen.rows > points[-1].rows / 2 else "left",
    )
    axes.set_xlabel("new embedding rows (requested and intermediate pieces)")
    axes.set_ylabel("tokens per character on held-out text")
    axes.set_title("Compression against vocabulary size")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150, format="png")
    pyplot.close(figure)
