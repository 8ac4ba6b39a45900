"""Output directory of an export: new, or empty and then filled. Imports no torch."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from colossal_llama.model.config_file import CONFIG_FILE
from colossal_llama.utils.atomic_io import atomic_directory, fsync_path

_INSIDE = ".unfinished_export"


def output_dir_problem(path: Path) -> str | None:
    """Explains why nothing can be written there; None for a new directory or an empty one.

    What a killed export left in it does not count.
    """
    if path.is_symlink() and not path.exists():
        return f"{path} is a link to nothing: remove it, or give another directory"
    if not path.exists():
        return None
    if not path.is_dir():
        return f"{path} exists already and is no directory"
    if any(not entry.name.lstrip(".").startswith(_INSIDE.lstrip(".")) for entry in path.iterdir()):
        return f"{path} exists already and is not empty: give a new directory, nothing in it is touched"
    return None


@contextmanager
def complete_directory(target: Path) -> Iterator[Path]:
    """Yields a directory whose files are in `target` if the block succeeds, else are deleted.

    A new directory appears when it is complete. One that is there may be a mount point, or the
    working directory of a shell: it is not replaced, and the files are moved into it, config.json
    last, without which nothing loads.

    Raises:
        OSError: the directory cannot be written.
    """
    if not target.exists():
        with atomic_directory(target) as directory:
            yield directory
        return
    inside = target / _INSIDE
    shutil.rmtree(inside, ignore_errors=True)
    with atomic_directory(inside) as directory:
        yield directory
    for path in sorted(inside.iterdir(), key=lambda path: path.name == CONFIG_FILE):
        path.rename(target / path.name)
    inside.rmdir()
    fsync_path(target)
