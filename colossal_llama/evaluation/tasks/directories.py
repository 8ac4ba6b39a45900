"""Finds the folder of a benchmark and the files in it, under the names that its authors use."""

import re
from collections.abc import Iterator
from pathlib import Path

from colossal_llama.evaluation.tasks.task import SubjectFile

_BETWEEN_WORDS = re.compile(r"[-_ .]+")


def folded(name: str) -> str:
    """A name in lower case without signs between words: `GAOKAO-Bench` is `gaokaobench`."""
    return _BETWEEN_WORDS.sub("", name).casefold()


def files_of(folder: Path, ending: str) -> list[Path]:
    """The files of a folder with an ending, by name; hidden ones, as macOS adds them, left out.

    Links to nowhere and directories of such a name are among them, so that reading names them.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix.casefold() == ending)
    return [path for path in paths if not path.name.startswith(".")]


def split_files(directory: Path, split: str) -> list[SubjectFile]:
    """Lists the csv files of a split in the order of their names.

    Args:
        directory: holds the folder of the split, itself or one or two folders below.
        split: `test`.
    """
    folder = split_folder(directory, split)
    return [] if folder is None else [SubjectFile(path.stem, path, folder.parent) for path in files_of(folder, ".csv")]


def split_folder(directory: Path, split: str) -> Path | None:
    """The first folder of this name that holds a csv file; None if there is none."""
    folders = (folder for folder in folders_below(directory, levels=2) if folder.name.casefold() == split)
    return next((folder for folder in folders if files_of(folder, ".csv")), None)


def folders_below(directory: Path, levels: int) -> Iterator[Path]:
    """Yields the directory and the folders in it, nearest first, each level by name."""
    found = [directory]
    for level in range(levels + 1):
        yield from found
        if level < levels:
            found = [path for folder in found for path in sorted(folder.iterdir()) if _is_searched(path)]


def file_of_subject(directory: Path, split: str, stems: tuple[str, ...]) -> Path | None:
    """The csv file of a subject in a split, by the first of its names that is there."""
    folder = split_folder(directory, split)
    by_name = {} if folder is None else {path.stem.casefold(): path for path in files_of(folder, ".csv")}
    return next((by_name[stem.casefold()] for stem in stems if stem.casefold() in by_name), None)


def _is_searched(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")
