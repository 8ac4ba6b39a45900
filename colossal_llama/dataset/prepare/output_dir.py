"""The output directory: who may write into it, whether a run in it may go on, and how a finished one is left.

DIR/manifest.json     written last: the preparation is complete
DIR/arrow, DIR/jsonl  finished parts only
DIR/cache/run.json    what a begun preparation was begun with
DIR/.lock             held while a run works here (the system lets go of it when the process ends, however it ends)
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal

from colossal_llama.dataset.prepare.arguments import PrepareArguments
from colossal_llama.dataset.prepare.input_files import InputFile
from colossal_llama.utils.atomic_io import temporary_path, write_json
from colossal_llama.utils.errors import UserError, truncate_problems
from colossal_llama.utils.file_lock import file_lock

State = Literal["new", "begun", "complete"]
_CACHED = ("chunks", "plan", "parts", "run.json")
"""What the scripts write under cache/, a common name that may be somebody else's; run.json goes
last, for without it nobody could tell
what the rest belongs to."""
_CANDIDATES = ".*run.json.tmp-*"  # for run.json, left behind by a killed run


@contextmanager
def output_dir_lock(arguments: PrepareArguments) -> Iterator[None]:
    """Holds the directory: alone, or beside the jobs of other shards.

    Raises:
        UserError: another run works in the directory.
    """
    directory, is_alone = arguments.output_dir, arguments.shards.shard_index is None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / ".lock").touch()
    except OSError as error:
        raise UserError(f"--data_output_dirs: {directory} cannot be written to: {error.strerror}") from error
    with ExitStack() as locks:
        try:
            locks.enter_context(file_lock(directory / ".lock", shared=not is_alone))
            if not is_alone:
                shard = f"{arguments.shards.shard_index}-of-{arguments.shards.num_shards}"
                locks.enter_context(file_lock(directory / f".lock-shard-{shard}"))
        except BlockingIOError:
            raise UserError(
                f"another run is writing into {directory}: wait for it to end, or give another --data_output_dirs"
            ) from None
        yield


@contextmanager
def finishing_lock(directory: Path) -> Iterator[None]:
    """Waits until no other shard's job finishes the preparation, and keeps others waiting."""
    with file_lock(directory / ".lock-finishing", wait=True):
        yield


def identity(arguments: PrepareArguments, files: Sequence[InputFile], format_facts: dict) -> dict:
    """Everything that decides the rows, for comparing runs; `format_facts` are the tokenizer's and the template's."""
    return {
        "arguments": arguments.deciding_options(),
        **format_facts,
        "input_files": [{"name": file.name, "size_bytes": file.size_bytes} for file in files],
    }


def open_directory(arguments: PrepareArguments, wanted: dict, files: Sequence[InputFile]) -> State:
    """Prepares the directory for the run and says in which state it is.

    Args:
        arguments: of the run.
        wanted: its `identity`.
        files: its input files, whose times are noted: a file whose time has not changed need not be
            read again.

    Raises:
        UserError: the directory was begun or completed with something else, or holds parts of
            unknown origin.
    """
    directory = arguments.output_dir
    _refuse_strange_cache(directory / "cache")
    if arguments.run.overwrite:
        _remove_own(directory)
    for record, state in ((directory / "manifest.json", "complete"), (directory / "cache" / "run.json", "begun")):
        if record.is_file():
            _refuse_differences(directory, json.loads(record.read_bytes())["identity"], wanted, state)
            return state
    for name in ("arrow", "jsonl"):
        if (directory / name).is_dir() and any((directory / name).iterdir()):
            raise UserError(
                f"{directory / name} is not empty, and nothing tells how it was made: give another --data_output_dirs, "
                "or --overwrite to remove it"
            )
    if arguments.shards.shard_index is None:
        _remove_own(directory)
    for name in ("arrow", "jsonl", "cache"):
        (directory / name).mkdir(exist_ok=True)
    return _begin(directory, wanted, files)


def _refuse_strange_cache(cache: Path) -> None:
    strange = [path.name for path in cache.iterdir() if not _is_cached(path)] if cache.is_dir() else []
    if strange:
        raise UserError(
            f"{cache} holds {strange[0]}, which these scripts did not write: give another --data_output_dirs, or move "
            "it away"
        )


