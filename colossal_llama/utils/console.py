"""Console output of rank 0: log lines, progress bars and tables."""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from colossal_llama.utils.distributed_env import is_rank_zero

if TYPE_CHECKING:
    from tqdm import tqdm


def log_rank_zero(text: str) -> None:
    """Prints a line on rank 0, above a progress bar if one is running."""
    if is_rank_zero():
        from tqdm import tqdm

        tqdm.write(text)


def progress_bar(iterable: Iterable | None = None, **settings: Any) -> "tqdm":
    """Returns a tqdm progress bar, disabled on other ranks than 0; `settings` are tqdm's."""
    from tqdm import tqdm

    settings.setdefault("dynamic_ncols", True)
    settings.setdefault("mininterval", 0.5)
    return tqdm(iterable, disable=not is_rank_zero(), **settings)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Formats a table: text left-aligned, numbers right-aligned with thousands separators.

    >>> print(table(["category", "tokens"], [["poems", 12345], ["docs", 7]]))
    category  tokens
    poems     12,345
    docs           7
    """
    shown = [[_show(cell) for cell in row] for row in rows]
    numeric = [all(isinstance(row[column], int | float) for row in rows) for column in range(len(header))]
    widths = [max(_width(line[column]) for line in [list(header), *shown]) for column in range(len(header))]
    lines = []
    for line in [list(header), *shown]:
        cells = []
        for column, cell in enumerate(line):
            padding = " " * (widths[column] - _width(cell))
            cells.append(padding + cell if numeric[column] else cell + padding)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _show(cell: Any) -> str:
    if isinstance(cell, bool) or cell is None:
        return str(cell)
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return f"{cell:,.4g}" if abs(cell) < 1000 else f"{cell:,.0f}"
    return str(cell)


def _width(text: str) -> int:
    """Columns on a terminal, where wide East Asian characters take two (Unicode, UAX #11)."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
