r"""Learns from texts which pieces to add to a tokenizer, and how many of them.

    python colossal_llama/tokenizer/learn_pieces.py \
        --source_tokenizer_dir LLAMA --data_input_dirs CORPUS --output_dir PIECES --scripts Han

OUTPUT_DIR holds pieces.jsonl (for init_tokenizer.py), curve.png and learning_report.json.
"""

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from colossal_llama.readers.fields import FieldOptions, TextFields, field_problems
from colossal_llama.readers.formats import DESCRIPTION
from colossal_llama.readers.input_paths import GatherPaths, input_paths
from colossal_llama.readers.remote import without_secrets
from colossal_llama.utils.arguments import add_options, from_namespace, group, option, option_values
from colossal_llama.utils.cli import (
    CollectingArgumentParser,
    creatable_directory,
    existing_file,
    number_in_range,
)
from colossal_llama.utils.errors import UserError, run_main
from colossal_llama.utils.hub.files import Needed
from colossal_llama.utils.hub.names import NAME_FORMS, ModelName, directory_or_name

if TYPE_CHECKING:
    from colossal_llama.tokenizer.expansion.source import SourceTokenizer
    from colossal_llama.tokenizer.learning.bpe_continuation import LearningLimits
    from colossal_llama.tokenizer.learning.training_corpus import TrainingCorpus
    from colossal_llama.tokenizer.learning.vocabulary_size_curve import CurvePoint