def _is_cached(path: Path) -> bool:
    return path.name in _CACHED or path.match(_CANDIDATES)


def _begin(directory: Path, wanted: dict, files: Sequence[InputFile]) -> State:
    """Notes with what the run begins; of several shards' jobs that start together, one notes it and the others compare."""
    record = directory / "cache" / "run.json"
    candidate = temporary_path(record)
    write_json(candidate, {"identity": wanted, "modified_ns": modification_times(files)})
    try:
        os.link(candidate, record)
    except FileExistsError:
        _refuse_differences(directory, json.loads(record.read_bytes())["identity"], wanted, "begun")
        return "begun"
    finally:
        candidate.unlink()
    return "new"


def _refuse_differences(directory: Path, begun: dict, wanted: dict, state: State) -> None:
    differences = list(_differences("", begun, wanted))
    if differences:
        verb = "was prepared" if state == "complete" else "was begun"
        raise UserError(
            [
                f"{directory} {verb} with something else; --overwrite starts afresh, or give another "
                "--data_output_dirs:",
                *(f"  {line}" for line in differences),
            ]
        )


def modification_times(files: Sequence[InputFile]) -> dict[str, int]:
    """The files' times by name."""
    return {file.name: file.modified_ns for file in files}


def changed_times(directory: Path, files: Sequence[InputFile]) -> set[str]:
    """The names of the files that were written anew, as far as their times tell, since the directory's run read them."""
    for record in (directory / "last_run.json", directory / "cache" / "run.json"):
        if record.is_file():
            known = json.loads(record.read_bytes())["modified_ns"]
            return {name for name, time in modification_times(files).items() if known.get(name) != time}
    return {file.name for file in files}


def refuse_changed_content(directory: Path, names: Sequence[str]) -> None:
    """Refuses to go on with input of which files have changed.

    Args:
        names: of these files.

    Raises:
        UserError: there is one.
    """
    if names:
        raise UserError(
            [
                f"{directory} was prepared from other input; --overwrite starts afresh, or give another "
                "--data_output_dirs:",
                *truncate_problems([f"  input file {name}: its content has changed" for name in names], 10),
            ]
        )


def _differences(place: str, begun: object, wanted: object) -> Iterator[str]:
    if place == "input_files":
        yield from _file_differences(begun, wanted)
    elif isinstance(begun, dict) and isinstance(wanted, dict):
        for name in sorted({*begun, *wanted}):
            yield from _differences(name, begun.get(name), wanted.get(name))
    elif begun != wanted:
        yield f"{place}: {begun} then, {wanted} now"


def _file_differences(begun: list, wanted: list) -> Iterator[str]:
    then = {file["name"]: file["size_bytes"] for file in begun}
    now = {file["name"]: file["size_bytes"] for file in wanted}
    changed = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    yield from truncate_problems(
        [f"input file {name}: {_size(then.get(name))} then, {_size(now.get(name))} now" for name in changed], 10
    )


def _size(size_bytes: int | None) -> str:
    return "absent" if size_bytes is None else f"{size_bytes:,} bytes"


def _remove_own(directory: Path) -> None:
    """Removes what the scripts write, and nothing else; the manifest first, so that nothing half-removed looks complete."""
    for name in ("manifest.json", "last_run.json", "rejected.jsonl"):
        (directory / name).unlink(missing_ok=True)
    for name in ("arrow", "jsonl"):
        for child in list((directory / name).iterdir()) if (directory / name).is_dir() else []:
            _remove(child)
    empty_cache(directory)
    for leftover in directory.glob(".*.tmp-*"):
        leftover.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def abandon(arguments: PrepareArguments) -> None:
    """Leaves a directory in which nothing of worth was made as it was found."""
    _remove_own(arguments.output_dir)
    for name in ("arrow", "jsonl", "cache"):
        with suppress(OSError):
            (arguments.output_dir / name).rmdir()


def empty_cache(directory: Path) -> None:
    """Removes the intermediates."""
    for leftover in (directory / "cache").glob(_CANDIDATES):
        leftover.unlink(missing_ok=True)
    for name in _CACHED:
        _remove(directory / "cache" / name)
