"""Recursive listing of the input files of a directory, and of the files that are not read."""

import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from colossal_llama.readers.remote import AnyPath
from colossal_llama.readers.saved_datasets import SavedDirectory, saved_directory

SHOWN_UNREAD = 20
_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class FoundFile(NamedTuple):
    """A file.

    Attributes:
        path: of the file.
        real_path: its path without links.
        size_bytes: its size; 0 where a remote file system does not tell.
        modified_ns: when it was modified; of a remote file `remote.version_of`.
        inode: device and number of a file that has several names (hard links), else None.
    """

    path: AnyPath
    real_path: str
    size_bytes: int
    modified_ns: int | str | None
    inode: tuple[int, int] | None = None


@dataclass
class Listing:
    """Files and directories found below a directory.

    Attributes:
        files: with one of the suffixes, sorted by path.
        unread: the other files, sorted.
        misnamed: directories whose names have one of the suffixes; they are listed as any other.
        hidden: number of files and directories whose names begin with a dot, which are passed over.
        has_excluded: True if something lies in the directory that is not to be listed.
        problems: a message for each directory or file that is meant and cannot be read.
    """

    files: list[FoundFile] = field(default_factory=list)
    unread: list[AnyPath] = field(default_factory=list)
    misnamed: list[Path] = field(default_factory=list)
    hidden: int = 0
    has_excluded: bool = False
    problems: list[str] = field(default_factory=list)


def list_files(directory: Path, suffixes: tuple[str, ...], excluded: Path | None = None) -> Listing:
    """Lists the files below a directory.

    Symbolic links are followed. A directory that is reached twice, through a cycle of links or a
    link to a neighbour, is read once. Of a data set that was saved as a directory, its data files
    are listed (`saved_datasets`). No other file is opened.

    Args:
        directory: to list.
        suffixes: of the files that are meant, in lower case.
        excluded: a directory of which nothing is listed.
    """
    listing, seen = Listing(), {os.path.realpath(directory)}
    barred = None if excluded is None else os.path.realpath(excluded)
    pending = [os.fspath(directory)]
    while pending:
        parent = pending.pop()
        real_parent = os.path.realpath(parent)
        if _is_below(real_parent, barred):
            listing.has_excluded = True
            continue
        folders = []
        entries = _entries(parent, listing.problems)
        saved = saved_directory(parent, {entry.name for entry in entries})
        if saved is not None:
            listing.problems += [saved.problem] if saved.problem else []
            if saved.data_files is not None:
                _add_saved(listing, entries, real_parent, saved, barred)
                continue
        for entry in entries:
            if saved is not None and entry.name in saved.own_files:
                continue
            if entry.name.startswith("."):
                listing.hidden += 1
            elif not _is_directory(entry):
                _add_file(listing, entry, real_parent, suffixes, barred)
            else:
                if entry.name.lower().endswith(suffixes):
                    listing.misnamed.append(Path(entry.path))
                real_path = os.path.realpath(entry.path)
                if real_path not in seen:
                    seen.add(real_path)
                    folders.append(entry.path)
        pending += reversed(folders)
    # The files of a hub's cache are links to others in it, whose names have no endings.
    linked = {found.real_path for found in listing.files if found.path.name != os.path.basename(found.real_path)}  # noqa: PTH119
    if linked:
        listing.unread = [path for path in listing.unread if os.path.realpath(str(path)) not in linked]
    listing.files.sort(key=lambda found: found.path.parts)
    listing.unread.sort()
    return listing


def _add_file(
    listing: Listing, entry: os.DirEntry, real_parent: str, suffixes: tuple[str, ...], barred: str | None
) -> None:
    if not entry.name.lower().endswith(suffixes):
        listing.unread.append(Path(entry.path))
        return
    real_path = os.path.realpath(entry.path) if entry.is_symlink() else f"{real_parent.rstrip(os.sep)}/{entry.name}"
    if _is_below(real_path, barred):
        listing.has_excluded = True
    elif found := _found(entry, real_path, listing.problems):
        listing.files.append(found)


def _add_saved(
    listing: Listing, entries: Sequence[os.DirEntry], real_parent: str, saved: SavedDirectory, barred: str | None
) -> None:
    """Adds the data files of a saved directory; all else but its descriptions is unread."""
    for entry in entries:
        if entry.name in (saved.data_files or ()):
            _add_file(listing, entry, real_parent, ("",), barred)
        elif saved.problem is None and entry.name not in saved.own_files and not _is_directory(entry):
            listing.unread.append(Path(entry.path))


