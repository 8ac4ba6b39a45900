"""Measures compression against the number of new pieces, and chooses that number.

A step of the curve is worth its rows if it saves more tokens than `--min_saving` asks for. Held-out
text says so without bias, but a small one with much noise: of 200 characters, one word more or less
is one percent. The text learned from has no such noise, and a bias: a piece that was chosen because
it occurs twice there is rarer elsewhere. So held-out text decides wherever its saving is further
from the price than twice its standard error over the held-out blocks. Elsewhere the text learned
from decides, with one occurrence taken off each piece (leaving-one-out: Ney, Essen and Kneser 1995,
"On the estimation of 'small' probabilities by leaving-one-out"). The size is that of the greatest
total of savings less prices: a single poor step ends nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, pairwise
from math import inf, sqrt
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

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
        saved_percent: held-out tokens saved in all.
        step_saved_percent: held-out tokens saved since the previous point, in percent of that
            point's.
        step_error_percent: its standard error over the blocks of the held-out text.
        step_expected_percent: saving of the step by the text learned from.
    """

    pieces: int
    rows: int
    tokens: int
    tokens_per_character: float
    saved_percent: float = 0.0
    step_saved_percent: float = 0.0
    step_error_percent: float = 0.0
    step_expected_percent: float = 0.0


def measure_curve(
    source: SourceTokenizer,
    tokenizer: "PreTrainedTokenizerFast",
    saved_tokens: Mapping[str, int],
    held_out: Sequence[str],
    learned_characters: int,
) -> list[CurvePoint]:
    """Expands the source by growing prefixes of the list and encodes the texts with each result.

    Args:
        source: the tokenizer to expand.
        tokenizer: the same tokenizer, loaded by transformers.
        saved_tokens: learned piece → tokens saved in the text learned from, best first.
        held_out: blocks of held-out documents.
        learned_characters: length of the text learned from.
    """
    pieces, learned = list(saved_tokens), list(accumulate(saved_tokens.values(), initial=0))
    expected = list(accumulate((max(0, saved - 1) for saved in saved_tokens.values()), initial=0))
    characters = max(1, sum(map(len, held_out)))
    lengths = np.array([len(ids) for ids in TextEncoder(tokenizer).encode_beginning(held_out)])
    first = CurvePoint(0, 0, int(lengths.sum()), lengths.sum() / characters)
    learned_tokens = max(1.0, first.tokens_per_character * learned_characters)
    points = [first]
    sizes = sorted({max(1, round(share * len(pieces))) for share in _SHARES})
    for size in progress_bar(sizes, desc="measuring", unit="size"):
        expansion = source.expand([Piece(piece, "") for piece in pieces[:size]])
        before, last = lengths, points[-1].pieces
        lengths = np.array([len(ids) for ids in expansion.encoders[-1](held_out)])
        tokens, tokens_before = int(lengths.sum()), max(1, points[-1].tokens)
        points.append(
            CurvePoint(
                pieces=size,
                rows=expansion.size - expansion.source_size,
                tokens=tokens,
                tokens_per_character=tokens / characters,
                saved_percent=100 * (first.tokens - tokens) / max(1, first.tokens),
                step_saved_percent=100 * (points[-1].tokens - tokens) / tokens_before,
                step_error_percent=100 * _standard_error(before, before - lengths) / tokens_before,
                step_expected_percent=100
                * min(1.0, (expected[size] - expected[last]) / max(1.0, learned_tokens - learned[last])),
            )
        )
    return points


def _standard_error(tokens: np.ndarray, saved: np.ndarray) -> float:
    """Returns the standard error of the tokens saved in all blocks, at least that of a count.

    The error of a ratio: blocks are of different lengths, and save more the longer they are.

    Args:
        tokens: int64 [blocks].
        saved: int64 [blocks].
    """
    blocks, total = len(tokens), float(saved.sum())
    deviations = saved - tokens * (total / max(1.0, float(tokens.sum())))
    of_blocks = sqrt(blocks / (blocks - 1) * float((deviations**2).sum())) if blocks > 1 else inf
    return min(max(of_blocks, sqrt(max(0.0, total) + 1)), max(1.0, float(tokens.sum())))


def choose_size(points: Sequence[CurvePoint], num_pieces: int | None, min_saving_percent: float) -> CurvePoint:
    """Chooses `num_pieces` if given, else the size whose savings exceed the price of rows the most.

    A given number between two points is interpolated linearly.

    Args:
        points: the curve.
        num_pieces: the number of pieces to keep, or None.
        min_saving_percent: price of 1,000 rows: what they have to save, in percent of the tokens.
    """
    if num_pieces is not None:
        return _interpolate(points, min(num_pieces, points[-1].pieces))
    gains = []
    for before, point in pairwise(points):
        price = min_saving_percent * (point.rows - before.rows) / 1000
        gains.append((point.step_saved_percent if _is_decided(point, price) else point.step_expected_percent) - price)
    totals = list(accumulate(gains))
    return points[1 + totals.index(max(totals))]


def decided_by_held_out(points: Sequence[CurvePoint], min_saving_percent: float) -> bool:
    """True when held-out text tells for most steps whether they are worth their rows."""
    steps = list(pairwise(points))
    decided = [_is_decided(after, min_saving_percent * (after.rows - before.rows) / 1000) for before, after in steps]
    return 2 * sum(decided) >= len(steps)


def _is_decided(point: CurvePoint, price_percent: float) -> bool:
    return abs(point.step_saved_percent - price_percent) > 2 * point.step_error_percent


def _interpolate(points: Sequence[CurvePoint], pieces: int) -> CurvePoint:
    after = next(point for point in points if point.pieces >= pieces)
    if after.pieces == pieces:
        return after
    before = points[points.index(after) - 1]
    fraction = (pieces - before.pieces) / (after.pieces - before.pieces)

    def between(name: str) -> float:
        return getattr(before, name) + fraction * (getattr(after, name) - getattr(before, name))

    names = [field.name for field in fields(CurvePoint)]
    rounded = {"pieces", "rows", "tokens"}
    point = {name: round(between(name)) if name in rounded else between(name) for name in names}
    return CurvePoint(**point | {name: fraction * getattr(after, name) for name in names if name.startswith("step_")})


def curve_table(points: Sequence[CurvePoint], chosen: CurvePoint) -> str:
    """Formats the curve as a table; the chosen size is marked."""
    listed = sorted({*points, chosen}, key=lambda point: point.pieces)
    rows = []
    for before, point in zip([listed[0], *listed], listed, strict=False):
        mark = "<- chosen" if point == chosen else ""
        last = f"{_saved_percent(before, point):.3f} % by {point.rows - before.rows:,} rows" if point.pieces else ""
        error = f"± {point.step_error_percent:.3f}" if point.step_error_percent < 100 else "unknown"
        in_all = f"{_saved_percent(listed[0], point):.2f} %"
        rows.append(
            [
                point.pieces,
                point.rows,
                f"{point.tokens_per_character:.4f}",
                in_all,
                last,
                error if point.pieces else "",
                mark,
            ]
        )
    return table(["pieces", "rows", "tokens/char", "tokens saved", "of the line above", "error", ""], rows)


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
