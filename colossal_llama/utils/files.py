"""Files that a reader never sees half-written: written under a temporary name, flushed to the disk, then renamed."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def temporary_path(target: Path) -> Path:
    """The name beside `target` under which it is written before the rename; the process id keeps two runs apart."""
    return target.with_name(f".{target.name}.tmp-{os.getpid()}")


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


def write_bytes(target: Path, data: bytes) -> None:
    """Writes a file atomically: a reader sees the old content or the new one."""
    temporary = temporary_path(target)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    sync_to_disk(target.parent)


def write_text(target: Path, text: str) -> None:
    """Writes a UTF-8 file atomically."""
    write_bytes(target, text.encode("utf-8"))


def write_json(target: Path, content: Any) -> None:
    """Writes indented UTF-8 JSON atomically."""
    write_text(target, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Gives a temporary directory that becomes `target` when the block ends well, and vanishes when it does not.

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
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        sync_tree_to_disk(temporary)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_to_disk(target.parent)


@contextmanager
def held_directory(directory: Path) -> Iterator[None]:
    """Holds a directory for one process; the system lets go of it when the process ends, however it ends.

    Raises:
        BlockingIOError: another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
