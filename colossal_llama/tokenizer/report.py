r"""Compares tokenizers on a corpus: compression, characters split into bytes, failed round trips.

python colossal_llama/tokenizer/report.py \
        --tokenizers base=LLAMA new=NEW --data_input_dirs CORPUS --output_file report.json
"""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from colossal_llama.readers.fields import FieldOptions, field_problems, with_file_categories
from colossal_llama.readers.formats import DESCRIPTION
from colossal_llama.readers.input_paths import GatherPaths, input_paths
from colossal_llama.readers.remote import without_secrets
from colossal_llama.utils.arguments import add_options, from_namespace, group, option, option_values
from colossal_llama.utils.cli import CollectingArgumentParser, number_in_range
from colossal_llama.utils.errors import run_main
from colossal_llama.utils.hub.files import Needed
from colossal_llama.utils.hub.names import NAME_FORMS, ModelName, directory_or_name
from colossal_llama.utils.output_file import output_file_problem

if TYPE_CHECKING:
    from colossal_llama.tokenizer.compression import TokenizationCounts

_BEGINNING = b'{\n  "data_input_dirs": '  # of an output file


def named_directory(text: str) -> tuple[str, Path | ModelName]:
    """Parses `NAME=DIR` or `DIR` (argparse `type=`), where DIR may be the name of a repository."""
    name, separator, directory = text.rpartition("=")
    source = directory_or_name(directory)
    own_name = source.resolve().name if isinstance(source, Path) else str(source)
    return (name if separator else own_name, source)


@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    """Arguments of the script."""

    tokenizers: tuple[tuple[str, Path | ModelName], ...] = option(
        nargs="+",
        type=named_directory,
        required=True,
        metavar="[NAME=]DIR",
        help=f"tokenizers to compare ({NAME_FORMS}); without a name the directory's is shown",
    )
    data_input_dirs: tuple[Path | str, ...] = option(
        nargs="+",
        action=GatherPaths,
        type=input_paths,
        required=True,
        metavar="PATH",
        help="files of texts (documents, conversations) and directories that are searched for them, also several by "
        f"commas; {DESCRIPTION}",
    )
    sample_share: float = option(
        1.0,
        type=number_in_range(float, above=0, maximum=1),
        metavar="SHARE",
        help="random share of the documents to measure on",
    )
    seed: int = option(0, type=number_in_range(int), help="chooses the sample")
    output_file: Path | None = option(type=Path, metavar="JSON", help="also write all figures there")
    fields: FieldOptions = group("columns of the records")


def main() -> None:
    """Reads the corpus once, encodes it with every tokenizer and prints the tables."""
    arguments = parse_arguments()
    from colossal_llama.tokenizer.compression import count_corpus
    from colossal_llama.tokenizer.corpus import find_files, read_texts
    from colossal_llama.tokenizer.loading import load_tokenizer
    from colossal_llama.utils.atomic_io import write_json
    from colossal_llama.utils.console import log_rank_zero, progress_bar
    from colossal_llama.utils.hub.fetch import option_directory

    files = with_file_categories(find_files(arguments.data_input_dirs), arguments.fields)
    directories = {
        name: option_directory("--tokenizers", source, Needed.TOKENIZER) for name, source in arguments.tokenizers
    }
    tokenizers = {name: load_tokenizer(path) for name, path in directories.items()}
    with progress_bar(unit="char", unit_scale=True, desc="measuring") as bar:
        texts = read_texts(files, arguments.sample_share, arguments.seed, fields=arguments.fields)
        counts = count_corpus(texts, tokenizers, bar)
    sizes = {name: len(tokenizer) for name, tokenizer in tokenizers.items()}
    log_rank_zero(overall_table(sizes, counts))
    log_rank_zero("")
    log_rank_zero(category_table(counts))
    if arguments.output_file is not None:
        write_json(arguments.output_file, report_content(arguments, directories, sizes, counts))
        log_rank_zero(f"\nwritten to {arguments.output_file}")


def parse_arguments() -> ReportArguments:
    """Parses and checks the command line; all problems are reported at once."""
    parser = CollectingArgumentParser(description="Compare tokenizers on a corpus.")
    add_options(parser, ReportArguments)
    namespace = parser.parse_args()
    if namespace.tokenizers is not None:
        names = [name for name, _ in filter(None, namespace.tokenizers)]
        for name in sorted({name for name in names if names.count(name) > 1}):
            parser.problem(f"--tokenizers: two are named {name}: write NAME=DIR")
    for contradiction in field_problems(namespace):
        parser.problem(contradiction)
    output_file = namespace.output_file
    if output_file is not None and (problem := output_file_problem(output_file, _BEGINNING)):
        parser.problem(f"--output_file {problem}")
    parser.finish()
    return from_namespace(ReportArguments, namespace)


def overall_table(sizes: dict, counts: dict) -> str:
    """Formats a row for each tokenizer, over the whole corpus."""
    from colossal_llama.utils.console import table

    header = [
        "tokenizer",
        "vocabulary",
        "tokens",
        "tokens/char",
        "tokens/document",
        "chars in bytes",
        "round trips failed",
    ]
    rows = []
    for name, categories in counts.items():
        total = total_of(categories)
        rows.append(
            [
                name,
                sizes[name],
                total.tokens,
                f"{total.tokens_per_character:.4f}",
                f"{total.tokens_per_document:.1f}",
                f"{total.characters_in_bytes:,} ({total.characters_in_bytes / max(1, total.characters):.3%})",
                f"{total.round_trip_failures:,} of {total.documents:,}",
            ]
        )
    return table(header, rows)


def category_table(counts: dict) -> str:
    """Formats a row for each category: its size, and tokens (tokens per character) by tokenizer."""
    from colossal_llama.utils.console import table

    first = next(iter(counts.values()))
    rows = []
    for category in sorted(first):
        cells = [counts[name][category] for name in counts]
        shown = [f"{cell.tokens:,} ({cell.tokens_per_character:.3f})" for cell in cells]
        rows.append([category, first[category].documents, first[category].characters, *shown])
    return table(["category", "documents", "characters", *(f"{name}: tokens (per char)" for name in counts)], rows)


def total_of(categories: "dict[str, TokenizationCounts]") -> "TokenizationCounts":
    """Sums the counts over categories."""
    from colossal_llama.tokenizer.compression import TokenizationCounts

    total = TokenizationCounts()
    for counts in categories.values():
        total.add(counts)
    return total


def report_content(arguments: ReportArguments, directories: dict[str, Path], sizes: dict, counts: dict) -> dict:
    """Returns all figures, for the output file."""
    from colossal_llama.utils.hub.fetch import origin_record

    def figures(counted: "TokenizationCounts") -> dict:
        ratios = {
            "tokens_per_character": counted.tokens_per_character,
            "tokens_per_document": counted.tokens_per_document,
        }
        return {**asdict(counted), **ratios}

    return {
        "data_input_dirs": [without_secrets(str(path)) for path in arguments.data_input_dirs],
        "sample_share": arguments.sample_share,
        "seed": arguments.seed,
        **{name: value for name, value in option_values(arguments.fields).items() if value is not None},
        "tokenizers": {
            name: {
                "directory": str(path),
                **origin_record(path),
                "vocab_size": sizes[name],
                "total": figures(total_of(counts[name])),
                "categories": {category: figures(counted) for category, counted in sorted(counts[name].items())},
            }
            for name, path in directories.items()
        },
    }


if __name__ == "__main__":
    run_main(main)
