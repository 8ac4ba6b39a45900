r"""Plots prepared data: tokens by category and bucket, lengths of documents, fill of rows.

    python colossal_llama/dataset/plot_data.py data --output data.png
    python colossal_llama/dataset/plot_data.py data/arrow/part-00000 data/arrow/part-00001

The numbers are printed as tables, and written as JSON under the picture's name (data.json).
"""

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from colossal_llama.dataset.figure_titles import DATA_JSON_BEGINNING, DATA_TITLE
from colossal_llama.utils.cli import CollectingArgumentParser, existing_directory
from colossal_llama.utils.errors import run_main
from colossal_llama.utils.figures import figure_output_problem
from colossal_llama.utils.output_file import output_file_problem


def main() -> None:
    """Parses the command line, counts the parts, plots and prints the counts."""
    options = parse_arguments()
    from colossal_llama.dataset.data_figure import plot_parts
    from colossal_llama.dataset.part_paths import find_parts
    from colossal_llama.utils.console import log_rank_zero

    found = find_parts(options.data, "DIR")
    for note in found.notes:
        log_rank_zero(note)
    names = [path.resolve().name for path in options.data[:3]]
    print(plot_parts(found.paths, ", ".join(names) + (", …" if len(options.data) > 3 else ""), options.output))


def parse_arguments() -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = CollectingArgumentParser(
        prog="plot_data.py",
        description="Plot prepared data: tokens by category and bucket, lengths of documents, fill of rows. The "
        "numbers are printed, and written as JSON under the picture's name.",
    )
    parser.add_argument(
        "data",
        nargs="+",
        type=existing_directory,
        metavar="DIR",
        help="what the prepare scripts wrote (--data_output_dirs), its arrow/, parts of it, or a data set of token ids "
        "saved by `datasets`",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("data.png"),
        metavar="FILE",
        help="file of the plot (png, pdf, svg); that of the numbers has the ending .json",
    )
    options = parser.parse_args()
    if problem := figure_output_problem(options.output, DATA_TITLE) or _numbers_problem(options.output):
        parser.problem(f"--output {problem}")
    parser.finish()
    return options


def _numbers_problem(output: Path) -> str | None:
    """Explains why the JSON file of the numbers cannot be written."""
    numbers = output.with_suffix(".json")
    return output_file_problem(numbers, DATA_JSON_BEGINNING) if numbers.parent.exists() else None


if __name__ == "__main__":
    run_main(main)
