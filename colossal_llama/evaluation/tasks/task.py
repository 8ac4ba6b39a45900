"""A benchmark: where its files lie, and how one of them is read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from colossal_llama.evaluation.questions import Subject


@dataclass(frozen=True)
class SubjectFile:
    """A file of questions that was found.

    Attributes:
        name: of the file, without its ending; names the subject.
        path: of the file.
        directory: of the benchmark; development examples are looked for in it.
        is_in_table: False for files that are only read when `--subjects` names them.
    """

    name: str
    path: Path
    directory: Path
    is_in_table: bool = True


@dataclass(frozen=True)
class Task:
    """A benchmark.

    Attributes:
        name: as `--tasks` names it.
        title: as the table names it.
        folders: names of its folder, without signs between words, in lower case.
        shots: number of examples of the published table.
        layout: what the folder holds, for messages.
        find: lists the files of a folder; empty where it holds none.
        read: reads one of them, with at most so many examples; raises `UserError`.
    """

    name: str
    title: str
    folders: tuple[str, ...]
    shots: int
    layout: str
    find: Callable[[Path], list[SubjectFile]]
    read: Callable[[SubjectFile, int], Subject]