def list_file(path: Path) -> Listing:
    """Lists one file as `list_files` lists those of a directory."""
    listing = Listing()
    if found := _found(path, os.path.realpath(path), listing.problems):
        listing.files.append(found)
    return listing


def _is_below(real_path: str, barred: str | None) -> bool:
    return barred is not None and (real_path == barred or real_path.startswith(barred.rstrip(os.sep) + os.sep))


def _entries(directory: str, problems: list[str]) -> list[os.DirEntry]:
    """Entries of a directory: links last, so that what they lead to is found by its own name."""
    try:
        with os.scandir(directory) as entries:
            return sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))
    except OSError as error:
        problems.append(f"{directory} cannot be read: {error.strerror}")
        return []


def _is_directory(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a cycle of links, or one into a directory that may not be entered
        return False


def _found(entry: os.DirEntry | Path, real_path: str, problems: list[str]) -> FoundFile | None:
    """A file that can be read; None if it cannot, which is added to the problems."""
    try:
        status = entry.stat()
    except OSError as error:
        problems.append(_stat_problem(entry, error))
        return None
    kind = next((name for test, name in _KINDS if test(status.st_mode)), None)
    if kind is not None:
        problems.append(f"{os.fspath(entry)} is {kind}: write what it gives into a file, or move it away")
    elif not os.access(os.fspath(entry), os.R_OK):
        problems.append(f"{os.fspath(entry)} may not be read: change its permissions, or move it away")
    else:
        inode = (status.st_dev, status.st_ino) if status.st_nlink > 1 and status.st_ino else None
        return FoundFile(Path(os.fspath(entry)), real_path, status.st_size, status.st_mtime_ns, inode)
    return None


def _stat_problem(entry: os.DirEntry | Path, error: OSError) -> str:
    if not entry.is_symlink():
        return f"{os.fspath(entry)} cannot be read: {error.strerror}; run the same command again, or move it away"
    target = Path(os.fspath(entry)).readlink()
    if isinstance(error, FileNotFoundError):
        return f"{os.fspath(entry)} is a link to {target}, which does not exist: is a file system not mounted?"
    return f"{os.fspath(entry)} is a link to {target}, which cannot be read: {error.strerror}"


def unread_record(listings: Sequence[tuple[AnyPath, Listing]]) -> dict:
    """Builds a JSON object of the files that are not read: how many, and the first names.

    Args:
        listings: of directories, whose own names begin those of their files.
    """
    unread = [(directory, path) for directory, listing in listings for path in listing.unread]
    misnamed = [(directory, path) for directory, listing in listings for path in listing.misnamed]
    endings = Counter(displayed(path.suffix or path.name) for _, path in unread)
    return {
        "count": len(unread),
        "by_ending": dict(sorted(endings.most_common(SHOWN_UNREAD))),
        "first": [_name_below(*named) for named in unread[:SHOWN_UNREAD]],
        "directories_named_as_files": [_name_below(*named) for named in misnamed[:SHOWN_UNREAD]],
        "hidden": sum(listing.hidden for _, listing in listings),
    }


def _name_below(directory: AnyPath, path: AnyPath) -> str:
    return displayed(f"{directory.resolve().name}/{'/'.join(path.parts[len(directory.parts) :])}")


def displayed(name: str) -> str:
    r"""Returns a name of which bytes that are not UTF-8 are written as `\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def unread_message(record: dict) -> str:
    """Formats `unread_record` as lines; empty if everything is read."""
    lines = []
    if record["count"]:
        endings = ", ".join(f"{ending} {count:,}" for ending, count in record["by_ending"].items())
        hidden = record["count"] - len(record["first"])
        names = ", ".join(record["first"]) + (f", and {hidden:,} more" if hidden else "")
        lines.append(f"files that are not read: {record['count']:,} ({endings}): {names}")
    if names := ", ".join(record["directories_named_as_files"]):
        lines.append(f"directories that are named as files, of which the files are read: {names}")
    if record["hidden"]:
        lines.append(f"hidden files and directories that are not read: {record['hidden']:,}")
    return "\n".join(lines)
