"""Atomic writes of files and directories.

All is written under a temporary name, flushed to the disk (fsync) and then renamed. So a reader
never finds a file or a directory half-written.

The rename alone protects from a killed process, whose writes the system completes. The flush
protects from a loss of power. Files that have checksums elsewhere and can be made anew do without.
"""

import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_UNFINISHED, _REMOVED, _REPLACED = ".unfinished", ".removed", ".replaced"
_TEMPORARY_ENDING = re.compile(r".+-\d+")
"""Host name and process id, see `temporary_path`."""


def temporary_path(target: Path) -> Path:
    """Returns the path next to `target` under which it is written before the rename.

    Host name and process id keep two runs apart.
    """
    return target.with_name(f".{target.name}.tmp-{socket.gethostname()}-{os.getpid()}")


def existing_ancestor(path: Path) -> Path:
    """Returns the path if it is a directory, else the nearest parent that is one."""
    path = path.absolute()
    return next(directory for directory in (path, *path.parents) if directory.is_dir())


def fsync_path(path: Path) -> None:
    """Flushes a file, or the entries of a directory, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(directory: Path) -> None:
    """Flushes all files and directories below `directory`, and then the directory, to the disk."""
    for path in sorted(directory.rglob("*"), reverse=True):
        fsync_path(path)
    fsync_path(directory)


@contextmanager
def atomic_file(target: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Yields a binary file that becomes `target` if the block succeeds, else is deleted.

    Args:
        target: the file's name in the end.
        durable: flushes the file and its directory, so that a loss of power leaves it whole.
    """
    temporary = temporary_path(target)
    try:
        with temporary.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        fsync_path(target.parent)


def write_bytes(target: Path, data: bytes, *, durable: bool = True) -> None:
    """Writes a file atomically: a reader sees either the old content or the new."""
    with atomic_file(target, durable=durable) as file:
        file.write(data)


def write_text(target: Path, text: str) -> None:
    """Writes a UTF-8 file atomically."""
    write_bytes(target, text.encode("utf-8"))


def write_json(target: Path, content: Any) -> None:
    """Writes indented UTF-8 JSON atomically."""
    write_text(target, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yields a directory that becomes `target` if the block succeeds, else is deleted.

    One that a killed process of this host left behind, which may be as large as a model, is deleted
    first.

    Raises:
        FileExistsError: `target` exists already.

    Example:
        with atomic_directory(Path("out")) as directory:
            (directory / "a.txt").write_text("…")  # out does not exist yet
        # now out/a.txt exists
    """
    if target.exists():
        raise FileExistsError(f"{target} exists already")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(target)
    _remove_abandoned(target)
    temporary.mkdir()
    try:
        yield temporary
        fsync_tree(temporary)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_path(target.parent)


def _remove_abandoned(target: Path) -> None:
    prefix = temporary_path(target).name.removesuffix(str(os.getpid()))
    for left in target.parent.iterdir():
        process = left.name.removeprefix(prefix)
        if left.name.startswith(prefix) and process.isdigit() and not _is_other_running_process(int(process)):
            shutil.rmtree(left, ignore_errors=True)


def _is_other_running_process(process: int) -> bool:
    """True when another process than this one has the process id."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()


def remove_abandoned_files(directory: Path, names: Collection[str]) -> None:
    """Deletes what killed processes left of files that they wrote with `atomic_file`.

    The caller ensures that no process writes in the directory (`file_lock.directory_lock`).

    Args:
        directory: where they were written; need not exist.
        names: final names of the files.
    """
    for path in directory.glob(".*.tmp-*"):
        name, _, ending = path.name[1:].rpartition(".tmp-")
        if name in names and _TEMPORARY_ENDING.fullmatch(ending) and not path.is_dir():
            path.unlink()


def replace_directory(temporary: Path, target: Path) -> None:
    """Renames a directory that is on the disk already to `target`, in place of one that is there.

    The former one is renamed first, and deleted at the end. After a crash between the two renames
    `clean_up_interrupted_writes` restores it.
    """
    former = target.with_name(f".{target.name}{_REPLACED}")
    if target.exists():
        shutil.rmtree(former, ignore_errors=True)
        target.rename(former)
    temporary.rename(target)
    fsync_path(target.parent)
    shutil.rmtree(former, ignore_errors=True)


def remove_directory(directory: Path) -> None:
    """Deletes a directory atomically: it is renamed first, so that no reader finds half of it."""
    doomed = directory.with_name(f".{directory.name}{_REMOVED}")
    shutil.rmtree(doomed, ignore_errors=True)
    directory.rename(doomed)
    shutil.rmtree(doomed)


def unfinished_path(target: Path) -> Path:
    """Returns the path next to `target` under which several processes write it before the rename.

    A run that is killed leaves it behind, for `clean_up_interrupted_writes`.
    """
    return target.with_name(f".{target.name}{_UNFINISHED}")


def interrupted_writes(directory: Path) -> list[tuple[Path, str]]:
    """Finds what has the name of a half-written, half-removed or half-replaced directory.

    Returns:
        Each with the final name of what was being written.
    """
    found = []
    for path in sorted(directory.glob(".*")):
        ending = next((end for end in (_UNFINISHED, _REMOVED, _REPLACED) if path.name.endswith(end)), None)
        if ending is not None:
            found.append((path, path.name.removesuffix(ending)[1:]))
    return found


def clean_up_interrupted_writes(directory: Path, is_own: Callable[[str], bool] = lambda name: True) -> list[str]:
    """Deletes or restores what a killed process left half-written, half-removed or half-replaced.

    The caller ensures that no process writes in the directory (`file_lock.directory_lock`).

    Args:
        directory: where it was written.
        is_own: True for the final names that the caller's processes write; others stay.

    Returns:
        The final names of the unfinished files and directories that were deleted.
    """
    unfinished = []
    for path, name in interrupted_writes(directory):
        if not is_own(name) or path.is_symlink() or not path.is_dir():
            continue
        if path.name.endswith(_REPLACED) and not (directory / name).exists():
            path.rename(directory / name)
            continue
        shutil.rmtree(path, ignore_errors=True)
        if path.name.endswith(_UNFINISHED):
            unfinished.append(name)
    return unfinished
