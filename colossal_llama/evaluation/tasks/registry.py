"""The benchmarks by name, and their files opened."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from colossal_llama.evaluation.questions import Subject
from colossal_llama.evaluation.tasks import agieval, ceval, cmmlu, gaokao, gsm8k, mmlu
from colossal_llama.evaluation.tasks.directories import folded
from colossal_llama.evaluation.tasks.task import SubjectFile, Task
from colossal_llama.utils.errors import UserError, truncate_problems
from colossal_llama.utils.suggestion import did_you_mean

TASKS: dict[str, Task] = {
    task.name: task for task in (mmlu.TASK, cmmlu.TASK, ceval.TASK, agieval.TASK, gaokao.TASK, gsm8k.TASK)
}
"""In the order of the published table."""
_SPLITS = ("_test", "_val", "_dev")


def open_tasks(
    names: Sequence[str],
    data_dir: Path | None,
    subjects: Sequence[str] = (),
    limit: int | None = None,
    shots: int | None = None,
    template: Path | None = None,
) -> list[Subject]:
    """Reads the questions of benchmarks.

    Args:
        names: of `TASKS`, or paths of files of one's own.
        data_dir: holds a folder for each benchmark.
        subjects: names of the files to read, with or without `_test`; empty for all of the table.
        limit: most questions of a subject, the first of its file; None for all.
        shots: number of examples; None for each benchmark's own.
        template: file with the wording of own questions.

    Returns:
        Subjects, by task in the given order, then by name.

    Raises:
        UserError: names all tasks, subjects and files that cannot be read.
    """
    problems: list[str] = []
    opened: list[tuple[Task, list[SubjectFile]]] = []
    for name in dict.fromkeys(names):
        try:
            task = _task(name)
            opened.append((task, _files(task, data_dir)))
        except UserError as error:
            problems += error.problems
    chosen = _chosen(opened, subjects, problems if not problems else [])
    read: list[Subject] = []
    for task, files in chosen:
        for file in files:
            try:
                subject = task.read(file, task.shots if shots is None else shots)
            except UserError as error:
                problems += error.problems
                continue
            read.append(subject if limit is None else replace(subject, questions=subject.questions[:limit]))
    if problems:
        raise UserError(truncate_problems(problems))
    return read if subjects else _with_left_out(read, opened)


def _with_left_out(read: list[Subject], opened: Sequence[tuple[Task, list[SubjectFile]]]) -> list[Subject]:
    """Notes at the first subject of each task which files are not part of the table."""
    left_out = {task.name: [file.name for file in files if not file.is_in_table] for task, files in opened}
    noted = []
    for subject in read:
        if names := left_out.pop(subject.task, []):
            note = f"{subject.task}: left out, as they are not in the published table: {', '.join(names)}"
            subject = replace(subject, notes=(*subject.notes, f"{note} (--subjects reads those of one letter)"))
        noted.append(subject)
    return noted


def _task(name: str) -> Task:
    task = TASKS.get(name.casefold())
    if task is None:
        raise UserError(f"--tasks {name} is not known{did_you_mean(name, TASKS)}: known are {', '.join(TASKS)}")
    return task


def _files(task: Task, data_dir: Path | None) -> list[SubjectFile]:
    if data_dir is None:
        raise UserError(f"--tasks {task.name} needs --data_dir: a directory with a folder for each task")
    if not data_dir.is_dir():
        raise UserError(f"--data_dir {data_dir} is no directory")
    folders = [path for path in sorted(data_dir.iterdir()) if path.is_dir() and folded(path.name) in task.folders]
    if not folders and folded(data_dir.resolve().name) in task.folders:
        folders = [data_dir]
    if not folders:
        raise UserError(f"--data_dir {data_dir} has no folder {task.name}, with {task.layout}")
    files = task.find(folders[0])
    if not files:
        raise UserError(f"{folders[0]} holds no file of {task.title}: {task.layout} are looked for")
    return files


def _chosen(
    opened: Sequence[tuple[Task, list[SubjectFile]]], subjects: Sequence[str], problems: list[str]
) -> list[tuple[Task, list[SubjectFile]]]:
    """The files that `--subjects` names, or all that are in the table; adds names not found."""
    if not subjects:
        return [(task, [file for file in files if file.is_in_table]) for task, files in opened]
    wanted = {subject: _subject_key(subject) for subject in subjects}
    known = {_subject_key(file.name): file.name for _, files in opened for file in files}
    for subject, key in wanted.items():
        if key not in known:
            problems.append(f"--subjects {subject} is no file of these tasks{did_you_mean(subject, known.values())}")
    keys = set(wanted.values())
    return [(task, [file for file in files if _subject_key(file.name) in keys]) for task, files in opened]


def _subject_key(name: str) -> str:
    """A subject's name without its split and without regard to case and signs between words."""
    lower = name.casefold().removesuffix(".csv").removesuffix(".jsonl").removesuffix(".json")
    for split in _SPLITS:
        lower = lower.removesuffix(split)
    return folded(lower)
