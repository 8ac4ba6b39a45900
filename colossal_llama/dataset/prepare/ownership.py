"""Recognises the files of an output directory that the prepare scripts wrote, by their content.

Nothing else is deleted or replaced. A file counts as ours by how it begins, so that one that was
cut off later on is recognised, too. Files of other names are not looked at.
"""

import json
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from colossal_llama.dataset.figure_titles import DATA_JSON_BEGINNING, DATA_TITLE, PLAN_TITLE
from colossal_llama.dataset.prepare.part_check import foreign_in_part
from colossal_llama.utils.errors import UserError, truncate_problems

RUN_RECORD = "run.json"
CACHED = ("chunks", "plan", "parts", RUN_RECORD)
"""Names that the scripts write under cache/.

run.json is removed last: it identifies the rest.
"""
_BEGINNINGS = {
    "manifest.json": b'{\n  "manifest_version": ',
    "last_run.json": b'{\n  "num_workers": ',
    "rejected.jsonl": b'{"file":"',
    "mixture_plan.json": b'{\n  "plan_version": ',
    "mixture_plan.png": b"\x89PNG\r\n\x1a\n",
    "plot_data.json": DATA_JSON_BEGINNING,
    "plot_data.png": b"\x89PNG\r\n\x1a\n",
    RUN_RECORD: b'{\n  "identity": {',
    "part.json": b'{\n  "kind": "',
    "part.jsonl": b'{"input_ids":[',
}
_TITLES = {"mixture_plan.png": PLAN_TITLE, "plot_data.png": DATA_TITLE}  # all PNG begin alike
_PNG_HEAD_BYTES = 1024  # size of the picture, title, resolution
RESULTS = ("manifest.json", "last_run.json", "rejected.jsonl")
REPORTS = (*RESULTS, "mixture_plan.json", "mixture_plan.png", "plot_data.json", "plot_data.png")
_TEMPORARY = re.compile(rf"\.+(?P<name>{'|'.join(map(re.escape, (*REPORTS, RUN_RECORD)))})\.tmp-.+-\d+")
_PART = re.compile(r"part-(?P<index>\d{5})")
_CACHE_FILE = re.compile(
    r"chunk-\d{5,}\.(tokens|segments|rejected|json)|\w+\.npy|plan\.json|part-\d{5,}\.\d+|\..+\.tmp-.+-\d+"
)


def is_ours(path: Path, name: str | None = None) -> bool:
    """True for a file that begins as the scripts begin one of the name, the path's by default."""
    beginning = _BEGINNINGS[name or path.name]
    with suppress(FileNotFoundError, NotADirectoryError):
        if title := _TITLES.get(path.name):
            return title.encode() in (_read_beginning(path, _PNG_HEAD_BYTES) or b"")
        return _read_beginning(path, len(beginning)) == beginning
    return False


def refuse_foreign(directory: Path) -> None:
    """Refuses a directory in which somebody else's files have names that a run writes.

    Raises:
        UserError: there are such files; they are named.
    """
    foreign = [*_foreign_reports(directory), *_foreign_directories(directory), *_foreign_cache(directory / "cache")]
    if foreign:
        raise UserError(foreign_messages(directory, foreign))


def foreign_messages(directory: Path, names: Sequence[str]) -> list[str]:
    """Messages that name what somebody else wrote, by its path in the directory."""
    paths = [directory / name for name in names]
    messages = [
        f"{path.parent} holds {path.name}, which these scripts did not write, or which is damaged beyond recognition: "
        "give another --data_output_dirs, or move it away"
        for path in paths
    ]
    return truncate_problems(messages, 10)


def _foreign_reports(directory: Path) -> Iterator[str]:
    yield from (name for name in REPORTS if _exists(directory / name) and not is_ours(directory / name))
    locks = directory.glob(".lock-*")  # ours are empty; .lock is looked at when it is taken
    yield from (path.name for path in locks if path.is_symlink() or not path.is_file() or path.stat().st_size)


def _foreign_directories(directory: Path) -> Iterator[str]:
    names = ("arrow", "jsonl", "cache")
    yield from (name for name in names if _exists(directory / name) and not (directory / name).is_dir())


def _foreign_cache(cache: Path) -> Iterator[str]:
    """Names under cache/ that no run wrote; without a run's record everything that is not empty."""
    if not cache.is_dir():
        return
    # A shard's job may write there when another one has just finished, and removed run.json.
    has_record = is_ours(cache / RUN_RECORD) or is_ours(cache.parent / "manifest.json")
    for path in sorted(cache.iterdir()):
        if leftover(path) or (path.name == RUN_RECORD and is_ours(path)):
            continue
        if path.name not in CACHED or path.name == RUN_RECORD or path.is_symlink():
            yield f"cache/{path.name}"
            continue
        try:
            found = list(path.iterdir())
        except NotADirectoryError:
            found = [path]
        except FileNotFoundError:
            continue  # the last of several jobs has just emptied the cache
        other = next((below for below in found if not has_record or not _CACHE_FILE.fullmatch(below.name)), None)
        if other is not None:
            yield f"cache/{other.relative_to(cache)}"


def foreign_parts(directory: Path) -> list[str]:
    """Names under arrow/ and jsonl/ that are not those of parts of this preparation.

    Where no record tells the number of its parts, they must begin as parts do. Hidden files are
    left alone.
    """
    num_parts = _recorded_parts(directory)
    found = []
    for folder, suffix in (("arrow", ""), ("jsonl", ".jsonl")):
        for path in sorted((directory / folder).glob("[!.]*")):
            part = _PART.fullmatch(path.name.removesuffix(suffix))
            known = part is not None and path.name.endswith(suffix) and int(part["index"]) < num_parts
            if folder == "jsonl":
                whole = part and (is_ours(path, "part.jsonl") or (known and path.is_file() and not path.is_symlink()))
                found += [] if whole else [f"jsonl/{path.name}"]
            elif part and (known or is_ours(path / "part.json")):
                found += [f"arrow/{name}" for name in foreign_in_part(path)]
            else:
                found.append(f"arrow/{path.name}")
    return found


def _recorded_parts(directory: Path) -> int:
    """Number of parts by the directory's record; 0 where there is none that can be read."""
    for path in (directory / "manifest.json", directory / "cache" / RUN_RECORD):
        try:
            return int(json.loads(path.read_bytes())["identity"]["arguments"]["num_spliced_dataset_bins"])
        except (OSError, ValueError, RecursionError, TypeError, KeyError):
            continue
    return 0


def leftover(path: Path) -> bool:
    """True for the temporary file that a killed run left of a report or of run.json.

    It is empty, or begins as the file does. That of a running job may have gone meanwhile.
    """
    named = _TEMPORARY.fullmatch(path.name)
    if named is None:
        return False
    beginning = _BEGINNINGS[named["name"]]
    with suppress(FileNotFoundError):
        found = _read_beginning(path, len(beginning))
        return found is not None and beginning.startswith(found)
    return True


def _read_beginning(path: Path, count: int) -> bytes | None:
    """The first bytes of a file; None for what is a link or no file."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return None
    with path.open("rb") as file:
        return file.read(count)


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()
