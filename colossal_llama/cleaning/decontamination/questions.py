"""Questions that documents must not hold: of benchmarks that a directory has, and of own files."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from colossal_llama.evaluation.questions import Subject
from colossal_llama.evaluation.tasks.file_rows import read_bytes
from colossal_llama.evaluation.tasks.own_questions import read_own_questions, read_question_rows
from colossal_llama.evaluation.tasks.registry import TASKS, open_found
from colossal_llama.utils.errors import UserError

OPTION = "--decontaminate"
_STEMS = ("question", "prompt", "problem", "input", "query", "instruction")
"""Fields of a question, the first that there is, in files that no reader of a benchmark takes."""
_PASSAGES = ("passage", "context", "article")
_CHOICES = ("choices", "options")
_LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class BenchmarkQuestion:
    """A question that is searched in documents.

    Attributes:
        task: benchmark, or the name of an own file.
        subject: name of its file without ending, or what an own file names.
        index: place in the file, from 0.
        place: in the file, for messages: `line 17`.
        file: of the question.
        stem: the question with its passage.
        choices: texts of the choices, without letters.
    """

    task: str
    subject: str
    index: int
    place: str
    file: str
    stem: str
    choices: tuple[str, ...]

    @property
    def lettered(self) -> str:
        """Question and choices as exams print them."""
        choices = (f"{letter}. {choice}" for letter, choice in zip(_LETTERS, self.choices, strict=False))
        return "\n".join([self.stem, *choices])

    @property
    def unlettered(self) -> str:
        """Question and choices as lists hold them."""
        return "\n".join([self.stem, *self.choices])


@dataclass(frozen=True)
class QuestionSet:
    """All questions of `--decontaminate`.

    Attributes:
        questions: with a text.
        files: that were read.
        notes: sentences on what is not searched: files, and rows without a text.
    """

    questions: tuple[BenchmarkQuestion, ...]
    files: tuple[Path, ...]
    notes: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """Number of questions of each benchmark."""
        return dict(Counter(question.task for question in self.questions))


def normalized_questions(
    questions: Iterable[BenchmarkQuestion], normalize: Callable[[str], str]
) -> tuple[BenchmarkQuestion, ...]:
    """Changes the texts of questions as those of documents were changed before the search."""
    return tuple(
        replace(question, stem=normalize(question.stem), choices=tuple(map(normalize, question.choices)))
        for question in questions
    )


def read_benchmarks(paths: Sequence[Path]) -> QuestionSet:
    """Reads the questions of directories of benchmarks and of own files.

    Args:
        paths: directories that hold folders of benchmarks, or are one; files of own questions.

    Raises:
        UserError: names all paths without a question.
    """
    questions: list[BenchmarkQuestion] = []
    notes: list[str] = []
    problems: list[str] = []
    for path in dict.fromkeys(paths):
        try:
            found = _of_directory(path, notes) if path.is_dir() else _of_file(path)
        except UserError as error:
            problems += error.problems
            continue
        empty = sum(not question.stem.strip() for question in found)
        if empty:
            notes.append(f"{path}: {empty:,} of {len(found):,} questions have no text, and are not searched")
        questions += [question for question in found if question.stem.strip()]
    if problems:
        raise UserError(problems)
    files = tuple(dict.fromkeys(Path(question.file) for question in questions))
    return QuestionSet(tuple(questions), files, tuple(notes))


def questions_checksum(questions: Iterable[BenchmarkQuestion]) -> str:
    """Checksum of all that decides what is searched, and how it is named."""
    digest = hashlib.blake2b(digest_size=16)
    for question in questions:
        digest.update(orjson.dumps([question.task, question.subject, question.index, question.stem, question.choices]))
    return digest.hexdigest()


def _of_directory(path: Path, notes: list[str]) -> list[BenchmarkQuestion]:
    subjects, refused = open_found(path)
    questions = _of_subjects(subjects)
    unread = []
    for task, file, reason in refused:
        try:
            questions += _of_rows(file.path, task, file.name)
        except UserError:
            unread.append(f"{file.path} is not searched: {reason}")
    if not questions:
        layouts = "; ".join(f"{task.title}: {task.layout}" for task in TASKS.values())
        raise UserError(
            [f"{OPTION} {path} holds no benchmark that is known ({layouts}): give a directory with their folders, or "
             "files of questions by name", *unread]
        )  # fmt: skip
    notes += unread
    return questions


def _of_file(path: Path) -> list[BenchmarkQuestion]:
    try:
        return _of_subjects(read_own_questions(path, None, 0))
    except UserError as error:
        try:
            stem = path.name.partition(".")[0] or path.name
            return _of_rows(path, stem, stem)
        except UserError:
            raise error from None


def _of_subjects(subjects: Iterable[Subject]) -> list[BenchmarkQuestion]:
    return [
        BenchmarkQuestion(
            subject.task, subject.name, question.index, question.place, subject.file, question.stem, question.options
        )
        for subject in subjects
        for question in subject.questions
    ]


def _of_rows(path: Path, task: str, subject: str) -> list[BenchmarkQuestion]:
    """Reads questions by the names of their fields alone, answers or not.

    Raises:
        UserError: the file cannot be read, or no row has a question.
    """
    records = _records_of(path)
    questions = [
        BenchmarkQuestion(task, subject, index, place, str(path), *_stem_and_choices(record))
        for index, place, record in records
    ]
    if not any(question.stem.strip() for question in questions):
        named = ", ".join(_STEMS)
        raise UserError(f"{OPTION} {path}: no row has a question: a field is needed with one of the names {named}")
    return questions


def _records_of(path: Path) -> list[tuple[int, str, dict[str, Any]]]:
    """Number, place and content of each record; of a .json file with one list of records those."""
    if path.suffix.casefold() == ".json":
        try:
            content = orjson.loads(read_bytes(path))
        except orjson.JSONDecodeError:  # the readers say what is wrong, or read several objects
            content = None
        lists = [value for value in content.values() if _is_list_of_records(value)] if isinstance(content, dict) else []
        if len(lists) == 1:  # as GAOKAO-Bench: {"example": [{"question": …}]}
            return [(index, f"index {index}", record) for index, record in enumerate(lists[0])]
    return [(row.index, row.place, row.record) for row in read_question_rows(path, OPTION)]


def _is_list_of_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(record, dict) for record in value)


def _stem_and_choices(record: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    texts = [_first_text(record, names) for names in (_PASSAGES, _STEMS)]
    choices = next((record[name] for name in _CHOICES if record.get(name)), None)
    if choices is None:
        choices = [record[letter] for letter in _LETTERS if isinstance(record.get(letter), str)]
    values = list(choices.values()) if isinstance(choices, dict) else choices
    of_choices = tuple(str(choice) for choice in values) if isinstance(values, list) else ()
    return ("\n\n".join(filter(None, texts)) if texts[1] else ""), of_choices


def _first_text(record: dict[str, Any], names: Iterable[str]) -> str:
    return next((record[name] for name in names if isinstance(record.get(name), str) and record[name].strip()), "")
