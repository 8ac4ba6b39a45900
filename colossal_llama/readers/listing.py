"""Finds the input files below the given paths, in an order that their names alone decide."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from colossal_llama.readers.directory_listing import (
    FoundFile,
    Listing,
    displayed,
    list_file,
    list_files,
    unread_message,
    unread_record,
)
from colossal_llama.readers.formats import DESCRIPTION, ENDINGS, TEXT_KINDS, Format, format_of
from colossal_llama.readers.saved_datasets import DESCRIPTIONS, problem_of_root
from colossal_llama.utils.errors import UserError, truncate_problems

_READ_BY_PEOPLE = frozenset({"readme", "license", "licence", "notice", "changelog", "citation", "contributing"})
"""Beginnings of the names of texts that are about data where they lie next to it."""


_ARROW = Format(".arrow")
"""Format of the files of a saved data set, whatever their names."""


@dataclass(frozen=True)
class InputFile:
    """A file of records; `name`, the directory's name and the path below it, decides the order."""

    path: Path
    name: str
    size_bytes: int
    modified_ns: int
    format: Format
    category: str = ""
    """Of its records, under `--category_from file` (`fields.with_file_categories`)."""


def find_input_files(
    paths: Sequence[Path | str], excluded: Path | None = None, option: str = "--data_input_dirs"
) -> tuple[list[InputFile], dict]:
    """Lists the given files, and all input files below directories, in the order of their names.

    Args:
        paths: files, and directories, which are searched with their subdirectories
            (`directory_listing.list_files`); the order in which they are given does not matter.
        excluded: the output directory, whose files are not read even if it is inside one of the
            directories.
        option: under which the paths were given, for messages.

    Returns:
        The files, and a record of the files that are not read (`directory_listing.unread_record`).

    Raises:
        UserError: a directory holds no input file, or a file cannot be reached or is reached twice.
    """
    problems: list[str] = []
    reached: dict[str, tuple[FoundFile, Path]] = {}
    listings = [_listing(path, excluded) for path in sorted(map(Path, paths))]
    for directory, listing in listings:
        problems += [f"{option}: {problem}" for problem in listing.problems]
        if not listing.files and not listing.problems:
            endings = f"that ends in {DESCRIPTION}"
            missing = "but those in the output directory" if listing.has_excluded else endings
            problems.append(f"{option}: {directory} holds no file {missing}{_instead(directory, listing)}")
        for file in listing.files:
            if file.real_path in reached:
                problems.append(f"{option}: {file.path} is reached twice, its documents would be doubled")
            reached[file.real_path] = (file, directory)
    if problems:
        raise UserError(truncate_problems(problems))
    names = _names_of([(file.path, directory) for file, directory in reached.values()])
    files = [
        InputFile(file.path, displayed(name), file.size_bytes, file.modified_ns, format_of(file.path.name) or _ARROW)
        for (file, _), name in zip(reached.values(), names, strict=True)
    ]
    return sorted(files, key=lambda file: file.name), unread_record(listings)


def _listing(path: Path, excluded: Path | None) -> tuple[Path, Listing]:
    """Listing of a directory, or of one file and its directory; what describes data is unread."""
    if not path.is_dir():
        if format_of(path.name) is None:
            return path.parent, Listing(problems=[f"{path} is of no format that is read: {DESCRIPTION}"])
        return path.parent, list_file(path)
    listing = list_files(path, ENDINGS, excluded)
    if (problem := problem_of_root(path)) is not None:
        listing.problems.append(problem)
    records = [file for file in listing.files if not _is_text(file.path)]
    folders = {folder for parent in {file.path.parent for file in records} for folder in (parent, *parent.parents)}
    described = {file.path.parent for file in listing.files if file.path.name in DESCRIPTIONS}
    unread = {file for file in listing.files if _describes(file.path, folders, described)}
    if unread:
        listing.files = [file for file in listing.files if file not in unread]
        listing.unread = sorted([*listing.unread, *(file.path for file in unread)])
    return path, listing


def _is_text(path: Path) -> bool:
    format = format_of(path.name)
    return format is not None and format.kind in TEXT_KINDS


def _describes(path: Path, folders: set[Path], described: set[Path]) -> bool:
    """True for a README next to or above records, for a description of a hub, and for its cache."""
    name = path.name.lower()
    return (
        name in DESCRIPTIONS
        or (_is_text(path) and name.partition(".")[0] in _READ_BY_PEOPLE and path.parent in folders)
        or (path.parent in described and name.startswith("cache-") and name.endswith(".arrow"))
    )


def _instead(directory: Path, listing: Listing) -> str:
    message = unread_message(unread_record([(directory, listing)]))
    return f" ({message.splitlines()[0]})" if message else ""


def _names_of(files: Sequence[tuple[Path, Path]]) -> list[str]:
    """Names each (file, input directory): the directory's name and the path below it.

    Equal names get more of the directory's path:

    /corpus/zh/data/a.jsonl, /corpus/en/data/a.jsonl  →  zh/data/a.jsonl, en/data/a.jsonl
    """
    parents = {directory: directory.resolve().parts[1:] for _, directory in files}
    below = [path.parts[len(directory.parts) :] for path, directory in files]
    whole = [(*parents[directory], *parts) for (_, directory), parts in zip(files, below, strict=True)]
    depths = [len(parts) + 1 for parts in below]
    while True:
        names = ["/".join(parts[-depth:]) for parts, depth in zip(whole, depths, strict=True)]
        counts = Counter(names)
        if max(counts.values(), default=1) == 1:
            return names
        depths = [depth + (counts[name] > 1) for depth, name in zip(depths, names, strict=True)]


def refuse_files_that_changed(files: Sequence[InputFile]) -> None:
    """Compares files with their listing, once they have been read.

    Raises:
        UserError: one has another size or modification time now, or is gone.
    """
    changes = [(file.path, change) for file in files if (change := _change_of(file))]
    if changes:
        remedy = "run the same command again when nothing writes to the input any more"
        raise UserError([*truncate_problems([f"{path} {change}" for path, change in changes]), remedy])


def _change_of(file: InputFile) -> str | None:
    try:
        status = file.path.stat()
    except OSError as error:
        return f"can no longer be read: {error.strerror}"
    if status.st_size != file.size_bytes:
        return f"has changed from {file.size_bytes:,} to {status.st_size:,} bytes while it was read"
    return None if status.st_mtime_ns == file.modified_ns else "was written or replaced while it was read"
