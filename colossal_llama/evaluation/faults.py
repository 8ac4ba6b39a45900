"""Faults in the files of benchmarks, named and counted: in the terminal and in the record."""

from collections.abc import Iterable
from typing import Any

from colossal_llama.evaluation.questions import Subject
from colossal_llama.evaluation.tasks.registry import TASKS
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.errors import truncate_problems

_MOST_SHOWN = 8


def say_faults(subjects: Iterable[Subject]) -> None:
    """Prints what the files' readers say of them, and the first faults with the number of all."""
    subjects = list(subjects)
    for note in truncate_problems([f"note: {subject.file}: {note}" for subject in subjects for note in subject.notes]):
        log_rank_zero(note)
    found = fault_records(subjects)
    if not found:
        return
    unscored = sum(not fault["is_scored"] for fault in found)
    log_rank_zero(f"questions with a fault in their file: {len(found):,}, of which {unscored:,} cannot be scored:")
    shown = [f"  {fault['file']}, {fault['place']} (index {fault['index']}): {fault['fault']}" for fault in found]
    for line in truncate_problems(shown, _MOST_SHOWN):
        log_rank_zero(line)


def say_tasks_without_subjects(names: Iterable[str], subjects: Iterable[Subject]) -> None:
    """Prints the tasks of which `--subjects` names no file."""
    found = {subject.task for subject in subjects}
    absent = [name for name in dict.fromkeys(name.casefold() for name in names) if name in TASKS and name not in found]
    if absent:
        log_rank_zero(f"note: --subjects names no file of {', '.join(absent)}, which are left out")


def fault_records(subjects: Iterable[Subject]) -> list[dict[str, Any]]:
    """All faults, for the record."""
    return [
        {
            "task": subject.task,
            "subject": subject.name,
            "file": subject.file,
            "place": question.place,
            "index": question.index,
            "fault": question.fault,
            "is_scored": question.is_scored,
        }
        for subject in subjects
        for question in subject.questions
        if question.fault
    ]
