"""The order of work of an evaluation: models one after the other, then tables and a figure."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from colossal_llama.evaluation import models, ranks, tables
from colossal_llama.evaluation.arguments import EvaluationArguments
from colossal_llama.evaluation.faults import say_faults, say_tasks_without_subjects
from colossal_llama.evaluation.figure import FIGURE_TITLE, draw_scores
from colossal_llama.evaluation.model_run import ModelRun
from colossal_llama.evaluation.models import EvaluatedModel
from colossal_llama.evaluation.parts import Part, open_parts
from colossal_llama.evaluation.ranks import Ranks
from colossal_llama.evaluation.records import AnswerRecord, subject_fingerprint
from colossal_llama.utils.atomic_io import remove_abandoned_files
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.figures import figure_output_problem
from colossal_llama.utils.file_lock import directory_lock

_RESULTS = ("table", "texts", "answers", "questions", "evaluation", "texts.settings", "answers.settings")
"""Names of the files that are written, without their endings."""


def evaluate(arguments: EvaluationArguments) -> None:
    """Evaluates the models of the arguments on what they name, all processes together.

    Raises:
        UserError: on all processes, if one has a problem.
    """
    together = ranks.join()
    try:
        _evaluate(arguments, together)
    except KeyboardInterrupt:
        if together.is_first:
            print(f"\n{ranks.GO_ON}", file=sys.stderr)
        raise
    finally:
        together.leave()


def _evaluate(arguments: EvaluationArguments, together: Ranks) -> None:
    options = arguments.model
    with together.stage():
        device = models.device_of(options.device, together.local_rank)
    dtype = options.dtype or ("bf16" if device.type == "cuda" else "fp32")
    needed = options.max_length if arguments.subjects or arguments.text.texts else 0
    found = together.first(lambda: models.find_models(options.model_path, options.compare, needed))
    with ExitStack() as locks:
        together.first(lambda: _lock(arguments.output_dir, locks))
        with together.stage():
            parts = open_parts(arguments, together, found, device, dtype)
        runs = [_run_of(arguments, together, model, device, dtype, parts) for model in found]
        together.first(lambda: _check_outputs(arguments, runs))
        together.first(lambda: _remove_abandoned_files(arguments, runs))
        if together.is_first:
            say_tasks_without_subjects(arguments.task.tasks, arguments.subjects)
            say_faults(arguments.subjects)
        for run in runs:
            run.run()
        together.first(lambda: _write_tables(arguments, runs))
        for part in parts:
            together.first(part.write)


def _settings(arguments: EvaluationArguments, device: torch.device, dtype: str) -> dict[str, Any]:
    """Options that decide the answers, but those that name models and questions."""
    return {
        "protocol": arguments.task.protocol,
        "limit": arguments.task.limit,
        "shots": arguments.task.shots,
        "max_length": arguments.model.max_length,
        "dtype": dtype,
        "device": device.type,
    }


def _run_of(
    arguments: EvaluationArguments,
    together: Ranks,
    model: EvaluatedModel,
    device: torch.device,
    dtype: str,
    parts: Sequence[Part],
) -> ModelRun:
    subjects = {f"{subject.task} {subject.name}": subject_fingerprint(subject) for subject in arguments.subjects}
    settings = {**_settings(arguments, device, dtype), **model.identity(), "subjects": subjects}
    record = AnswerRecord(arguments.output_dir / model.name, settings, arguments.subjects)
    return ModelRun(arguments, together, model, device, dtype, record, parts)


def _lock(directory: Path, locks: ExitStack) -> None:
    try:
        locks.enter_context(directory_lock(directory))
    except BlockingIOError as error:
        raise UserError(
            f"another run is writing into {directory} ({error.filename}): wait for it to end, or give another "
            "--output_dir"
        ) from None
    except OSError as error:
        raise UserError(f"--output_dir {directory} cannot be written: {error.strerror}") from None


def _check_outputs(arguments: EvaluationArguments, runs: list[ModelRun]) -> None:
    problems = list(_output_problems(arguments, runs))
    if problems:
        raise UserError([f"--output_dir: {problem}" for problem in problems])


def _remove_abandoned_files(arguments: EvaluationArguments, runs: Sequence[ModelRun]) -> None:
    """Removes what a killed run left under temporary names in the directories of this run."""
    names = [f"{name}{ending}" for name in _RESULTS for ending in (".md", ".json", ".jsonl", ".png")]
    for directory in (arguments.output_dir, *(run.record.directory for run in runs)):
        remove_abandoned_files(directory, names)


def _output_problems(arguments: EvaluationArguments, runs: list[ModelRun]) -> Iterator[str]:
    if arguments.subjects:
        yield from tables.output_problems(arguments.output_dir)
        if problem := figure_output_problem(arguments.output_dir / tables.TABLE_PNG, FIGURE_TITLE):
            yield problem
        yield from (problem for run in runs if (problem := run.record.problem()))
    for part in runs[0].parts:
        yield from part.problems()


def _write_tables(arguments: EvaluationArguments, runs: list[ModelRun]) -> None:
    """Writes the tables and the figure, and prints the scores by task and group."""
    if not arguments.subjects:
        return
    settings = _settings(arguments, runs[0].device, runs[0].dtype)
    paths = {run.model.name: str(run.model.directory) for run in runs}
    rows = tables.make_rows(arguments.subjects, {run.model.name: run.record.answers() for run in runs})
    facts = tables.facts_of(arguments.subjects, rows, list(paths), settings)
    tables.write_tables(arguments.output_dir, rows, paths, settings, facts)
    replaced = draw_scores(rows, list(paths), arguments.output_dir / tables.TABLE_PNG)
    log_rank_zero("\n" + tables.terminal_table(rows, list(paths)) + "\n")
    for fact in (*facts, *(f"{label} in the figure: {name} (no font draws it)" for name, label in replaced.items())):
        log_rank_zero(fact)
    log_rank_zero(f"→ {arguments.output_dir / tables.TABLE_MD}, {tables.TABLE_JSON}, {tables.TABLE_PNG}")
