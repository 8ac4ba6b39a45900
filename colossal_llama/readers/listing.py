"""Finds the input files below the given paths, in an order that their names alone decide."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from colossal_llama.readers.directory_listing import (
    FoundFile,
    Listing,
    displayed,
    list_file,
    list_files,
    unread_message,
    unread_record,
)
from colossal_llama.readers.formats import DESCRIPTION, ENDINGS, TEXT_KINDS, Format, format_of, is_read_by_people
from colossal_llama.readers.input_paths import is_url
from colossal_llama.readers.remote import AnyPath, RemotePath, list_remote
from colossal_llama.readers.saved_datasets import DESCRIPTIONS, OWN_FILES, problem_of_root
from colossal_llama.utils.errors import UserError, truncate_problems

_ARROW = Format(".arrow")
"""Format of the files of a saved data set, whatever their names."""


@dataclass(frozen=True)
class InputFile:
    """A file of records; `name`, the directory's name and the path below it, decides the order."""

    path: AnyPath
    name: str
    size_bytes: int
    modified_ns: int | str | None
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
    reached: dict[str | tuple[int, int], tuple[FoundFile, AnyPath]] = {}
    urls = sorted(path for path in paths if isinstance(path, str) and is_url(path))
    local = sorted(Path(path) for path in paths if path not in urls)
    listings = [_listing(path, excluded) for path in local] + [_remote_listing(url) for url in urls]
    for directory, listing in listings:
        problems += [f"{option}: {problem}" for problem in listing.problems]
        if not listing.files and not listing.problems:
            endings = f"that ends in {DESCRIPTION}"
            missing = "but those in the output directory" if listing.has_excluded else endings
            problems.append(f"{option}: {directory} holds no file {missing}{_instead(directory, listing)}")
        for file in listing.files:
            identity = file.inode or file.real_path
            if (other := reached.get(identity)) is not None:
                linked = "" if other[0].real_path == file.real_path else f" (it is a hard link of {other[0].path})"
                problems.append(f"{option}: {file.path} is reached twice{linked}, its documents would be doubled")
            reached[identity] = (file, directory)
    if problems:
        raise UserError(truncate_problems(problems))
    names = _names_of([(file.path, directory) for file, directory in reached.values()])
    files = [
        InputFile(file.path, displayed(name), file.size_bytes, file.modified_ns, format_of(file.path.name) or _ARROW)
        for (file, _), name in zip(reached.values(), names, strict=True)
    ]
    return sorted(files, key=lambda file: file.name), unread_record(listings)


def _remote_listing(url: str) -> tuple[AnyPath, Listing]:
    """Listing of a URL: of a file, of those that match a pattern, or of a directory."""
    directory, found = list_remote(url)
    listing, has_tables = Listing(), any(file.suffix.lower() == ".arrow" for file in found)
    for file, version in found.items():
        below = file.relative_to(directory).parts
        if any(part.startswith(".") for part in below):
            listing.hidden += 1
        elif format_of(file.name) is None or (has_tables and file.name in OWN_FILES):
            listing.unread.append(file)
        else:
            listing.files.append(FoundFile(file, str(file), file.size_bytes or 0, version))
    _leave_descriptions(listing)
    return directory, listing


def _listing(path: Path, excluded: Path | None) -> tuple[AnyPath, Listing]:
    """Listing of a directory, or of one file and its directory; what describes data is unread."""
    if not path.is_dir():
        if format_of(path.name) is None:
            return path.parent, Listing(problems=[f"{path} is of no format that is read: {DESCRIPTION}"])
        return path.parent, list_file(path)
    listing = list_files(path, ENDINGS, excluded)
    if (problem := problem_of_root(path)) is not None:
        listing.problems.append(problem)
    _leave_descriptions(listing)
    return path, listing


def _leave_descriptions(listing: Listing) -> None:
    """Takes out of the files what describes the data."""
    records = [file for file in listing.files if not _is_text(file.path)]
    folders = {folder for parent in {file.path.parent for file in records} for folder in (parent, *parent.parents)}
    described = {file.path.parent for file in listing.files if file.path.name in DESCRIPTIONS}
    unread = {file.path for file in listing.files if _describes(file.path, folders, described)}
    if unread:
        listing.files = [file for file in listing.files if file.path not in unread]
        listing.unread = sorted([*listing.unread, *unread], key=lambda path: path.parts)


def _is_text(path: AnyPath) -> bool:
    format = format_of(path.name)
    return format is not None and format.kind in TEXT_KINDS


def _describes(path: AnyPath, folders: Collection[PurePath], described: Collection[PurePath]) -> bool:
    """True for a README next to or above records, for a description of a hub, and for its cache."""
    name = path.name.lower()
    return (
        name in DESCRIPTIONS
        or (path.parent in folders and is_read_by_people(name))
        or (path.parent in described and name.startswith("cache-") and name.endswith(".arrow"))
    )


def _instead(directory: AnyPath, listing: Listing) -> str:
    message = unread_message(unread_record([(directory, listing)]))
    return f" ({message.splitlines()[0]})" if message else ""


def _names_of(files: Sequence[tuple[AnyPath, AnyPath]]) -> list[str]:
    """Names each (file, input directory): the directory's name and the path below it.

    Equal names get more of the directory's path:

    /corpus/zh/data/a.jsonl, /corpus/en/data/a.jsonl  →  zh/data/a.jsonl, en/data/a.jsonl
    """
    parents = {directory: directory.resolve().parts[1:] for directory in {directory for _, directory in files}}
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
    remote = _remote_states(files)
    states = [_local_state(file.path) if isinstance(file.path, Path) else remote.get(file.path) for file in files]
    found = zip(files, states, strict=True)
    changes = [(file.path, change) for file, state in found if (change := _change_of(file, state))]
    if changes:
        remedy = (
            "when nothing writes to the input any more, run the same command again, with --overwrite if it has changed"
        )
        raise UserError([*truncate_problems([f"{path} {change}" for path, change in changes]), remedy])


_State = tuple[int, int | str | None] | str | None
"""Size and modification time of a file; why it cannot be read; None where it has gone."""


def _local_state(path: Path) -> _State:
    try:
        status = path.stat()
    except OSError as error:
        return error.strerror or type(error).__name__
    return status.st_size, status.st_mtime_ns


def _remote_states(files: Sequence[InputFile]) -> dict[AnyPath, _State]:
    roots = {file.path.root for file in files if isinstance(file.path, RemotePath)}
    listings = [list_remote(root)[1] for root in sorted(roots)]
    return {path: (path.size_bytes or 0, version) for listing in listings for path, version in listing.items()}


def _change_of(file: InputFile, state: _State) -> str | None:
    if state is None or isinstance(state, str):
        return f"can no longer be read: {state or 'it has gone'}"
    size_bytes, modified_ns = state
    if size_bytes != file.size_bytes:
        return f"has changed from {file.size_bytes:,} to {size_bytes:,} bytes while it was read"
    return None if modified_ns == file.modified_ns else "was written or replaced while it was read"
