"""Arguments of merge_models, all checked before anything heavy is imported. Imports no torch."""

import math
import re
from dataclasses import dataclass
from os.path import realpath
from pathlib import Path

from colossal_llama.utils.arguments import add_options, from_namespace, group, option
from colossal_llama.utils.cli import CollectingArgumentParser, creatable_directory, number_in_range
from colossal_llama.utils.hub.names import NAME_FORMS, ModelName, directory_or_name

BASE, NONE = "base", "none"
_LARGEST_WEIGHT = 1_000
_SUM_TOLERANCE = 0.015
"""Weights of an average that are rounded, as 0.33 0.33 0.33, are divided by their sum."""


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """Models and their weights."""

    models: tuple[Path | ModelName, ...] = option(
        type=directory_or_name,
        nargs="+",
        required=True,
        metavar="MODEL",
        help=f"models to merge, each {NAME_FORMS} (safetensors alone)",
    )
    base: Path | ModelName | None = option(
        type=directory_or_name,
        metavar="MODEL",
        help="model whose differences from the others are added to it: base + sum of weight * (model - base); without "
        "it the models are averaged: sum of weight * model",
    )
    weights: tuple[float, ...] = option(
        (),
        type=number_in_range(float, minimum=-_LARGEST_WEIGHT, maximum=_LARGEST_WEIGHT),
        nargs="+",
        metavar="W",
        help="a weight for each of --models, 0 and negative ones too; without --base their sum is 1 (default: 1 / "
        "number of models without --base; with it they must be given)",
    )
    output_dir: Path = option(
        type=creatable_directory, required=True, metavar="DIR", help="output: a directory that does not exist"
    )


@dataclass(frozen=True, kw_only=True)
class VocabularyArguments:
    """Vocabulary, chat format and dtype of the result."""

    tokenizer_of: str | None = option(
        metavar="MODEL",
        help=f"model whose tokenizer the result has: one of --models as given there, or {BASE} (default: that with the "
        "most tokens but special ones, the first of several)",
    )
    chat_of: str | None = option(
        metavar="MODEL",
        help="model whose chat template, special tokens and generation settings the result has; added tokens that the "
        f"result lacks are added with its rows; one of --models, {BASE}, or {NONE}: nothing of another model than "
        "that of --tokenizer_of (default: the latter; if it has no template, the model that has one)",
    )
    dtype: str | None = option(
        choices=("float32", "bfloat16", "float16"),
        help="of the weights written (default: those of --base, or of the first model)",
    )


@dataclass(frozen=True, kw_only=True)
class MergeArguments:
    """All arguments of merge_models, in the groups of `--help`."""

    models: ModelArguments = group("models")
    vocabulary: VocabularyArguments = group("result")

    @property
    def named(self) -> dict[str, Path | ModelName]:
        """All models by what `--tokenizer_of` and `--chat_of` call them; the base is the last."""
        models = {str(model): model for model in self.models.models}
        return models if self.models.base is None else {**models, BASE: self.models.base}

    @property
    def model_weights(self) -> tuple[float, ...]:
        """A weight for each model; those of an average have the sum 1."""
        models, weights = self.models.models, self.models.weights
        if self.models.base is not None:
            return weights
        given = weights or (1.0,) * len(models)
        total = math.fsum(given)
        return given if total == 1 else tuple(weight / total for weight in given)


def parse_arguments(argv: list[str] | None = None) -> MergeArguments:
    """Parses and checks the command line; exits with code 2 and every problem when there is one."""
    parser = CollectingArgumentParser(
        description="Adds the differences of models to a base, or averages models: base + sum of w * (model - base)."
    )
    add_options(parser, MergeArguments)
    # argparse takes -1e-3 for an option: it knows negative numbers without an exponent alone.
    parser._negative_number_matcher = re.compile(r"-\.?\d")
    namespace = parser.parse_args(argv)
    if namespace.output_dir is not None and (namespace.output_dir.exists() or namespace.output_dir.is_symlink()):
        parser.problem(f"--output_dir {namespace.output_dir} exists already and is left untouched: give a new name")
    if not namespace.models:
        parser.finish()
    arguments = from_namespace(MergeArguments, namespace)
    for problem in _weight_problems(arguments.models):
        parser.problem(problem)
    for problem in _name_problems(arguments):
        parser.problem(problem)
    parser.finish()
    return arguments


def _weight_problems(arguments: ModelArguments) -> list[str]:
    models, weights = len(arguments.models), arguments.weights
    if weights and len(weights) != models:
        return [f"--weights has {len(weights)} numbers for {models} --models: give one for each model"]
    if arguments.base is not None:
        if weights:
            return []
        return ["--weights is missing: with --base give one for each model, 1 for the whole of its difference"]
    if models == 1:
        return ["--models is one model and --base is missing: there is nothing to add or to average"]
    total = math.fsum(weights or [1.0])
    if abs(total - 1) <= _SUM_TOLERANCE:
        return []
    advice = " ".join(f"{weight / total:.4g}" for weight in weights) if total > 0 else "weights with the sum 1"
    return [
        f"--weights have the sum {total:g}, and a sum of whole models needs 1: give {advice}, or --base to add the "
        "models' differences from it"
    ]


def _name_problems(arguments: MergeArguments) -> list[str]:
    problems = []
    for option_name in ("tokenizer_of", "chat_of"):
        given = getattr(arguments.vocabulary, option_name)
        allowed = [*arguments.named, *([NONE] if option_name == "chat_of" else [])]
        if given is not None and resolve_name(given, allowed) is None:
            problems.append(f"--{option_name} {given} is none of the models given: {', '.join(allowed)}")
    return problems + _overlap_problems(arguments)


def resolve_name(given: str, names: list[str]) -> str | None:
    """The model that a text means: its name as it was given, or another path of its directory."""
    if given in names:
        return given
    return next((name for name in names if Path(name).is_dir() and realpath(name) == realpath(given)), None)


def _overlap_problems(arguments: MergeArguments) -> list[str]:
    output = arguments.models.output_dir
    if output is None:
        return []
    paths = [path for path in arguments.named.values() if isinstance(path, Path)]
    inside = [path for path in paths if Path(realpath(output)).is_relative_to(realpath(path))]
    return [f"--output_dir {output} lies in the model's directory {path}: give one outside it" for path in inside[:1]]
