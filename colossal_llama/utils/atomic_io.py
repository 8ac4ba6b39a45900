"""Files that a reader never sees half-written: written under a temporary name, flushed to the disk, then renamed."""

import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
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


def sync_to_disk(path: Path) -> None:
    """Flushes a file or a directory entry to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree_to_disk(directory: Path) -> None:
    """Flushes every file below `directory`, then the directories."""
    for path in sorted(directory.rglob("*"), reverse=True):
        sync_to_disk(path)
    sync_to_disk(directory)


@contextmanager
def new_file(target: Path) -> Iterator[BinaryIO]:
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
    sync_to_disk(target.parent)


def write_bytes(target: Path, data: bytes) -> None:
    """Writes a file atomically: a reader sees the old content or the new one."""
    with new_file(target) as file:
        file.write(data)


def write_text(target: Path, text: str) -> None:
    """Writes a UTF-8 file atomically."""
    write_bytes(target, text.encode("utf-8"))


def write_json(target: Path, content: Any) -> None:
    """Writes indented UTF-8 JSON atomically."""
    write_text(target, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Gives a temporary directory that becomes `target` when the block ends well, and vanishes when it does not.

    One that a killed process of this host left behind, which may be as large as a model, is removed
    first.

    Raises:
        FileExistsError: `target` exists already.

    Example:
        with new_directory(Path("out")) as directory:
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
        sync_tree_to_disk(temporary)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_to_disk(target.parent)


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


def files_below(directory: Path, suffixes: tuple[str, ...]) -> tuple[list[Path], list[str]]:
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


def replace_directory(temporary: Path, target: Path) -> None:
    """Renames a directory that is on disk already to `target`; one of that name is set aside first, then deleted.

    Killed between the two renames, `tidy_directory` brings the former one back.
    """
    former = target.with_name(f".{target.name}{_REPLACED}")
    if target.exists():
        shutil.rmtree(former, ignore_errors=True)
        target.rename(former)
    temporary.rename(target)
    sync_to_disk(target.parent)
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


def tidy_directory(directory: Path) -> list[str]:
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


@contextmanager
def held_directory(directory: Path) -> Iterator[None]:
    """Holds a directory for one process; the system lets go of it when the process ends, however it ends.

    Raises:
        BlockingIOError: another process holds it; `filename` says which, on which host, since when.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise BlockingIOError(error.errno, error.strerror, lock.read().strip()) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%F %T')}\n")
        lock.flush()
        yield


def fingerprint_bytes(*parts: bytes) -> str:
    """SHA-256 of the parts, each preceded by its length, as hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def fingerprint_file(path: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_directory(directory: Path, whole_up_to_bytes: int = 1 << 20) -> str:
    """Tells copies of a directory from each other without reading weights or rows whole.

    Args:
        directory: whose files count, hidden ones aside, by name, size and content.
        whole_up_to_bytes: of a longer file only as many bytes count, half at its beginning, half at
            its end.

    Returns:
        A SHA-256 as hexadecimal.
    """
    parts = []
    for path in sorted(directory.rglob("[!.]*")):
        if path.is_file():
            parts += [str(path.relative_to(directory)).encode(), _ends_of(path, whole_up_to_bytes)]
    return fingerprint_bytes(*parts)


def _ends_of(path: Path, limit_bytes: int) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= limit_bytes:
            return file.read()
        beginning = file.read(limit_bytes // 2)
        file.seek(-(limit_bytes // 2), os.SEEK_END)
        return size.to_bytes(8, "little") + beginning + file.read()
