"""Command lines of the prepare scripts that open a finished directory and prepare nothing."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from colossal_llama.dataset.prepare.arguments import Inspection, InspectionArguments, Verification
from colossal_llama.utils.arguments import from_namespace
from colossal_llama.utils.cli import CollectingArgumentParser, directory_problem


def command_that_only_looks(
    parser: CollectingArgumentParser, namespace: Namespace, given: set[str]
) -> Inspection | Verification | None:
    """Returns what is to be done with a finished directory; None where data is to be prepared.

    Ends the program where the command line contradicts itself.

    Args:
        parser: of the command line.
        namespace: its values.
        given: options that it has, with their dashes.
    """
    inspection = from_namespace(InspectionArguments, namespace)
    if "--verify" in given:
        _refuse_others(parser, "--verify", given, {"--data_output_dirs"})
        named = [] if inspection.verify is None else [inspection.verify]
        directory = _one_directory(parser, "--verify", named, namespace.data_output_dirs)
        parser.finish()
        assert directory is not None, "finish() exits without one"
        return Verification(directory)
    values = inspection.inspect or ()
    named = [value for value in values if isinstance(value, Path)]
    if "--inspect" not in given or not (named or "--data_input_dirs" not in given):
        _refuse_several(parser, values)
        return None
    _refuse_several(parser, values)
    _refuse_others(parser, "--inspect", given, {"--data_output_dirs", "--tokenizer_dir"})
    directory = _one_directory(parser, "--inspect", named, namespace.data_output_dirs)
    parser.finish()
    assert directory is not None, "finish() exits without one"
    return Inspection(directory, inspection.shown_rows, namespace.tokenizer_dir)


def _refuse_several(parser: CollectingArgumentParser, values: Sequence[int | Path]) -> None:
    counts = [sum(isinstance(value, kind) for value in values) for kind in (int, Path)]
    if max(counts) > 1:
        shown = " ".join(map(str, values))
        parser.problem(f"--inspect {shown}: give one number of rows and one directory at most (./5 is a directory)")


def _refuse_others(parser: CollectingArgumentParser, option: str, given: set[str], allowed: set[str]) -> None:
    if others := sorted(given - allowed - {option}):
        with_allowed = " and ".join(sorted(allowed))
        preparing = "; to prepare data, name it by --data_input_dirs" if option == "--inspect" else ""
        parser.problem(
            f"{option} opens a finished directory and goes with {with_allowed} at most, not with {', '.join(others)}"
            + preparing
        )


def _one_directory(
    parser: CollectingArgumentParser, option: str, named: list[Path], output_dir: Path | None
) -> Path | None:
    directories = [*named[:1], *([] if output_dir is None else [output_dir])]
    if len(directories) == 2:
        parser.problem(f"{option} {named[0]} names a directory, and --data_output_dirs another one: leave one out")
    if not directories:
        parser.finish()  # where the one that is named cannot be used
        parser.problem(f"which directory? {option} DIR, or --data_output_dirs DIR")
        return None
    if reason := directory_problem(directories[0]):
        parser.problem(f"--data_output_dirs: {directories[0]} {reason}")
    return directories[0]
