r"""Expands a tokenizer by new pieces, each of which is verified to be reachable.

python colossal_llama/tokenizer/init_tokenizer.py \
        --source_tokenizer_dir LLAMA --target_tokenizer_dir NEW --expand_tokens_file pieces.jsonl
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from colossal_llama.tokenizer.script_names import parse_scripts
from colossal_llama.utils.arguments import add_options, from_namespace, option
from colossal_llama.utils.cli import (
    CollectingArgumentParser,
    creatable_directory,
    existing_file,
    number_in_range,
)
from colossal_llama.utils.errors import UserError, run_main, truncate_problems
from colossal_llama.utils.hub.files import Needed
from colossal_llama.utils.hub.names import NAME_FORMS, ModelName, directory_or_name

if TYPE_CHECKING:
    from colossal_llama.tokenizer.expansion.pieces import Impossible, PieceFile
    from colossal_llama.tokenizer.expansion.result import Expansion

MAX_SHOWN = 10
MAX_SHOWN_CHARACTERS = 40  # of a piece; of a reason more


@dataclass(frozen=True, kw_only=True)
class InitTokenizerArguments:
    """Arguments of the script."""

    source_tokenizer_dir: Path | ModelName = option(
        type=directory_or_name,
        required=True,
        metavar="DIR",
        help="tokenizer to expand: tokenizer.model (LLaMA-2, sentencepiece) or tokenizer.json (LLaMA-3, byte-level "
        "BPE; or LLaMA-2's kind, of which transformers 5 writes nothing else), and tokenizer_config.json; "
        f"{NAME_FORMS}",
    )
    target_tokenizer_dir: Path = option(
        type=creatable_directory, required=True, metavar="DIR", help="directory to write; it must not exist yet"
    )
    expand_tokens_file: Path = option(
        type=existing_file,
        required=True,
        metavar="JSONL",
        help='pieces to add, one {"piece": "…"} a line, the most important first (where two compete for the same '
        "characters, the earlier wins); a space may be written as ▁",
    )
    pad_to_multiple_of: int = option(
        1,
        type=number_in_range(int, minimum=1),
        metavar="ROWS",
        help="record in expansion_report.json a number of embedding rows rounded up to a multiple of this, for "
        "example 64 or 128; the tokenizer itself gets no padding tokens",
    )
    extend_pretokenizer: tuple[str, ...] = option(
        (),
        type=parse_scripts,
        metavar="SCRIPTS",
        help="let combining marks stay with letters of these Unicode scripts (Thai,Devanagari,Tibetan …), so that "
        "whole words can be tokens; texts without these scripts keep their ids; for byte-level BPE (LLaMA-3, Qwen, "
        "SmolLM); llama.cpp cannot read the result (no GGUF)",
    )


def main() -> None:
    """Reads the pieces, expands the source, verifies every piece and writes the target."""
    arguments = parse_arguments()
    from colossal_llama.tokenizer.expansion.pieces import read_pieces
    from colossal_llama.tokenizer.expansion.reachability import verify_reachability
    from colossal_llama.tokenizer.expansion.result import expansion_report, report_table, write_expansion
    from colossal_llama.tokenizer.expansion.source import open_source
    from colossal_llama.utils.console import log_rank_zero

    source_dir = source_directory(arguments.source_tokenizer_dir)
    source = open_source(source_dir, arguments.extend_pretokenizer)
    for note in source.notes[:MAX_SHOWN]:
        log_rank_zero(f"note: {note}")
    if len(source.notes) > MAX_SHOWN:
        log_rank_zero(f"note: the same of {len(source.notes) - MAX_SHOWN} other added tokens")
    for note in source.extension_notes:
        log_rank_zero(f"note: {note}")
    requested = read_pieces(arguments.expand_tokens_file, source.control_tokens)
    expansion = source.expand(requested.pieces)
    reachability = verify_reachability(
        expansion.piece_ids, expansion.encoders, expansion.encode_by_merges, expansion.letters_before_marks
    )
    changes = source.count_changes(requested.pieces) if source.count_changes else None
    report = expansion_report(expansion, requested, reachability, arguments.pad_to_multiple_of, changes)
    log_rank_zero(report_table(report))
    for left_out in expansion.impossible[:MAX_SHOWN]:
        piece = left_out.piece
        log_rank_zero(f"left out: {piece.location}: {shorten(piece.text)!r}: {shorten(left_out.why, 5)}")
    if len(expansion.impossible) > MAX_SHOWN:
        log_rank_zero(f"left out: {len(expansion.impossible) - MAX_SHOWN} more, listed in expansion_report.json")
    advice = extension_advice(expansion.impossible)
    if not expansion.pieces:
        raise UserError(why_nothing_is_added(expansion, requested, advice))
    if advice:
        log_rank_zero(advice)
    if unreachable := reachability.unreachable:
        problems = truncate_problems(
            [f"no text was found that produces the new piece {piece!r}" for piece in unreachable]
        )
        problems.append(f"{len(unreachable)} of {reachability.checked} new pieces are unreachable: nothing was written")
        raise UserError(problems)
    write_expansion(source_dir, arguments.target_tokenizer_dir, expansion, report)
    log_rank_zero(f"written to {arguments.target_tokenizer_dir}")


def extension_advice(impossible: "Sequence[Impossible]") -> str:
    """Returns how pieces become possible that the pre-tokenizer splits at marks; empty without."""
    import regex

    from colossal_llama.tokenizer.expansion.pieces import Cause
    from colossal_llama.tokenizer.script_names import scripts_of_text

    split = [left_out.piece.text for left_out in impossible if left_out.cause is Cause.PRE_TOKENIZER]
    words = [
        text for text in split if regex.fullmatch(r"[ \p{L}\p{M}\u200c\u200d]+", text) and regex.search(r"\p{M}", text)
    ]
    scripts = scripts_of_text("".join(words))
    if not scripts:
        return ""
    return (
        f"{len(words):,} of the pieces that the pre-tokenizer splits are words with combining marks: "
        f"--extend_pretokenizer {','.join(scripts)} lets the marks stay with their letters"
    )


def why_nothing_is_added(expansion: "Expansion", requested: "PieceFile", advice: str) -> str:
    """Returns why no piece can be added, with counts by reason, and what to do."""
    from colossal_llama.tokenizer.expansion.result import impossible_by_cause

    known = {"in the source already": len(expansion.known)} if expansion.known else {}
    counts = (f"{number:,} {reason}" for reason, number in (known | impossible_by_cause(expansion)).items())
    return (
        f"none of the {len(requested.pieces):,} requested pieces can be added: {', '.join(counts)}; nothing was "
        "written. "
        + (advice or "Give other pieces: learn_pieces.py learns those that this source can have from your texts")
    )


def shorten(text: str, times: int = 1) -> str:
    """Returns a text, or its first `times` MAX_SHOWN_CHARACTERS and an ellipsis."""
    limit = times * MAX_SHOWN_CHARACTERS
    return text if len(text) <= limit else text[:limit] + "…"


def parse_arguments() -> InitTokenizerArguments:
    """Parses and checks the command line; all problems are reported at once."""
    parser = CollectingArgumentParser(
        description="Expand a LLaMA tokenizer by new pieces, every one of them reachable."
    )
    add_options(parser, InitTokenizerArguments)
    namespace = parser.parse_args()
    target, source = namespace.target_tokenizer_dir, namespace.source_tokenizer_dir
    if target is not None and (target.exists() or target.is_symlink()):
        parser.problem(f"--target_tokenizer_dir {target} exists already and is left untouched: give a new name")
    if isinstance(source, Path):
        for problem in missing_files(source):
            parser.problem(f"--source_tokenizer_dir {source}: {problem}")
    parser.finish()
    return from_namespace(InitTokenizerArguments, namespace)


def source_directory(source: Path | ModelName) -> Path:
    """Returns the directory of the source tokenizer; one that is given by name is downloaded.

    Raises:
        UserError: it cannot be downloaded, or files are missing in it.
    """
    from colossal_llama.utils.hub.fetch import option_directory

    directory = option_directory("--source_tokenizer_dir", source, Needed.TOKENIZER)
    if problems := missing_files(directory):
        raise UserError([f"--source_tokenizer_dir {source}: {problem}" for problem in problems])
    return directory


def missing_files(source: Path) -> list[str]:
    """Lists the problems of a source directory: files that are missing."""
    problems = []
    if not any((source / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        problems.append("neither tokenizer.model (LLaMA-2) nor tokenizer.json (LLaMA-3) is there")
    if not (source / "tokenizer_config.json").is_file():
        problems.append("tokenizer_config.json is missing")
    return problems


if __name__ == "__main__":
    run_main(main)
