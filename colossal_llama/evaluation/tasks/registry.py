"""The benchmarks by name, and their files opened."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path

from colossal_llama.evaluation.questions import Subject
from colossal_llama.evaluation.tasks import agieval, ceval, cmmlu, gaokao, gsm8k, mmlu
from colossal_llama.evaluation.tasks.directories import folded, folders_below, split_files
from colossal_llama.evaluation.tasks.own_questions import read_own_questions
from colossal_llama.evaluation.tasks.task import SubjectFile, Task
from colossal_llama.evaluation.tasks.template import read_template
from colossal_llama.readers.formats import ending_of
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
    benchmarks: list[tuple[Task, list[SubjectFile], list[Path]]] = []
    own: list[Subject] = []
    names = list(dict.fromkeys(name.casefold() if name.casefold() in TASKS else name for name in names))
    files_of_own = [name for name in names if name not in TASKS and Path(name).is_file()]
    with _gathered(problems):
        own = _own_subjects(files_of_own, template, shots)
    for name in names:
        if name not in files_of_own:
            with _gathered(problems):
                task = _task(name)
                benchmarks.append((task, *_files(task, data_dir)))
    if not problems:
        known = [file.name for _, files, _ in benchmarks for file in files] + [subject.name for subject in own]
        problems += _unknown_subjects(subjects, known)
    read: list[Subject] = []
    for task, files, _ in benchmarks:
        if not subjects and not _chosen(files, subjects):
            problems.append(f"{files[0].path.parent} holds only files {_not_in_table(files)}")
        for file in _chosen(files, subjects):
            with _gathered(problems):
                read.append(task.read(file, task.shots if shots is None else shots))
    read += [subject for subject in own if not subjects or _is_named(subject.name, subjects)]
    if problems:
        raise UserError(truncate_problems(problems))
    for task, files, others in benchmarks:
        left_out = _not_in_table([] if subjects else files)
        _add_note(read, task, f"files next to it left out, as they are {left_out}" if left_out else "")
        _add_note(
            read, task, f"not read, as it holds {task.title}, too: {', '.join(map(str, others))}" if others else ""
        )
        _add_note(read, task, _fewer_examples([subject for subject in read if subject.task == task.name], shots))
    return [replace(subject, questions=subject.questions[:limit]) for subject in read]


def open_found(data_dir: Path) -> tuple[list[Subject], list[tuple[str, SubjectFile, str]]]:
    """Reads all questions of all benchmarks that a directory holds, without examples.

    Files outside the published tables are read, too, C-Eval's test split next to val, and each of
    several folders that hold a benchmark.

    Args:
        data_dir: holds folders of benchmarks, or is one.

    Returns:
        Subjects in the order of `TASKS`; and the files that are not in the form of their benchmark,
        or hold nothing that could be scored, each with its task and what its reader says.

    Raises:
        UserError: the directory cannot be read.
    """
    subjects: list[Subject] = []
    refused: list[tuple[str, SubjectFile, str]] = []
    for task in TASKS.values():
        try:
            found = _files_by_folder(task, data_dir)
        except UserError:  # it holds no file of this benchmark
            continue
        tests = [split_files(files[0].directory, "test") for files in found]
        by_path: dict[Path, SubjectFile] = {}
        for file in chain(*found, *tests):
            by_path.setdefault(file.path, file)
        for file in by_path.values():
            try:
                subjects.append(task.read(file, 0))
            except UserError as error:
                refused.append((task.name, file, "; ".join(error.problems)))
    return subjects, refused


def _add_note(read: list[Subject], task: Task, note: str) -> None:
    """Adds a note about a task to its first subject."""
    first = next((place for place, subject in enumerate(read) if subject.task == task.name), None)
    if note and first is not None:
        read[first] = replace(read[first], notes=(*read[first].notes, note))


def _not_in_table(files: Sequence[SubjectFile]) -> str:
    names = [file.name for file in files if not file.is_in_table]
    if not names:
        return ""
    remedy = "--subjects reads those of one letter"
    return f"not in the published table: {', '.join(names)} ({remedy})"


def _fewer_examples(subjects: Sequence[Subject], shots: int | None) -> str:
    fewer = [subject for subject in subjects if len(subject.examples) < (shots or 0)]
    return f"--shots {shots}: {len(fewer)} of {len(subjects)} subjects have fewer examples" if fewer else ""


@contextmanager
def _gathered(problems: list[str]) -> Iterator[None]:
    """Adds the problems of a `UserError` to the list."""
    try:
        yield
    except UserError as error:
        problems += error.problems


def _own_subjects(files: Sequence[str], template: Path | None, shots: int | None) -> list[Subject]:
    wording = None if template is None else read_template(template)
    if wording is not None and not files:
        raise UserError("--template has no effect without a file of your own questions in --tasks")
    problems: list[str] = []
    own: list[Subject] = []
    for name in files:
        with _gathered(problems):
            own += read_own_questions(Path(name), wording, shots)
    tasks = Counter(task for task, _ in {(subject.task, subject.file) for subject in own})
    problems += [f"--tasks: {count} files are named {task}: rename one" for task, count in tasks.items() if count > 1]
    problems += [f"--tasks: {task} is a benchmark: rename the file of your own" for task in tasks if task in TASKS]
    if problems:
        raise UserError(problems)
    return own


def _task(name: str) -> Task:
    if name in TASKS:
        return TASKS[name]
    if ending_of(name) or "/" in name:
        what = "is a directory: give its files" if Path(name).is_dir() else "does not exist"
        raise UserError(f"--tasks {name} {what}")
    known = f"known are {', '.join(TASKS)}, and files of your own questions"
    raise UserError(f"--tasks {name} is not known{did_you_mean(name, TASKS)}: {known}")


def _files(task: Task, data_dir: Path | None) -> tuple[list[SubjectFile], list[Path]]:
    """The files of a benchmark, and further folders that hold some of it, too."""
    found = _files_by_folder(task, data_dir)
    return found[0], [files[0].path.parent for files in found[1:]]


def _files_by_folder(task: Task, data_dir: Path | None) -> list[list[SubjectFile]]:
    """The files of a benchmark in each folder that holds it; the first is the one to evaluate."""
    if data_dir is None:
        raise UserError(f"--tasks {task.name} needs --data_dir: a directory with a folder for each task")
    if not data_dir.is_dir():
        raise UserError(f"--data_dir {data_dir} is no directory")
    named = [(_name_of_folder(path), path) for path in sorted(data_dir.iterdir()) if path.is_dir()]
    folders = [path for name in task.folders for found, path in named if found == name]
    if not folders and _name_of_folder(data_dir.resolve()) in task.folders and task.find(data_dir):
        folders = [data_dir]
    if not folders:
        raise UserError(f"--data_dir {data_dir} has no folder {task.name}, with {task.layout}")
    found = [files for folder in folders if (files := task.find(folder))]
    if not found:
        raise UserError(f"{folders[0]} holds no file of {task.title}: {task.layout} are looked for")
    chosen = found[0][0]
    for folder in folders_below(chosen.path.parents[1], levels=1):  # as AGIEval's v1 and v1_1
        files = task.find(folder)
        if files and files[0].path.parents[1] == chosen.path.parents[1] and files[0].directory != chosen.directory:
            found.append(files)
    by_parent: dict[Path, list[SubjectFile]] = {}
    for files in found:
        by_parent.setdefault(files[0].path.parent, files)
    return list(by_parent.values())


def _name_of_folder(path: Path) -> str:
    """A name to compare; `-main` and `-master` end those of GitHub's archives."""
    return folded(path.name).removesuffix("main").removesuffix("master")


def _unknown_subjects(subjects: Sequence[str], known: Sequence[str]) -> list[str]:
    unknown = [subject for subject in subjects if not any(_is_named(name, [subject]) for name in known)]
    return [f"--subjects {name} is no file of these tasks{did_you_mean(name, known)}" for name in unknown]


def _chosen(files: Sequence[SubjectFile], subjects: Sequence[str]) -> list[SubjectFile]:
    """The files that `--subjects` names, or all that are in the table."""
    return [file for file in files if (_is_named(file.name, subjects) if subjects else file.is_in_table)]


def _is_named(name: str, subjects: Sequence[str]) -> bool:
    """True where a subject names a file: with or without its split, case and signs aside."""
    lower = name.casefold()
    without_split = next((lower.removesuffix(split) for split in _SPLITS if lower.endswith(split)), lower)
    given = {folded(subject.casefold().removesuffix(ending_of(subject.casefold()))) for subject in subjects}
    return not given.isdisjoint({folded(lower), folded(without_split)})
