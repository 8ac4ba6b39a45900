"""Arguments of export_model, all checked before anything heavy is imported. Imports no torch."""

import re
from argparse import ArgumentTypeError
from dataclasses import dataclass
from pathlib import Path

from colossal_llama.export.output_directory import output_dir_problem
from colossal_llama.utils.arguments import add_options, from_namespace, group, ineffective_options, option, switch
from colossal_llama.utils.cli import (
    CollectingArgumentParser,
    creatable_directory,
    existing_directory,
    number_in_range,
    usable_name,
)
from colossal_llama.utils.hub.names import NAME_FORMS

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", re.IGNORECASE)


def size_bytes(text: str) -> int:
    """Converts a size as Hugging Face writes it: 5GB and 500MB are powers of ten, 5GiB of two.

    Raises:
        ArgumentTypeError: the text is no size above 0.
    """
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS.get(match[2].upper(), 0)) if match else 0
    if not 0 < size < 2**63:
        raise ArgumentTypeError(f"{text!r} is no size: give for example 5GB, 500MB or 2GiB")
    return size


def _size(text: str) -> str:
    size_bytes(text)
    return text


def _word(text: str) -> str:
    if not text.strip() or any(ord(character) < 32 for character in text):
        raise ArgumentTypeError(f"{text!r} is empty or has control characters")
    return text.strip()


@dataclass(frozen=True, kw_only=True)
class WeightArguments:
    """Model to export, and form of its weights."""

    model_path: str = option(
        type=usable_name,
        required=True,
        help="directory of a model, of a run or its checkpoint (their modelling/ is taken), or of a LoRA adapter; "
        f"{NAME_FORMS}",
    )
    output_dir: Path = option(
        type=creatable_directory, required=True, help="output: a directory that does not exist, or is empty"
    )
    merge: bool = switch(help="merge the adapter into its base model, which is loaded into memory for it")
    dtype: str | None = option(
        choices=("float32", "bfloat16", "float16"), help="of the weights written (default: as stored)"
    )
    max_shard_size: str = option(
        "5GB", type=_size, help="largest weight file; a tensor that is larger has a file of its own"
    )
    gguf: str | None = option(
        choices=("f16", "q8_0"), help="also write a GGUF file of this type for llama.cpp, into --output_dir"
    )


@dataclass(frozen=True, kw_only=True)
class CheckArguments:
    """Loading and answering in a fresh process."""

    check: str | None = option(
        metavar="TEXT",
        help="load source and export with plain transformers, each in a fresh process, answer TEXT greedily and "
        "compare the logits; through the chat template if there is one",
    )
    check_tokens: int = option(
        32, type=number_in_range(int, minimum=1, maximum=4096), only_with="check", help="most tokens of an answer"
    )
    device: str = option("cpu", only_with="check", help="of --check: cpu, cuda:0, …")


@dataclass(frozen=True, kw_only=True)
class CardArguments:
    """Content of the model card."""

    model_card: bool = switch(help="write README.md from the records of the run")
    records: tuple[Path, ...] = option(
        (),
        type=existing_directory,
        nargs="+",
        metavar="DIR",
        only_with="model_card",
        help="directories in which the run's records lie: its --config_file, --tensorboard_dir, the data's "
        "manifest.json, reports of tokenizers, results of lm-evaluation-harness (default: those that the run's own "
        "files name, and the directory above the model)",
    )
    license: str | None = option(
        type=_word, metavar="ID", only_with="model_card", help="licence of the model: apache-2.0, llama3, …"
    )
    language: tuple[str, ...] = option(
        (), type=_word, nargs="+", metavar="CODE", only_with="model_card", help="languages of the model: zh en"
    )
    base_model: str | None = option(
        type=_word,
        metavar="NAME",
        help="name of the base model, for the card and an adapter's configuration (default: the name of its directory)",
    )


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """All arguments of export_model, in the groups of `--help`."""

    weights: WeightArguments = group("model")
    check: CheckArguments = group("check")
    card: CardArguments = group("model card")


def parse_arguments(argv: list[str] | None = None) -> ExportArguments:
    """Parses and checks the command line; exits with code 2 and every problem when there is one."""
    parser = CollectingArgumentParser(
        description="Writes a model as a complete directory for other programs: merged, in another dtype, as GGUF."
    )
    add_options(parser, ExportArguments)
    namespace = parser.parse_args(argv)
    if namespace.output_dir is not None and (problem := output_dir_problem(namespace.output_dir)):
        parser.problem(f"--output_dir {problem}")
    if namespace.check is not None and not namespace.check.strip():
        parser.problem("--check: the text is empty")
    declared = from_namespace(ExportArguments, namespace)
    for name, needed in ineffective_options(declared):
        parser.problem(f"--{name} has no effect without --{needed}")
    parser.finish()
    return declared
