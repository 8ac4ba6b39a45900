"""Command line of the prepare scripts: parses, checks and runs; imports slow libraries last."""

import os
import sys
from argparse import Namespace
from collections.abc import Sequence

from colossal_llama.dataset.prepare.arguments import (
    ARGUMENTS,
    Inspection,
    Kind,
    PrepareArguments,
    Verification,
    shard_problems,
)
from colossal_llama.dataset.prepare.looking_only import command_that_only_looks
from colossal_llama.dataset.role_names import role_problems
from colossal_llama.dataset.system_prompt import given_system
from colossal_llama.readers.fields import field_problems
from colossal_llama.utils.arguments import add_options, declared_options, from_namespace
from colossal_llama.utils.cli import CollectingArgumentParser
from colossal_llama.utils.errors import UserError


def prepare_pretrain() -> None:
    """Runs prepare_pretrain_dataset.py."""
    _leave_torch_out()
    run("pretrain")


def prepare_sft() -> None:
    """Runs prepare_sft_dataset.py."""
    _leave_torch_out()
    run("sft")


def _leave_torch_out() -> None:
    """Lets transformers load what a tokenizer needs and not torch: 1 s and 180 MB less."""
    os.environ.setdefault("USE_TORCH", "0")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def run(kind: Kind) -> None:
    """Prepares, inspects or verifies a data set, as the command line asks, and prints the outcome.

    Raises:
        UserError: see `pipeline.prepare`, `inspection.inspect` and `verification.verify`.
    """
    arguments = parse_arguments(kind)
    if isinstance(arguments, Verification):
        from colossal_llama.dataset.prepare.verification import verify

        print(verify(arguments.directory))
        return
    if isinstance(arguments, Inspection):
        from colossal_llama.dataset.prepare.inspection import inspect

        inspect(arguments)
        return
    if arguments.run.num_workers > 1:
        from colossal_llama.dataset.prepare.worker_pool import start_fork_server

        start_fork_server(arguments.run.num_workers)
    from colossal_llama.dataset.prepare.manifest import summary
    from colossal_llama.dataset.prepare.open_tokenizer import OpenTokenizer
    from colossal_llama.dataset.prepare.pipeline import prepare

    opened = OpenTokenizer(arguments.paths.tokenizer_dir)
    manifest = prepare(arguments, opened)
    if manifest is None:
        return
    print(summary(manifest))
    parts = [arguments.output_dir / "arrow" / part["name"] for part in manifest["parts"]]
    if rows := arguments.inspection.shown_rows:
        from colossal_llama.dataset.prepare.inspection import show_rows

        show_rows(parts, opened.tokenizer, rows)
    if arguments.inspection.plot:
        from colossal_llama.dataset.data_figure import plot_parts

        plot_parts(parts, arguments.output_dir.resolve().name, arguments.output_dir / "plot_data.png")
        print(f"plotted: {arguments.output_dir / 'plot_data.png'}")


def parse_arguments(kind: Kind, command: Sequence[str] | None = None) -> PrepareArguments | Inspection | Verification:
    """Parses and checks a command line; exits with code 2 and all problems when there is one.

    Args:
        kind: of the script.
        command: arguments after the script's name; None reads the process's own.

    Returns:
        The arguments of a preparation, or what is to be done with a finished one.
    """
    command = sys.argv[1:] if command is None else command
    declared = ARGUMENTS[kind]
    parser = CollectingArgumentParser(description=declared.description)
    add_options(parser, declared)
    namespace, unknown = parser.parse_known_args(command)
    for argument in unknown:
        parser.problem(f"{argument} is no argument of this script")
    given = {argument.split("=")[0] for argument in command if argument.startswith("--")}
    looking = command_that_only_looks(parser, namespace, given)
    if looking is not None:
        return looking
    for name, option in declared_options(declared).items():
        if option.needed and f"--{name}" not in given:
            parser.problem(f"--{name} is missing: {option.needed}")
    _check_combinations(parser, namespace, given)
    parser.finish()
    return from_namespace(declared, namespace)


def _check_combinations(parser: CollectingArgumentParser, arguments: Namespace, given: set[str]) -> None:
    """Adds a problem for every combination of arguments that cannot work."""
    for problem in field_problems(arguments):
        parser.problem(problem)
    for problem in role_problems(getattr(arguments, "roles", ())):
        parser.problem(problem)
    try:
        given_system(getattr(arguments, "system", None), getattr(arguments, "system_file", None))
    except UserError as error:
        parser.problem(str(error))
    index = arguments.shard_index
    for problem in shard_problems(index, arguments.num_shards):
        parser.problem(problem)
    if getattr(arguments, "chat_template", None) is not None and "--llama_version" in given:
        parser.problem("--llama_version has no effect with --chat_template, which decides the format: leave one out")
    for name in ("total_tokens", "max_repeats"):
        if f"--{name}" in given and "--mixture" not in given:
            parser.problem(f"--{name} has no effect without --mixture: give one, or leave it out")
    for name in ("overwrite", "inspect", "plot"):
        if arguments.plan_only and f"--{name}" in given:
            parser.problem(f"--{name} does not go with --plan_only, which leaves finished parts alone and writes none")
    if index is not None and arguments.overwrite:
        parser.problem("--overwrite would remove the other shards' work: remove the directory before the jobs start")
