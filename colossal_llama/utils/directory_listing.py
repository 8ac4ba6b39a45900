"""Recursive listing of the input files of a directory."""

import os
from pathlib import Path


def list_files(directory: Path, suffixes: tuple[str, ...]) -> tuple[list[Path], list[str]]:
    """The files below a directory whose names end so, sorted, through links too; hidden files and directories are left out.

    A directory that is reached twice, by a link that leads round or to a neighbour, is read once.

    Returns:
        The files, and what is wrong: directories that cannot be read, links that lead nowhere.
    """
    files, problems, seen = [], [], {directory.resolve()}

    def note(error: OSError) -> None:
        problems.append(f"{error.filename} cannot be read: {error.strerror}")

    for place, folders, names in os.walk(directory, onerror=note, followlinks=True):
        visible = [Path(place, name) for name in folders if not name.startswith(".")]
        folders.clear()
        for path in sorted(visible, key=lambda path: (path.is_symlink(), path.name)):
            if path.resolve() not in seen:
                seen.add(path.resolve())
                folders.append(path.name)
        for path in (Path(place, name) for name in names if name.endswith(suffixes) and not name.startswith(".")):
            if path.is_file():
                files.append(path)
            elif path.is_symlink():
                problems.append(f"{path} is a link to {path.readlink()}, which is not there: is a file system missing?")
    return sorted(files), problems
