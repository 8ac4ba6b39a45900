"""Command-line arguments of evaluation, all checked before anything heavy is imported."""

import os
import sys
from argparse import ArgumentTypeError
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from colossal_llama.evaluation.questions import Subject
from colossal_llama.evaluation.text_arguments import AnswerArguments, TextArguments, text_problems
from colossal_llama.readers.input_paths import GatherPaths
from colossal_llama.utils.arguments import (
    add_options,
    declared_options,
    from_namespace,
    group,
    ineffective_options,
    option,
)
from colossal_llama.utils.cli import (
    CollectingArgumentParser,
    creatable_directory,
    existing_directory,
    existing_file,
    number_in_range,
)
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.hub.names import NAME_FORMS, ModelName, directory_or_name

PUBLISHED, LIKELIHOOD = "published", "likelihood"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Names of `--dtype`, each with PyTorch's."""


def model_sources(text: str) -> list[Path | ModelName]:
    """Returns models, several by commas (argparse `type=`).

    Raises:
        argparse.ArgumentTypeError: one is neither a directory nor the name of a repository.
    """
    return [directory_or_name(word) for word in ([text] if Path(text).exists() else words_of(text))]


def words_of(text: str) -> list[str]:
    """Returns the words between commas (argparse `type=`).

    Raises:
        argparse.ArgumentTypeError: there is none.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise ArgumentTypeError("the name is empty" if not text.strip() else f"{text!r} names nothing")
    return words


def task_names(text: str) -> list[str]:
    """Returns names of tasks and of files, several by commas (argparse `type=`).

    A file's name may have commas itself.
    """
    return [text] if Path(text).is_file() else words_of(text)


def output_directory(text: str) -> Path:
    """Returns the path of a directory that is there or can be created (argparse `type=`).

    Raises:
        argparse.ArgumentTypeError: it can neither be created nor written.
    """
    path = Path(text)
    if not path.exists():
        return creatable_directory(text)
    existing_directory(text)
    if not os.access(path, os.W_OK | os.X_OK):
        raise ArgumentTypeError(f"{text} cannot be written: no permission")
    return path


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """The models and how they are loaded."""

    model_path: Path | ModelName = option(
        type=directory_or_name,
        needed="give a model directory, or the name of a hub's model",
        metavar="MODEL",
        help=f"model, or peft adapter on a base model: {NAME_FORMS}",
    )
    compare: tuple[Path | ModelName, ...] = option(
        (),
        nargs="+",
        action=GatherPaths,
        type=model_sources,
        metavar="BASE",
        help="further models, evaluated in the same way and shown next to it: as it was before training, or others",
    )
    device: str | None = option(
        help="cpu, cuda:0, … (default: a GPU for each process, or cpu where there is no CUDA device)"
    )
    dtype: str | None = option(
        choices=tuple(DTYPES), help="of the weights and the computation (default: bf16 on a GPU, fp32 on a CPU)"
    )
    max_length: int = option(
        2048,
        type=number_in_range(int, minimum=64),
        help="most tokens of a prompt (fewer examples are given, then the middle is left out), and of a window of "
        "--texts",
    )
    tokens_per_batch: int | None = option(
        type=number_in_range(int, minimum=1),
        help="tokens that are computed at once; it changes the speed only (default: what the memory holds)",
    )


@dataclass(frozen=True, kw_only=True)
class TaskArguments:
    """The benchmarks and how they are scored."""

    tasks: tuple[str, ...] = option(
        (),
        nargs="+",
        action=GatherPaths,
        type=task_names,
        metavar="TASK|FILE.jsonl",
        help="mmlu, cmmlu, ceval, agieval, gaokao, gsm8k; and files of one's own questions, lines of "
        '{"question", "choices", "answer"} or {"prompt", "target"}',
    )
    data_dir: Path | None = option(
        type=existing_directory,
        only_with="tasks",
        help="directory with a folder for each task, laid out as the authors publish it",
    )
    subjects: tuple[str, ...] = option(
        (),
        nargs="+",
        action=GatherPaths,
        type=words_of,
        only_with="tasks",
        metavar="SUBJECT",
        help="these subjects only: names of files without their endings",
    )
    limit: int | None = option(
        type=number_in_range(int, minimum=1), only_with="tasks", help="the first questions of each subject only"
    )
    shots: int | None = option(
        type=number_in_range(int, minimum=0),
        only_with="tasks",
        help="most examples before a question (default: of each task as published)",
    )
    protocol: str = option(
        PUBLISHED,
        choices=(PUBLISHED, LIKELIHOOD),
        only_with="tasks",
        help="published: the letter with the largest logit, as the published tables were scored; likelihood: the "
        "answer of the largest log-likelihood, as lm-evaluation-harness scores",
    )
    template: Path | None = option(
        type=existing_file, only_with="tasks", metavar="FILE", help="wording of one's own questions"
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationArguments:
    """All arguments of evaluation, in the groups of `--help`.

    Attributes:
        subjects: what `--tasks` names, read from the files.
    """

    output_dir: Path = option(
        type=output_directory,
        needed="give a new directory, or that of a run to go on with",
        metavar="OUT",
        help="tables, a figure, and a directory for each model with the answers; a run that was killed goes on there",
    )
    model: ModelArguments = group("models")
    task: TaskArguments = group("benchmarks")
    text: TextArguments = group("bits per byte of texts")
    answer: AnswerArguments = group("answers side by side")
    subjects: tuple[Subject, ...] = ()


def parse_arguments(argv: list[str] | None = None) -> EvaluationArguments:
    """Parses and checks the command line, and reads the questions of its tasks.

    Exits with code 2 and every problem when there is one.
    """
    parser = CollectingArgumentParser(
        description="Evaluates models: benchmarks from their authors' files, bits per byte of texts, answers side by "
        "side. Nothing is downloaded but models that are given by the name of a hub."
    )
    add_options(parser, EvaluationArguments)
    command = sys.argv[1:] if argv is None else argv
    namespace, unknown = parser.parse_known_args(command)
    for argument in unknown:
        parser.problem(f"{argument} is no argument of this script")
    named = {word.split("=")[0].removeprefix("--") for word in command if word.startswith("--")}
    for name, declaration in declared_options(EvaluationArguments).items():
        if declaration.needed and name not in named:
            parser.problem(f"--{name} is missing: {declaration.needed}")
    given = from_namespace(EvaluationArguments, namespace)
    for problem in _problems(given, named):
        parser.problem(problem)
    subjects: list[Subject] = []
    try:
        if given.task.tasks and (given.task.data_dir or "data_dir" not in named):  # not one that was refused
            subjects = _open_tasks(given.task)
    except UserError as error:
        for problem in error.problems:
            parser.problem(problem)
    parser.finish()
    return replace(given, subjects=tuple(subjects))


def _problems(given: EvaluationArguments, named: Collection[str]) -> Iterator[str]:
    """Contradictions among the options; `named` are those of the command line, refused ones too."""
    if not {"tasks", "texts", "questions"} & set(named):
        yield (
            "nothing is asked for: give --tasks TASK …, --texts PATH …, or --questions FILE.jsonl, or several of them"
        )
    for name, needed in ineffective_options(given):
        if needed in named:  # it was refused
            continue
        yield f"--{name} has no effect without --{needed}: add that, or leave it out"
    yield from text_problems(given.text, given.answer, given.model.max_length)
    models = [model for model in (given.model.model_path, *given.model.compare) if model is not None]
    for model in dict.fromkeys(models):
        if models.count(model) > 1:
            yield f"the model {model} is given twice: name each once, in --model_path or --compare"


def _open_tasks(given: TaskArguments) -> list[Subject]:
    from colossal_llama.evaluation.tasks.registry import open_tasks

    return open_tasks(list(given.tasks), given.data_dir, given.subjects, given.limit, given.shots, given.template)
