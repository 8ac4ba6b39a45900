"""Files that a reader never sees half-written: written under a temporary name, flushed to the disk, then renamed."""

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_UNFINISHED, _REMOVED, _REPLACED = ".unfinished", ".removed", ".replaced"


def temporary_path(target: Path) -> Path:
    """The name beside `target` under which it is written before the rename; host and process id keep two runs apart."""
    return target.with_name(f".{target.name}.tmp-{socket.gethostname()}-{os.getpid()}")


def existing_ancestor(path: Path) -> Path:
    """The path itself if it exists, else the nearest directory above that does."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.is_dir())


def fsync_path(path: Path) -> None:
    """Flushes a file or a directory entry to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(directory: Path) -> None:
    """Flushes every file below `directory`, then the directories."""
    for path in sorted(directory.rglob("*"), reverse=True):
        fsync_path(path)
    fsync_path(directory)


@contextmanager
def atomic_file(target: Path) -> Iterator[BinaryIO]:
    """Gives a binary file that becomes `target`, on the disk, when the block ends well, and vanishes when it does not."""
    temporary = temporary_path(target)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(target.parent)


def write_bytes(target: Path, data: bytes) -> None:
    """Writes a file atomically: a reader sees the old content or the new one."""
    with atomic_file(target) as file:
        file.write(data)


def write_text(target: Path, text: str) -> None:
    """Writes a UTF-8 file atomically."""
    write_bytes(target, text.encode("utf-8"))


def write_json(target: Path, content: Any) -> None:
    """Writes indented UTF-8 JSON atomically."""
    write_text(target, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Gives a temporary directory that becomes `target` when the block ends well, and vanishes when it does not.

    One that a killed process of this host left behind, which may be as large as a model, is removed
    first.

    Raises:
        FileExistsError: `target` exists already.

    Example:
        with atomic_directory(Path("out")) as directory:
            (directory / "a.txt").write_text("…")      # nothing named out exists yet
        # now out/a.txt does
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
        if left.name.startswith(prefix) and process.isdigit() and not _is_running_beside(int(process)):
            shutil.rmtree(left, ignore_errors=True)


def _is_running_beside(process: int) -> bool:
    """Whether another process has this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()


def replace_directory(temporary: Path, target: Path) -> None:
    """Renames a directory that is on disk already to `target`; one of that name is set aside first, then deleted.

    Killed between the two renames, `clean_up_interrupted_writes` brings the former one back.
    """
    former = target.with_name(f".{target.name}{_REPLACED}")
    if target.exists():
        shutil.rmtree(former, ignore_errors=True)
        target.rename(former)
    temporary.rename(target)
    fsync_path(target.parent)
    shutil.rmtree(former, ignore_errors=True)


def remove_directory(directory: Path) -> None:
    """Deletes a directory so that nobody ever finds half of it under its name."""
    doomed = directory.with_name(f".{directory.name}{_REMOVED}")
    shutil.rmtree(doomed, ignore_errors=True)
    directory.rename(doomed)
    shutil.rmtree(doomed)


def unfinished_path(target: Path) -> Path:
    """The name beside `target` under which several processes write it together; a run that was killed leaves it behind."""
    return target.with_name(f".{target.name}{_UNFINISHED}")


def clean_up_interrupted_writes(directory: Path) -> list[str]:
    """Clears away what a killed process left half-written, half-removed or half-replaced, while nobody writes there.

    Returns:
        The names of the unfinished that were deleted, as they would have been called.
    """
    unfinished = []
    for path in sorted(directory.glob(".*")):
        ending = next((end for end in (_UNFINISHED, _REMOVED, _REPLACED) if path.name.endswith(end)), None)
        if ending is None or not path.is_dir():
            continue
        name = path.name.removesuffix(ending)[1:]
        if ending == _REPLACED and not (directory / name).exists():
            path.rename(directory / name)
            continue
        shutil.rmtree(path, ignore_errors=True)
        if ending == _UNFINISHED:
            unfinished.append(name)
    return unfinished
