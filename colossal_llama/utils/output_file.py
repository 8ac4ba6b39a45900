"""Checks the name of an output file before the work begins: its directory, and whose file is there.

A file that an earlier run wrote is replaced, anybody else's is refused. A file counts as ours by
how it begins.
"""

import os
from pathlib import Path


def output_file_problem(path: Path, beginning: bytes | None = None) -> str | None:
    """Explains why no file of this name can be written; None where it can.

    Args:
        path: name of the output.
        beginning: of the files that earlier runs wrote; None: no file is replaced.
    """
    parent = path.parent
    if not parent.is_dir():
        return f"{path}: the directory {parent} does not exist"
    if path.is_dir():
        return f"{path} is a directory: give the name of a file"
    if not os.access(parent, os.W_OK | os.X_OK):
        return f"{path} cannot be written: no permission to write in {parent}"
    if path.exists() or path.is_symlink():
        return _problem_of_existing(path, beginning)
    return None


def _problem_of_existing(path: Path, beginning: bytes | None) -> str | None:
    if path.is_symlink() or not path.is_file():
        return f"{path} exists already and is no file of its own: give a new name"
    if beginning is None:
        return f"{path} exists already: give a new name"
    with path.open("rb") as file:
        if file.read(len(beginning)) == beginning:
            return None
    return f"{path} exists already, and no run of this command wrote it: give a new name, or remove it"
