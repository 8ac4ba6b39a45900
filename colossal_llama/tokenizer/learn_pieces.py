r"""Learns from texts which pieces to add to a tokenizer, and how many of them.

    python colossal_llama/tokenizer/learn_pieces.py \
        --source_tokenizer_dir LLAMA --data_input_dirs CORPUS --output_dir PIECES --scripts Han

OUTPUT_DIR holds pieces.jsonl (for init_tokenizer.py), curve.png and learning_report.json.
"""

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from colossal_llama.utils.cli import (
    CollectingArgumentParser,
    creatable_directory,
    existing_directories,
    existing_directory,
    existing_file,
    number_in_range,
)
from colossal_llama.utils.errors import UserError, run_main


def main() -> None:
    """Learns pieces, measures compression against their number, chooses it and writes the files."""
    arguments = parse_arguments()
    from colossal_llama.tokenizer.expansion.source import open_source
    from colossal_llama.tokenizer.learning.bpe_continuation import learn_pieces
    from colossal_llama.tokenizer.learning.training_corpus import read_training_corpus
    from colossal_llama.tokenizer.learning.vocabulary_size_curve import choose_size, curve_table, measure_curve
    from colossal_llama.tokenizer.loading import load_tokenizer
    from colossal_llama.utils.console import log_rank_zero

    source = open_source(arguments.source_tokenizer_dir)
    tokenizer = load_tokenizer(arguments.source_tokenizer_dir)
    corpus = read_training_corpus(arguments.data_input_dirs, arguments.sample_mb, arguments.seed, arguments.scripts)
    words = corpus.words
    log_rank_zero(
        f"read {corpus.characters:,} characters: {sum(words.values()):,} words, {len(words):,} different; learning …"
    )
    pieces = learn_pieces(words, tokenizer, learning_limits(arguments, source.control_tokens))
    if not pieces:
        raise UserError(
            f"no piece was learned: the texts hold {sum(words.values()):,} words of {','.join(arguments.scripts)}, "
            f"and none is seen {arguments.min_frequency} times; change --scripts, lower --min_frequency or give more "
            "text"
        )
    log_rank_zero(
        f"learned {len(pieces):,} pieces; measuring on {sum(map(len, corpus.held_out)):,} held-out characters …"
    )
    points = measure_curve(source, tokenizer, pieces, corpus.held_out)
    chosen = choose_size(points, arguments.num_pieces, arguments.min_saving)
    log_rank_zero(curve_table(points, chosen))
    write_result(arguments, pieces[: chosen.pieces], points, chosen, corpus.figures())
    log_rank_zero(
        f"chosen: {chosen.pieces:,} pieces, written to {arguments.output_dir / 'pieces.jsonl'}; the curve is in "
        "curve.png"
    )


def parse_arguments() -> argparse.Namespace:
    """Parses and checks the command line; all problems are reported at once."""
    parser = CollectingArgumentParser(description="Learn new pieces for a LLaMA tokenizer from texts.")
    parser.add_argument(
        "--source_tokenizer_dir", type=existing_directory, required=True, metavar="DIR", help="tokenizer to be expanded"
    )
    parser.add_argument(
        "--data_input_dirs",
        type=existing_directories,
        required=True,
        metavar="DIR[,DIR…]",
        help="directories of .jsonl or .jsonl.gz records (pre-training, conversations, or a text each) and .txt or "
        ".md files",
    )
    parser.add_argument(
        "--output_dir",
        type=creatable_directory,
        required=True,
        metavar="DIR",
        help="directory to write; must not exist",
    )
    learning = parser.add_argument_group("learning")
    learning.add_argument(
        "--scripts",
        type=lambda text: [part for part in text.split(",") if part],
        default=("any",),
        metavar="NAME[,NAME…]",
        help="learn pieces of these Unicode scripts only (Han, Hiragana, Cyrillic, Arabic …); any: letters of all "
        "scripts",
    )
    learning.add_argument(
        "--max_pieces",
        type=number_in_range(int, minimum=1),
        default=40_000,
        help="how many pieces to learn and draw the curve for",
    )
    learning.add_argument(
        "--min_frequency",
        type=number_in_range(int, minimum=1),
        default=20,
        help="occurrences a piece needs in the sampled text",
    )
    learning.add_argument(
        "--max_piece_length", type=number_in_range(int, minimum=1), default=8, help="characters of a piece, at most"
    )
    learning.add_argument(
        "--blocklist_file",
        type=existing_file,
        metavar="FILE",
        help="no piece contains one of these strings, one a line",
    )
    learning.add_argument(
        "--sample_mb",
        type=number_in_range(float, above=0),
        default=500.0,
        help="megabytes of text to learn from: a random share of the documents, and of long ones' blocks, if the "
        "input is larger",
    )
    learning.add_argument(
        "--seed", type=number_in_range(int), default=0, help="chooses the sample and the held-out documents"
    )
    choice = parser.add_argument_group("how many pieces to keep")
    choice.add_argument(
        "--num_pieces", type=number_in_range(int, minimum=1), help="keep this many (default: by --min_saving)"
    )
    choice.add_argument(
        "--min_saving",
        type=number_in_range(float, minimum=0),
        default=0.2,
        metavar="PERCENT",
        help="keep growing while 1,000 more rows save at least this percentage of the held-out text's tokens",
    )
    arguments = parser.parse_args()
    check_arguments(parser, arguments)
    parser.finish()
    return arguments


def check_arguments(parser: CollectingArgumentParser, arguments: argparse.Namespace) -> None:
    """Checks combinations of arguments, and existing files."""
    from colossal_llama.tokenizer.learning.bpe_continuation import word_pattern

    if arguments.output_dir is not None and arguments.output_dir.exists():
        parser.problem(f"--output_dir {arguments.output_dir} exists already and is left untouched: give a new name")
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


def learning_limits(arguments: argparse.Namespace, control_tokens: frozenset[str]):
    """Returns the limits of learning; control tokens are blocked like lines of --blocklist_file."""
    from colossal_llama.tokenizer.learning.bpe_continuation import LearningLimits

    blocked = set(control_tokens)
    if arguments.blocklist_file is not None:
        lines = arguments.blocklist_file.read_text("utf-8").splitlines()
        blocked |= {line.strip() for line in lines if line.strip()}
    return LearningLimits(arguments.max_pieces, arguments.min_frequency, arguments.max_piece_length, frozenset(blocked))


def write_result(arguments: argparse.Namespace, pieces: list[str], points: list, chosen, figures: dict) -> None:
    """Writes pieces.jsonl, curve.png and learning_report.json atomically."""
    from dataclasses import asdict

    import orjson

    from colossal_llama.tokenizer.learning.vocabulary_size_curve import draw_curve
    from colossal_llama.utils.atomic_io import atomic_directory, write_json

    with atomic_directory(arguments.output_dir) as directory:
        (directory / "pieces.jsonl").write_bytes(b"".join(orjson.dumps({"piece": piece}) + b"\n" for piece in pieces))
        draw_curve(points, chosen, directory / "curve.png")
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
        settings["data_input_dirs"] = [str(path) for path in arguments.data_input_dirs]
        record = {
            "arguments": settings,
            "read": figures,
            "chosen": asdict(chosen),
            "curve": [asdict(p) for p in points],
        }
        write_json(directory / "learning_report.json", record)


if __name__ == "__main__":
    run_main(main)