def _comma_separated(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


@dataclass(frozen=True, kw_only=True)
class InputArguments:
    """Input and output directories."""

    source_tokenizer_dir: Path | ModelName = option(
        type=directory_or_name, required=True, metavar="DIR", help=f"tokenizer to be expanded; {NAME_FORMS}"
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
    output_dir: Path = option(
        type=creatable_directory, required=True, metavar="DIR", help="directory to write; must not exist"
    )


@dataclass(frozen=True, kw_only=True)
class LearningArguments:
    """Limits of the pieces to learn, and the text to learn from."""

    scripts: tuple[str, ...] = option(
        ("any",),
        type=_comma_separated,
        metavar="NAME[,NAME…]",
        help="learn pieces of these Unicode scripts only (Han, Hiragana, Cyrillic, Arabic …); any: letters of all "
        "scripts",
    )
    max_pieces: int = option(
        40_000, type=number_in_range(int, minimum=1), help="how many pieces to learn and draw the curve for"
    )
    min_frequency: int = option(
        20, type=number_in_range(int, minimum=1), help="occurrences a piece needs in the sampled text"
    )
    max_piece_length: int = option(8, type=number_in_range(int, minimum=1), help="characters of a piece, at most")
    blocklist_file: Path | None = option(
        type=existing_file, metavar="FILE", help="no piece contains one of these strings, one a line"
    )
    sample_mb: float = option(
        500.0,
        type=number_in_range(float, above=0),
        help="megabytes of text to learn from: a random share of the documents, and of long ones' blocks, if the "
        "input is larger",
    )
    seed: int = option(0, type=number_in_range(int), help="chooses the sample and the held-out documents")


@dataclass(frozen=True, kw_only=True)
class SizeArguments:
    """The choice of the number of pieces."""

    num_pieces: int | None = option(
        type=number_in_range(int, minimum=1), help="keep this many (default: by --min_saving)"
    )
    min_saving: float = option(
        0.2,
        type=number_in_range(float, minimum=0),
        metavar="PERCENT",
        help="keep growing while 1,000 more embedding rows save at least this percentage of the held-out text's tokens",
    )


@dataclass(frozen=True, kw_only=True)
class LearnPiecesArguments:
    """All arguments, in the groups of `--help`."""

    input: InputArguments = group()
    fields: TextFields = group("columns of the records")
    learning: LearningArguments = group("learning")
    size: SizeArguments = group("how many pieces to keep")


def main() -> None:
    """Learns pieces, measures compression against their number, chooses it and writes the files."""
    arguments = parse_arguments()
    learning, size = arguments.learning, arguments.size
    from colossal_llama.tokenizer.expansion.source import open_source
    from colossal_llama.tokenizer.learning.bpe_continuation import learn_pieces
    from colossal_llama.tokenizer.learning.training_corpus import read_training_corpus
    from colossal_llama.tokenizer.learning.vocabulary_size_curve import choose_size, curve_table, measure_curve
    from colossal_llama.tokenizer.loading import load_tokenizer
    from colossal_llama.utils.console import log_rank_zero
    from colossal_llama.utils.hub.fetch import option_directory

    source_dir = option_directory("--source_tokenizer_dir", arguments.input.source_tokenizer_dir, Needed.TOKENIZER)
    source = open_source(source_dir)
    tokenizer = load_tokenizer(source_dir)
    fields = FieldOptions(**option_values(arguments.fields), category_from="directory")
    corpus = read_training_corpus(
        arguments.input.data_input_dirs, learning.sample_mb, learning.seed, learning.scripts, fields
    )
    words, num_words = corpus.words, sum(corpus.words.values())
    log_rank_zero(f"read {corpus.characters:,} characters: {num_words:,} words, {len(words):,} different; learning …")
    pieces = learn_pieces(words, tokenizer, learning_limits(learning, source))
    if not pieces:
        raise UserError(
            f"no piece was learned: the texts hold {num_words:,} words of {','.join(learning.scripts)}, and none is "
            f"seen {learning.min_frequency} times; change --scripts, lower --min_frequency or give more text"
        )
    held_out_characters = sum(map(len, corpus.held_out))
    log_rank_zero(f"learned {len(pieces):,} pieces; measuring on {held_out_characters:,} held-out characters …")
    points = measure_curve(source, tokenizer, pieces, corpus.held_out)
    chosen = choose_size(points, size.num_pieces, size.min_saving)
    log_rank_zero(curve_table(points, chosen))
    write_result(arguments, pieces[: chosen.pieces], points, chosen, corpus, source_dir)
    path = arguments.input.output_dir / "pieces.jsonl"
    log_rank_zero(f"chosen: {chosen.pieces:,} pieces, written to {path}; the curve is in curve.png")


def parse_arguments() -> LearnPiecesArguments:
    """Parses and checks the command line; all problems are reported at once."""
    parser = CollectingArgumentParser(description="Learn new pieces for a LLaMA tokenizer from texts.")
    add_options(parser, LearnPiecesArguments)
    namespace = parser.parse_args()
    check_arguments(parser, namespace)
    parser.finish()
    return from_namespace(LearnPiecesArguments, namespace)


def check_arguments(parser: CollectingArgumentParser, arguments: argparse.Namespace) -> None:
    """Checks combinations of arguments, and existing files."""
    from colossal_llama.tokenizer.learning.bpe_continuation import word_pattern

    for problem in field_problems(arguments):
        parser.problem(problem)
    output = arguments.output_dir
    if output is not None and (output.exists() or output.is_symlink()):
        parser.problem(f"--output_dir {output} exists already and is left untouched: give a new name")
    if (
        arguments.num_pieces is not None
        and arguments.max_pieces is not None
        and arguments.num_pieces > arguments.max_pieces
    ):
        parser.problem(f"--num_pieces {arguments.num_pieces} is more than --max_pieces {arguments.max_pieces}")
    try:
        word_pattern(arguments.scripts)
    except ValueError as error:
        parser.problem(f"--scripts: {error}")
    try:
        blocked_strings(arguments.blocklist_file)
    except UserError as error:
        parser.problem(f"--blocklist_file: {error}")


def learning_limits(arguments: LearningArguments, source: "SourceTokenizer") -> "LearningLimits":
    """Returns the limits of learning; no piece contains a control or an added token."""
    from colossal_llama.tokenizer.learning.bpe_continuation import LearningLimits

    blocked = blocked_strings(arguments.blocklist_file) | source.control_tokens | source.added_tokens.keys()
    return LearningLimits(arguments.max_pieces, arguments.min_frequency, arguments.max_piece_length, frozenset(blocked))


def blocked_strings(path: Path | None) -> set[str]:
    """Reads the strings that no piece may contain, one a line; none without a file.

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    if path is None:
        return set()
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start:,}: {error.reason}): convert it") from error
    return {line.strip() for line in lines if line.strip()}


def write_result(
    arguments: LearnPiecesArguments,
    pieces: list[str],
    points: "list[CurvePoint]",
    chosen: "CurvePoint",
    corpus: "TrainingCorpus",
    source_dir: Path,
) -> None:
    """Writes pieces.jsonl, curve.png and learning_report.json atomically."""
    import orjson

    from colossal_llama.tokenizer.learning.vocabulary_size_curve import draw_curve
    from colossal_llama.utils.atomic_io import atomic_directory, write_json
    from colossal_llama.utils.hub.fetch import origin_record

    values = option_values(arguments)
    settings = {name: str(value) if isinstance(value, Path | ModelName) else value for name, value in values.items()}
    settings["data_input_dirs"] = [without_secrets(str(path)) for path in arguments.input.data_input_dirs]
    report = {
        "arguments": settings,
        **origin_record(source_dir),
        "read": corpus.figures(),
        "chosen": asdict(chosen),
        "curve": [asdict(point) for point in points],
    }
    with atomic_directory(arguments.input.output_dir) as directory:
        (directory / "pieces.jsonl").write_bytes(b"".join(orjson.dumps({"piece": piece}) + b"\n" for piece in pieces))
        draw_curve(points, chosen, directory / "curve.png")
        write_json(directory / "learning_report.json", report)


if __name__ == "__main__":
    run_main(main)
