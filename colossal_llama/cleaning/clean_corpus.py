"""Cleans a corpus: raw records in, documents worth training on out, dropped ones with reasons.

    colossal-llama clean --data_input_dirs raw --output_dir clean
    colossal-llama clean --preset books --set length.max_words=1000000 --show_rules
    colossal-llama clean --verify clean

Imports slow libraries last, so that `--help` and a refused command line answer at once.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from colossal_llama.cleaning.arguments import CleanArguments
from colossal_llama.cleaning.decontamination.decontaminate import ngram_settings
from colossal_llama.cleaning.duplicates.signatures import DuplicateSettings
from colossal_llama.cleaning.language import WantedLanguages
from colossal_llama.cleaning.normalization import normalization_of, require_packages
from colossal_llama.cleaning.personal_data import PersonalDataSettings
from colossal_llama.cleaning.rule_settings import RuleSettings
from colossal_llama.dataset.prepare.arguments import shard_problems
from colossal_llama.dataset.role_names import role_problems
from colossal_llama.readers.fields import field_problems
from colossal_llama.utils.arguments import add_options, declared_options, from_namespace
from colossal_llama.utils.cli import CollectingArgumentParser, directory_problem
from colossal_llama.utils.errors import UserError, run_main

CUTTING_RULES = ("boilerplate", "duplicate_paragraphs")
DESCRIPTION = (
    "Clean raw text into a corpus worth training on: rules for each document, duplicates, decontamination. Every "
    "dropped document is kept in dropped/ with the rule and the figure that decided."
)


def main() -> None:
    """Cleans a corpus, prints the rules in effect, or verifies a finished cleaning.

    Raises:
        UserError: see `pipeline.clean` and `verification.verify`.
    """
    arguments = parse_arguments()
    if arguments.rules.show_rules:
        print(arguments.rules.settings.as_yaml(), end="")
        return
    if arguments.check.verify is not None:
        from colossal_llama.cleaning.verification import verify

        print(verify(arguments.check.verify))
        return
    if arguments.run.num_workers > 1:
        from colossal_llama.cleaning.workers import start_workers

        start_workers(arguments.run.num_workers)
    from colossal_llama.cleaning.pipeline import clean

    report = clean(arguments)
    if report is not None:
        from colossal_llama.cleaning.report_tables import summary

        print(summary(report))


def parse_arguments(command: Sequence[str] | None = None) -> CleanArguments:
    """Parses and checks a command line; exits with code 2 and all problems when there is one.

    Args:
        command: arguments after the script's name; None reads the process's own.
    """
    command = sys.argv[1:] if command is None else command
    parser = CollectingArgumentParser(prog="clean_corpus.py", description=DESCRIPTION)
    add_options(parser, CleanArguments)
    namespace, unknown = parser.parse_known_args(command)
    for argument in unknown:
        parser.problem(f"{argument} is no argument of this script")
    given = {argument.split("=")[0] for argument in command if argument.startswith("--")}
    for name, declared in declared_options(CleanArguments).items():
        if declared.needed and not hasattr(namespace, name):
            setattr(namespace, name, None)
        if declared.needed and f"--{name}" not in given and not given & {"--show_rules", "--verify"}:
            parser.problem(f"--{name} is missing: {declared.needed}")
    for problem in field_problems(namespace):
        parser.problem(problem)
    if "--verify" in given:
        _check_verification(parser, namespace, given)
    arguments = from_namespace(CleanArguments, namespace)
    for problem in _problems(arguments):
        parser.problem(problem)
    parser.finish()
    return arguments


def _check_verification(parser: CollectingArgumentParser, namespace: Namespace, given: set[str]) -> None:
    """Finds the directory of `--verify`, which goes with no other option than --output_dir."""
    if others := sorted(given - {"--verify", "--output_dir"}):
        parser.problem(f"--verify re-reads a finished directory and goes with --output_dir at most, not {others[0]}")
    named = [path for path in (namespace.verify, namespace.output_dir) if path is not None]
    if len(named) != 1:
        parser.problem("which directory? --verify DIR, or --verify with --output_dir DIR")
    elif reason := directory_problem(named[0]):
        parser.problem(f"--verify: {named[0]} {reason}")
    else:
        namespace.verify = named[0]


def _problems(arguments: CleanArguments) -> Iterator[str]:
    """Problems of options together."""
    try:
        rules = arguments.rules.settings
    except UserError as error:
        yield from error.problems
    else:
        yield from _rule_problems(rules)
        yield from _conversation_problems(arguments)
        yield from _list_problems(arguments)
    yield from shard_problems(arguments.shards.shard_index, arguments.shards.num_shards)
    if arguments.shards.shard_index is not None and arguments.run.overwrite:
        yield "--overwrite would remove the other shards' work: remove the directory before the jobs start"


def _rule_problems(rules: RuleSettings) -> Iterator[str]:
    """Problems of values that only the rules themselves know, and of packages that they need."""
    checks: tuple[Callable[[RuleSettings], object], ...] = (
        lambda rules: require_packages(normalization_of(rules)),
        WantedLanguages.of_rules,
        PersonalDataSettings.of_rules,
        DuplicateSettings.of_rules,
        lambda rules: ngram_settings(rules["decontamination"]),
    )
    for check in checks:
        try:
            check(rules)
        except UserError as error:
            yield from error.problems


def _conversation_problems(arguments: CleanArguments) -> Iterator[str]:
    """Problems of options that go with conversations alone, or not with them."""
    if not arguments.is_conversations:
        if arguments.conversations.roles:
            yield "--roles has no effect: it is for the messages of --preset conversations; leave it out"
        return
    yield from role_problems(arguments.conversations.roles)
    for name in CUTTING_RULES:
        if arguments.rules.settings[name].on:
            yield f"{name} cuts lines or paragraphs, which would break messages: leave it out, or add --off {name}"


def _list_problems(arguments: CleanArguments) -> Iterator[str]:
    """Problems of the lists of the user."""
    if arguments.rules.languages and any("language.allowed" in change for change in arguments.rules.set):
        yield "--languages and --set language.allowed name the same list: leave one out"
    if arguments.lists.decontaminate and not arguments.rules.settings["decontamination"].on:
        yield "--decontaminate has no effect: the rule decontamination is off; leave one out"
    if arguments.quality.quality_model is not None and not arguments.rules.settings["quality_loss"].on:
        yield "--quality_model has no effect: the rule quality_loss is off; leave one out"
    else:
        try:
            _ = arguments.quality_model
        except UserError as error:
            yield from error.problems
    if arguments.lists.blocklist and not arguments.rules.settings["blocklists"].on:
        yield "--blocklist has no effect: the rule blocklists is off; leave one out"
        return
    try:
        _ = arguments.blocklists
    except UserError as error:
        yield from error.problems


if __name__ == "__main__":
    run_main(main)
