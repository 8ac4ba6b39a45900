"""Command line of train.py: parsed into groups of arguments, then checked. Imports no torch."""

from colossal_llama.training.argument_checks import check_arguments
from colossal_llama.training.arguments import TrainingArguments
from colossal_llama.training.parallel_layout import TABLE
from colossal_llama.utils.arguments import add_options, from_namespace
from colossal_llama.utils.cli import CollectingArgumentParser


def build_parser() -> CollectingArgumentParser:
    """Builds the parser of train.py from the declared arguments, in their groups."""
    parser = CollectingArgumentParser(
        prog="train.py",
        description="Continue the pre-training of a LLaMA, or fine-tune it, with ColossalAI. Start it with torchrun "
        "or colossalai run.",
        epilog=TABLE,
    )
    add_options(parser, TrainingArguments)
    return parser


def parse_arguments(
    command: list[str] | None = None, has_gpu: bool | None = None, world_size: int = 1
) -> TrainingArguments:
    """Parses and checks a command line.

    Args:
        command: arguments after `train.py`; None reads the process's own.
        has_gpu: True when the host trains on a GPU; None skips the checks that depend on it.
        world_size: number of processes.

    Raises:
        BadArguments: after all problems are printed; exit code 2.
    """
    parser = build_parser()
    arguments = from_namespace(TrainingArguments, parser.parse_args(command))
    check_arguments(parser, arguments, has_gpu, world_size)
    parser.finish()
    return arguments
