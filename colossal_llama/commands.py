"""Command line of the package: `colossal-llama NAME …`, also `python -m colossal_llama NAME …`.

Each command is the `main` function of a module, which can be run by its path as well. Only the
module of the command that is asked for is imported.

    colossal-llama init_tokenizer --help
    torchrun --standalone --nproc_per_node 8 -m colossal_llama train --pretrained MODEL …
"""

import difflib
import sys
from dataclasses import dataclass

from colossal_llama import __version__
from colossal_llama.utils.cli import PROGRAM
from colossal_llama.utils.errors import run_main


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        name: that of the script which does the same.
        function: `module:function`, as `run_main` takes it.
        summary: a line for `colossal-llama --help`.
        aliases: further names.
    """

    name: str
    function: str
    summary: str
    aliases: tuple[str, ...] = ()


COMMANDS = (
    Command(
        "get_model",
        "colossal_llama.model.get_model:main",
        "download a model or tokenizer of a hub, also for hosts without a network",
    ),
    Command(
        "clean_corpus",
        "colossal_llama.cleaning.clean_corpus:main",
        "clean raw text into a corpus: rules, duplicates, decontamination, report",
        ("clean",),
    ),
    Command("learn_pieces", "colossal_llama.tokenizer.learn_pieces:main", "learn new vocabulary pieces from a corpus"),
    Command("init_tokenizer", "colossal_llama.tokenizer.init_tokenizer:main", "expand a tokenizer by new pieces"),
    Command("report", "colossal_llama.tokenizer.report:main", "measure how well tokenizers compress a corpus"),
    Command("init_model", "colossal_llama.model.init_model:main", "initialise the embeddings of new tokens in a model"),
    Command(
        "prepare_pretrain_dataset",
        "colossal_llama.dataset.prepare.cli:prepare_pretrain",
        "tokenize and pack documents for pre-training",
        ("prepare_pretrain",),
    ),
    Command(
        "prepare_sft_dataset",
        "colossal_llama.dataset.prepare.cli:prepare_sft",
        "tokenize conversations for supervised fine-tuning",
        ("prepare_sft",),
    ),
    Command(
        "plot_data",
        "colossal_llama.dataset.plot_data:main",
        "plot prepared data: tokens by category and bucket, lengths, fill",
    ),
    Command(
        "train",
        "colossal_llama.training.train:main",
        "pre-train or fine-tune a model (one process of it: see torchrun)",
    ),
    Command(
        "inference_example",
        "colossal_llama.inference.cli:main",
        "generate: complete a text, answer prompts, chat",
        ("inference",),
    ),
    Command(
        "evaluate",
        "colossal_llama.evaluation.cli:main",
        "score models on benchmarks and texts, next to their base models",
    ),
    Command(
        "merge_models",
        "colossal_llama.model.merge_models:main",
        "add the differences of models to a base (chat vector), or average models",
        ("merge",),
    ),
    Command(
        "export_model",
        "colossal_llama.export.export_model:main",
        "write a model for other programs: merged, another dtype, GGUF, model card",
        ("export",),
    ),
    Command("plot_training", "colossal_llama.training.plot_training:main", "plot the loss curves of runs"),
    Command(
        "scale_model",
        "colossal_llama.training.memory.scale_model:main",
        "predict memory and time of a training step on many GPUs",
    ),
    Command("preflight", "colossal_llama.cluster.preflight:main", "check every host of a hostfile before a long run"),
    Command(
        "colossalai_run",
        "colossal_llama.cluster.colossalai_run:main",
        "start `colossalai run` with each word quoted for the shells of the hosts",
        ("run",),
    ),
    Command("survey", "colossal_llama.cluster.survey:main", "print packages, disk, GPUs of this host as JSON"),
    Command(
        "all_reduce_check",
        "colossal_llama.cluster.all_reduce_check:main",
        "time an all-reduce over all processes of torchrun",
    ),
)


def main() -> None:
    """Runs the sub-command that the first argument names; the others are its own.

    The exit code is 2 when there is no command of that name.
    """
    command = find_command(sys.argv[1]) if len(sys.argv) > 1 else None
    if command is None:
        run_main(_answer_without_command)
        return
    sys.argv[:2] = [f"{PROGRAM} {command.name}"]
    run_main(command.function)


def _answer_without_command() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else None
    if name in ("-h", "--help", "--version"):
        print(__version__ if name == "--version" else usage())
        return
    problem = unknown_command(name) if name else "no command was given"
    print(f"error: {problem}\n'{PROGRAM} --help' lists the commands.", file=sys.stderr)
    raise SystemExit(2)


def find_command(name: str) -> Command | None:
    """The command with this name or alias."""
    return next((command for command in COMMANDS if name in (command.name, *command.aliases)), None)


def unknown_command(name: str) -> str:
    """The message for a name that no command has, with the closest names."""
    names = [name for command in COMMANDS for name in (command.name, *command.aliases)]
    close = difflib.get_close_matches(name, names, n=2)
    return f"there is no command {name!r}" + (f": did you mean {' or '.join(close)}?" if close else "")


def usage() -> str:
    """The text of `--help`: each command with its aliases and summary."""
    shown = [", ".join((command.name, *command.aliases)) for command in COMMANDS]
    width = max(map(len, shown))
    lines = [f"  {names:<{width}}  {command.summary}" for names, command in zip(shown, COMMANDS, strict=True)]
    return "\n".join(
        (
            f"usage: {PROGRAM} COMMAND [OPTION …]",
            "",
            "Give a LLaMA model a new language or domain. Commands, in the order of their use:",
            "",
            *lines,
            "",
            f"'{PROGRAM} COMMAND --help' lists a command's options; '{PROGRAM} --version' prints the version.",
        )
    )
