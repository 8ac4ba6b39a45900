r"""Learns from texts which pieces to add to a tokenizer, and how many of them.

    python colossal_llama/tokenizer/learn_pieces.py \
        --source_tokenizer_dir LLAMA --data_input_dirs CORPUS --output_dir PIECES --language zh

OUTPUT_DIR holds pieces.jsonl (for init_tokenizer.py), curve.png and learning_report.json.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from colossal_llama.readers.fields import FieldOptions, TextFields, field_problems
from colossal_llama.readers.formats import DESCRIPTION
from colossal_llama.readers.input_paths import GatherPaths, input_paths
from colossal_llama.readers.remote import without_secrets
from colossal_llama.tokenizer.script_names import parse_languages, parse_scripts
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
    from transformers import PreTrainedTokenizerFast

    from colossal_llama.tokenizer.expansion.source import SourceTokenizer
    from colossal_llama.tokenizer.learning.bpe_continuation import CutWords, LearnedPieces, LearningLimits
    from colossal_llama.tokenizer.learning.training_corpus import TrainingCorpus
    from colossal_llama.tokenizer.learning.vocabulary_size_curve import CurvePoint


def _any_or_scripts(text: str) -> tuple[str, ...]:
    return ("any",) if text.strip().casefold() == "any" else parse_scripts(text)


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
        type=_any_or_scripts,
        metavar="NAME[,NAME…]",
        help="learn pieces of these Unicode scripts only, by name or ISO 15924 code (Han, Deva, Cyrillic …); any: "
        "letters of all scripts",
    )
    language: tuple[str, ...] = option(
        (),
        type=parse_languages,
        metavar="NAME[,NAME…]",
        help="learn pieces of the scripts in which these languages are written, instead of --scripts: ISO 639 codes "
        "or English names (hi, ja, Thai, sr-Latn …)",
    )
    extend_pretokenizer: tuple[str, ...] = option(
        (),
        type=parse_scripts,
        metavar="SCRIPTS",
        help="learn for a tokenizer whose pre-tokenizer lets combining marks stay with letters of these scripts: for "
        "init_tokenizer.py with the same option",
    )
    max_pieces: int = option(
        40_000, type=number_in_range(int, minimum=1), help="how many pieces to learn and draw the curve for"
    )
    min_frequency: int | None = option(
        type=number_in_range(int, minimum=1),
        help="occurrences a piece needs in the sampled text (default: 20; in texts of less than a million characters "
        "fewer in proportion, but two)",
    )
    max_piece_length: int = option(
        8,
        type=number_in_range(int, minimum=1),
        help="characters of a piece, at most; a letter counts as one with its marks",
    )
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
        help="keep growing while 1,000 more embedding rows save at least this percentage of the tokens: of the "
        "held-out text's, or where that is too little to tell, of the others",
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
    scripts = learning.language or learning.scripts
    from colossal_llama.tokenizer.expansion.source import open_source
    from colossal_llama.tokenizer.learning.bpe_continuation import learn_pieces
    from colossal_llama.tokenizer.learning.training_corpus import read_training_corpus
    from colossal_llama.tokenizer.learning.vocabulary_size_curve import choose_size, curve_table, measure_curve
    from colossal_llama.tokenizer.loading import load_tokenizer
    from colossal_llama.utils.console import log_rank_zero
    from colossal_llama.utils.hub.fetch import option_directory

    source_dir = option_directory("--source_tokenizer_dir", arguments.input.source_tokenizer_dir, Needed.TOKENIZER)
    source = open_source(source_dir, learning.extend_pretokenizer)
    for note in source.extension_notes:
        log_rank_zero(f"note: {note}")
    tokenizer = load_tokenizer(source_dir)
    extend(tokenizer, learning.extend_pretokenizer)
    fields = FieldOptions(**option_values(arguments.fields), category_from="directory")
    corpus = read_training_corpus(arguments.input.data_input_dirs, learning.sample_mb, learning.seed, scripts, fields)
    log_rank_zero(
        f"read {corpus.characters:,} characters: {sum(corpus.words.values()):,} words of {','.join(scripts)}, "
        f"{len(corpus.words):,} different; learning …"
    )
    limits = learning_limits(learning, source, corpus.words)
    learned = possible_pieces(source, learn_pieces(corpus.words, tokenizer, limits))
    log_cut_words(learned.cut_words, limits)
    if not learned.saved_tokens:
        raise UserError(why_nothing(learned, corpus, scripts, limits))
    held_out_characters = sum(map(len, corpus.held_out))
    log_rank_zero(
        f"learned {len(learned.saved_tokens):,} pieces of {limits.min_frequency} occurrences or more"
        f"{left_out_note(learned)}; measuring on {held_out_characters:,} held-out characters …"
    )
    points = measure_curve(
        source, tokenizer, learned.saved_tokens, corpus.held_out, corpus.characters - held_out_characters
    )
    chosen = choose_size(points, size.num_pieces, size.min_saving)
    log_rank_zero(curve_table(points, chosen))
    write_result(arguments, list(learned.saved_tokens)[: chosen.pieces], points, chosen, corpus, learned, source_dir)
    log_choice(arguments, points, chosen)


def extend(tokenizer: "PreTrainedTokenizerFast", scripts: Sequence[str]) -> None:
    """Extends a tokenizer's pre-tokenizer, as `open_source` does with the source's."""
    from colossal_llama.tokenizer.pretokenizer import extended

    backend = tokenizer.backend_tokenizer
    if scripts and backend.pre_tokenizer is not None and (new := extended(backend, scripts).pre_tokenizer) is not None:
        backend.pre_tokenizer = new  # type: ignore[assignment]


def possible_pieces(source: "SourceTokenizer", learned: "LearnedPieces") -> "LearnedPieces":
    """Leaves out the pieces that init_tokenizer.py would leave out, with its reasons."""
    from colossal_llama.tokenizer.expansion.pieces import Piece

    if not learned.saved_tokens:
        return learned
    expansion = source.expand([Piece(piece, "") for piece in learned.saved_tokens])
    possible = {piece: learned.saved_tokens[piece] for piece in expansion.pieces}
    dropped = len(learned.saved_tokens) - len(possible)
    left_out = {**learned.left_out, **({"that the tokenizer cannot have": dropped} if dropped else {})}
    return replace(learned, saved_tokens=possible, left_out=left_out)


def left_out_note(learned: "LearnedPieces") -> str:
    """Returns the numbers of pieces that were left out, by reason; empty without any."""
    counts = ", ".join(f"{number:,} {reason}" for reason, number in learned.left_out.items())
    return f" (left out: {counts})" if counts else ""


def log_cut_words(cut: "CutWords", limits: "LearningLimits") -> None:
    """Says how many words the pre-tokenizer cuts, and what lets them be tokens."""
    from colossal_llama.utils.console import log_rank_zero

    if cut.occurrences:
        examples = f" ({', '.join(map(str.strip, cut.frequent[:3]))} …)" if cut.frequent else ""
        log_rank_zero(
            f"the source's pre-tokenizer cuts {cut.occurrences:,} words ({cut.share:.0%}) at combining marks. No piece "
            f"can hold them: {len(cut.frequent):,} different ones occur {limits.min_frequency} times or more{examples}."
            f" --extend_pretokenizer {','.join(cut.scripts)}, here and for init_tokenizer.py, keeps such words whole"
        )


def why_nothing(
    learned: "LearnedPieces", corpus: "TrainingCorpus", scripts: Sequence[str], limits: "LearningLimits"
) -> list[str]:
    """Returns why no piece was learned, and what to do."""
    words = sum(corpus.words.values())
    if not words:
        return [f"no piece was learned: the texts hold no word of {','.join(scripts)}; change --scripts or the texts"]
    cause = f"the texts hold {words:,} words of {','.join(scripts)}, of which no new piece"
    cause += f" occurs {limits.min_frequency} times{left_out_note(learned)}"
    remedies = ["give more text", *(["lower --min_frequency"] if limits.min_frequency > 1 else [])]
    if learned.cut_words.occurrences:
        remedies = [f"give --extend_pretokenizer {','.join(learned.cut_words.scripts)} (see above)", *remedies]
    return [f"no piece was learned: {cause}; {' or '.join(remedies)}"]


def log_choice(arguments: LearnPiecesArguments, points: "list[CurvePoint]", chosen: "CurvePoint") -> None:
    """Says how many pieces were chosen, by which text, and what to do with them."""
    from colossal_llama.tokenizer.learning.vocabulary_size_curve import decided_by_held_out
    from colossal_llama.utils.console import log_rank_zero

    size, scripts = arguments.size, arguments.learning.extend_pretokenizer
    if size.num_pieces is None and not decided_by_held_out(points, size.min_saving):
        log_rank_zero(
            "the held-out text is too little to tell what most steps save (error): there the text that was learned "
            "from decided"
        )
    path = arguments.input.output_dir / "pieces.jsonl"
    log_rank_zero(f"chosen: {chosen.pieces:,} pieces, written to {path}; the curve is in curve.png")
    if scripts:
        log_rank_zero(f"they need init_tokenizer.py --extend_pretokenizer {','.join(scripts)}")


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
    if arguments.language and arguments.scripts != ("any",):
        parser.problem("--language and --scripts are two ways to say the same: give one of them")
    try:
        blocked_strings(arguments.blocklist_file)
    except UserError as error:
        parser.problem(f"--blocklist_file: {error}")


def learning_limits(
    arguments: LearningArguments, source: "SourceTokenizer", words: Mapping[str, int]
) -> "LearningLimits":
    """Returns the limits of learning; no piece contains a control or an added token."""
    from colossal_llama.tokenizer.learning.bpe_continuation import LearningLimits, default_min_frequency

    min_frequency = arguments.min_frequency or default_min_frequency(words)
    blocked = blocked_strings(arguments.blocklist_file) | source.control_tokens | source.added_tokens.keys()
    return LearningLimits(arguments.max_pieces, min_frequency, arguments.max_piece_length, frozenset(blocked))


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
    learned: "LearnedPieces",
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
        "learned": len(learned.saved_tokens),
        "left_out": dict(learned.left_out),
        "cut_words": {**asdict(learned.cut_words), "frequent": len(learned.cut_words.frequent)},
        "chosen": asdict(chosen),
        "curve": [asdict(point) for point in points],
    }
    with atomic_directory(arguments.input.output_dir) as directory:
        (directory / "pieces.jsonl").write_bytes(b"".join(orjson.dumps({"piece": piece}) + b"\n" for piece in pieces))
        draw_curve(points, chosen, directory / "curve.png")
        write_json(directory / "learning_report.json", report)


if __name__ == "__main__":
    run_main(main)
