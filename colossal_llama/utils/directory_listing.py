"""Recursive listing of the input files of a directory."""

import os
from pathlib import Path


def list_files(directory: Path, suffixes: tuple[str, ...]) -> tuple[list[Path], list[str]]:
    """Lists the files below a directory with one of the suffixes, sorted, without hidden ones.

    Symbolic links are followed. A directory that is reached twice, through a cycle of links or a
    link to a neighbour, is read once.

    Returns:
        The files, and a message for each directory that cannot be read and each broken link.
    """
    files, problems, seen = [], [], {directory.resolve()}

    def note(error: OSError) -> None:
        problems.append(f"{error.filename} cannot be read: {error.strerror}")

    for parent, folders, names in os.walk(directory, onerror=note, followlinks=True):
        visible = [Path(parent, name) for name in folders if not name.startswith(".")]
        folders.clear()
        for path in sorted(visible, key=lambda path: (path.is_symlink(), path.name)):
            if path.resolve() not in seen:
                seen.add(path.resolve())
                folders.append(path.name)
        for path in (Path(parent, name) for name in names if name.endswith(suffixes) and not name.startswith(".")):
            if path.is_file():
                files.append(path)
            elif path.is_symlink():
                problems.append(
                    f"{path} is a link to {path.readlink()}, which does not exist: is a file system not mounted?"
                )
    return sorted(files), problems
