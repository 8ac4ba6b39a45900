r"""Plots prepared data: tokens by category and bucket, lengths of documents, fill of rows.

    python colossal_llama/dataset/plot_data.py data --output data.png
    python colossal_llama/dataset/plot_data.py data/arrow/part-00000 data/arrow/part-00001

The numbers are printed as tables, and written as JSON next to the picture (data.json).
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.cli import CollectingArgumentParser, creatable_directory, existing_directory
from colossal_llama.utils.errors import run_main
from colossal_llama.utils.figures import FORMATS, figure_file_problem
from colossal_llama.utils.output_file import output_file_problem

if TYPE_CHECKING:
    from colossal_llama.dataset.part_counts import PartCounts

TITLE = "plot_data of colossal-llama"
"""In the metadata of a plot: tells those that may be replaced from other files."""
JSON_BEGINNING = b'{\n  "plot_data_version": '
"""Of the JSON file: tells those that may be replaced."""
_NARROW_LENGTHS = 16
"""Up to this factor between short and long documents the histogram's axis is linear."""


def main() -> None:
    """Parses the command line, counts the parts, plots and prints the counts."""
    options = parse_arguments()
    print(plot_parts(options.data, options.output))


def parse_arguments() -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = CollectingArgumentParser(
        prog="plot_data.py",
        description="Plot prepared data: tokens by category and bucket, lengths of documents, fill of rows. The "
        "numbers are printed, and written as JSON next to the picture.",
    )
    parser.add_argument(
        "data",
        nargs="+",
        type=existing_directory,
        metavar="DIR",
        help="what the prepare scripts wrote (--data_output_dirs), its arrow/, or parts of it",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("data.png"),
        metavar="FILE",
        help="file of the plot (png, pdf, svg); the numbers have the same name, with .json",
    )
    options = parser.parse_args()
    if options.output.suffix.lower() not in FORMATS:
        parser.problem(f"--output {options.output}: the name must end in .png, .pdf or .svg")
    elif problem := _output_problem(options.output):
        parser.problem(f"--output {problem}")
    parser.finish()
    return options


def _output_problem(output: Path) -> str | None:
    if not output.parent.exists():
        try:
            creatable_directory(str(output.parent))
        except argparse.ArgumentTypeError as error:
            return str(error)
        return None
    return figure_file_problem(output, TITLE) or output_file_problem(output.with_suffix(".json"), JSON_BEGINNING)


def plot_parts(data: list[Path], output: Path) -> str:
    """Counts and plots parts; returns the counts as tables.

    Args:
        data: output directories, directories of parts, or parts.
        output: file of the plot; the counts go into one of the same name with the ending .json.

    Raises:
        UserError: there are no parts, one is damaged, or a file cannot be written.
    """
    from colossal_llama.dataset.category_charts import choose_categories
    from colossal_llama.dataset.count_tables import counts_as_record, counts_as_tables
    from colossal_llama.dataset.part_counts import count_parts
    from colossal_llama.dataset.part_paths import find_parts
    from colossal_llama.utils.console import log_rank_zero

    found = find_parts(data, "plot_data")
    for note in found.notes:
        log_rank_zero(note)
    counts = count_parts(found.paths)
    shown = choose_categories(counts.categories, counts.tokens.sum(axis=0))
    name = ", ".join(path.resolve().name for path in data[:3]) + (", …" if len(data) > 3 else "")
    _draw(counts, shown, name, output)
    write_json(output.with_suffix(".json"), counts_as_record(counts))
    replaced = [f"{label} in the picture: {name} (no font here can draw it)" for name, label in shown.replaced.items()]
    return "\n\n".join((counts_as_tables(counts), *(["\n".join(replaced)] if replaced else []), f"plotted: {output}"))


def _draw(counts: "PartCounts", shown: Any, name: str, output: Path) -> None:
    """Draws the four charts into one file."""
    import matplotlib
    from matplotlib.figure import Figure

    from colossal_llama.dataset.category_charts import draw_buckets, draw_fill, draw_lengths, draw_totals
    from colossal_llama.utils.figures import label_of, save_figure, short_count

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
            f"{short_count(counts.total_tokens)} tokens",
            f"{short_count(int(counts.segments.sum()))} segments",
            f"{short_count(int(counts.rows.sum()))} rows of up to {counts.max_length:,} tokens",
        )
        figure.suptitle(f"{label_of(name)}: {', '.join(facts)}")
        save_figure(figure, output, TITLE)


def _fill(counts: "PartCounts") -> tuple[Any, Any]:
    """Edges in per cent and rows of a histogram that begins at the emptiest row."""
    import numpy as np

    bins = len(counts.fill)
    emptiest = min(int(np.argmax(counts.fill > 0)), bins - min(bins, 20))
    step = max(1, (bins - emptiest) // 50)
    first = max(0, bins - step * (-(-(bins - emptiest) // step) + 1))
    starts = np.arange(first, bins, step)
    return np.append(starts, bins) * (100 / bins), np.add.reduceat(counts.fill, starts)


def _lengths(counts: "PartCounts", shown: Any) -> tuple[Any, Any, bool]:
    """Edges, counts and scale of the histogram of lengths, without empty bins at its ends."""
    import numpy as np

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


if __name__ == "__main__":
    run_main(main)
