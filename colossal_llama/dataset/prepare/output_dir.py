"""Manages the output directory: its locks, whether a run in it may be resumed, and its clean-up.

DIR/manifest.json     written last: the preparation is complete
DIR/arrow, DIR/jsonl  finished parts only
DIR/cache/run.json    identity of an incomplete preparation
DIR/.lock             locked while a run writes here; the system releases it when the process ends

A run that is refused leaves nothing behind, and no run deletes what another program wrote.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

from colossal_llama.dataset.prepare.arguments import PrepareArguments, ShardArguments
from colossal_llama.dataset.prepare.manifest import IDENTITY_SHAPE
from colossal_llama.dataset.prepare.ownership import (
    CACHED,
    REPORTS,
    RESULTS,
    RUN_RECORD,
    foreign_messages,
    foreign_parts,
    is_ours,
    leftover,
    refuse_foreign,
)
from colossal_llama.dataset.prepare.part_check import remove_part
from colossal_llama.readers.formats import ending_of
from colossal_llama.readers.line_reader import MAX_LINE_MB
from colossal_llama.readers.listing import InputFile
from colossal_llama.utils.atomic_io import temporary_path
from colossal_llama.utils.checked_json import CHECKSUM, DamagedJsonError, read_checked, with_checksum, write_checked
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.errors import UserError, truncate_problems
from colossal_llama.utils.file_lock import file_lock, remove_lock

State = Literal["new", "incomplete", "complete"]
_DIRECTORIES = ("arrow", "jsonl", "cache")
_UNRECORDED = {"max_line_mb": MAX_LINE_MB}
"""Values of the options that are recorded only where they are others."""
_ALWAYS_READ = frozenset({"", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"})
"""Endings that the first versions read; without one, a file of a saved data set."""
_OF_THE_PLAN = ("mixture", "total_tokens")
"""Recorded options that decide which documents the parts have, and not their tokens."""


@contextmanager
def run_lock(arguments: PrepareArguments) -> Iterator[None]:
    """Locks the directory: exclusively, or together with the jobs of other shards.

    Raises:
        UserError: another run is writing into the directory.
    """
    with directory_locks(arguments.output_dir, arguments.shards, "--data_output_dirs"):
        yield


@contextmanager
def directory_locks(directory: Path, shards: ShardArguments, option: str) -> Iterator[None]:
    """Locks an output directory: exclusively, or together with the jobs of other shards.

    Args:
        directory: made if it does not exist; a refused run takes away what it has made.
        shards: which job this is.
        option: that names the directory, for messages.

    Raises:
        UserError: another run is writing into the directory, or nobody may.
    """
    is_alone = shards.shard_index is None
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    locks_before = set(directory.glob(".lock*"))
    shard = f"{shards.shard_index}-of-{shards.num_shards}"
    with ExitStack() as locks, _empty_directories_removed(missing):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = locks.enter_context(file_lock(directory / ".lock", shared=not is_alone))
            if not is_alone:
                locks.enter_context(file_lock(directory / f".lock-shard-{shard}"))
        except BlockingIOError:
            raise UserError(
                f"another run is writing into {directory}: wait for it to end, or give another {option}"
            ) from None
        except OSError as error:
            raise UserError(f"{option}: {directory} cannot be written to: {error.strerror}") from error
        try:
            yield
        except (UserError, OSError):
            if directory / ".lock" not in locks_before:
                remove_lock(
                    directory / ".lock", lock, (path for path in directory.glob(".lock-*") if path not in locks_before)
                )
            raise


@contextmanager
def _empty_directories_removed(directories: Sequence[Path]) -> Iterator[None]:
    """Removes those of the directories that are empty when the block is refused."""
    try:
        yield
    except (UserError, OSError):
        with suppress(OSError):
            for directory in directories:
                directory.rmdir()
        raise


@contextmanager
def finishing_lock(directory: Path) -> Iterator[None]:
    """Locks the final stage, which one job runs at a time; waits for the lock."""
    with file_lock(directory / ".lock-finishing", wait=True):
        yield


def identity(arguments: PrepareArguments, files: Sequence[InputFile], format_facts: dict) -> dict:
    """Everything that decides the rows: equal for runs that give the same rows.

    Args:
        arguments: of the run.
        files: its input files.
        format_facts: of the tokenizer and the chat format, see `open_tokenizer.record_tokenizer`.
    """
    return {
        "arguments": arguments.deciding_options(),
        **format_facts,
        "input_files": [{"name": file.name, "size_bytes": file.size_bytes} for file in files],
    }


def recorded_date(arguments: PrepareArguments) -> str | None:
    """Day that the directory's preparation tells its chat template; None if it has not begun.

    Whatever is wrong with the record is found by `open_directory`.
    """
    if arguments.run.overwrite:
        return None
    for record in ("manifest.json", f"cache/{RUN_RECORD}"):
        with suppress(OSError, UserError, LookupError, TypeError):
            return _recorded_identity(arguments.output_dir / record)["template"]["date"]
    return None


def open_directory(arguments: PrepareArguments, requested: dict, files: Sequence[InputFile]) -> State:
    """Prepares the directory for the run and returns its state.

    A shard's job waits while another one finishes the preparation, and empties the cache.

    Args:
        arguments: of the run.
        requested: its `identity`.
        files: its input files. Their modification times are recorded: a file whose time has not
            changed need not be read again.

    Raises:
        UserError: the directory holds a preparation of another identity, or parts of unknown
            origin.
    """
    is_alone = arguments.shards.shard_index is None
    with nullcontext() if is_alone else finishing_lock(arguments.output_dir):
        return _open_locked(arguments, requested, files)


def _open_locked(arguments: PrepareArguments, requested: dict, files: Sequence[InputFile]) -> State:
    directory = arguments.output_dir
    refuse_foreign(directory)
    is_replaced = arguments.run.overwrite and _has_tokens_of(arguments, requested)
    if arguments.run.overwrite and not is_replaced:
        _remove_outputs(directory)
    records: dict[Path, State] = {
        directory / "manifest.json": "complete",
        directory / "cache" / RUN_RECORD: "incomplete",
    }
    for record, state in records.items():
        if record.is_file():
            recorded = _recorded_identity(record)
            if arguments.mixture.plan_only and not list(differences("", _unmixed(recorded), _unmixed(requested))):
                return state
            if (is_replaced or state == "incomplete") and _is_other_mixture(arguments, recorded, requested):
                _take_other_mixture(directory, requested)
                state = "incomplete"
            else:
                _check_identity(directory, recorded, requested, state)
            if state == "incomplete":
                _make_directories(directory)
            return state
    for name in ("arrow", "jsonl"):
        if (directory / name).is_dir() and any((directory / name).iterdir()):
            raise UserError(
                f"{directory / name} is not empty, and it is unknown how it was made: give another --data_output_dirs, "
                "or --overwrite to remove it"
            )
    if arguments.shards.shard_index is None:
        _remove_outputs(directory)
    return reopen(directory, requested, files)


def reopen(directory: Path, requested: dict, files: Sequence[InputFile]) -> State:
    """Makes the directories of a run that writes, and records its identity."""
    _make_directories(directory)
    return _record_run(directory, requested, files)


def _make_directories(directory: Path) -> None:
    for name in _DIRECTORIES:
        (directory / name).mkdir(exist_ok=True)


def _recorded_identity(record: Path) -> dict:
    try:
        return read_checked(record, {"identity": IDENTITY_SHAPE})["identity"]
    except DamagedJsonError as error:
        raise UserError(f"{error}; --overwrite starts afresh, or give another --data_output_dirs") from error


def _record_run(directory: Path, requested: dict, files: Sequence[InputFile]) -> State:
    """Records the identity of the run.

    Of several shards' jobs that start at once, one records it and the others compare.
    """
    record = directory / "cache" / RUN_RECORD
    candidate = temporary_path(record)
    rules = {rule: True for rule in CHUNK_RULES if has_rule(directory, rule)}
    write_checked(candidate, with_checksum({"identity": requested, **rules, "modified_ns": modification_times(files)}))
    try:
        os.link(candidate, record)
    except FileExistsError:
        _check_identity(directory, _recorded_identity(record), requested, "incomplete")
        return "incomplete"
    finally:
        candidate.unlink(missing_ok=True)
    return "new"


def _check_identity(directory: Path, recorded: dict, requested: dict, state: State) -> None:
    found = list(differences("", recorded, requested))
    if found:
        verb = "was prepared" if state == "complete" else "was begun"
        raise UserError(
            [
                f"{directory} {verb} with other arguments or input; --overwrite starts afresh, or give another "
                "--data_output_dirs:",
                *(f"  {line}" for line in found),
            ]
        )


def _unmixed(run_identity: dict) -> dict:
    """The identity without what decides the plan of the parts alone, and not the tokens."""
    arguments = {key: value for key, value in run_identity["arguments"].items() if key not in _OF_THE_PLAN}
    return {**run_identity, "arguments": arguments}


def _has_tokens_of(arguments: PrepareArguments, requested: dict) -> bool:
    """True for a finished directory of another mixture whose tokens `--keep_cache` has kept."""
    directory = arguments.output_dir
    records = [directory / "manifest.json", directory / "cache" / RUN_RECORD]
    if not all(is_ours(record) for record in records) or not any((directory / "cache" / "chunks").glob("*")):
        return False
    try:
        return all(_is_other_mixture(arguments, _recorded_identity(record), requested) for record in records)
    except UserError:  # a damaged record: everything is removed
        return False


def _is_other_mixture(arguments: PrepareArguments, recorded: dict, requested: dict) -> bool:
    """True for runs that differ in their mixture alone.

    Raises:
        UserError: this is the job of a shard, and others may be writing parts of the former one.
    """
    is_other = recorded != requested and not list(differences("", _unmixed(recorded), _unmixed(requested)))
    if is_other and arguments.shards.shard_index is not None:
        raise UserError(
            f"{arguments.output_dir} was begun with another mixture: when no job is running, run the command once "
            "without --num_shards and --shard_index, or give another --data_output_dirs"
        )
    return is_other


def _take_other_mixture(directory: Path, requested: dict) -> None:
    """Keeps the tokenized chunks, removes plan and parts of the former mixture, records the new.

    The record is replaced last: a run that is killed before goes on with the former one.

    Raises:
        UserError: arrow/ or jsonl/ holds what these scripts did not write; then nothing is removed.
    """
    record = directory / "cache" / RUN_RECORD
    content = {
        key: value for key, value in read_checked(record, {"identity": IDENTITY_SHAPE}).items() if key != CHECKSUM
    }
    if foreign := foreign_parts(directory):
        raise UserError(foreign_messages(directory, foreign))
    for name in RESULTS:
        (directory / name).unlink(missing_ok=True)
    indices = {path.name[5:10] for name in ("arrow", "jsonl") for path in (directory / name).glob("part-*")}
    for index in sorted(indices):
        remove_part(directory, int(index))
    _remove(directory / "cache" / "plan")
    write_checked(record, with_checksum({**content, "identity": requested}))
    removed = f"; {len(indices):,} parts of the former one are removed" if indices else ""
    log_rank_zero(f"another mixture than before: the parts are planned anew, nothing is tokenized again{removed}")


CHUNK_RULES = ("grouped_chunks", "divided_files")
"""Records of what decides the chunks, in the order of the arguments of `plan_chunks`."""


def has_rule(directory: Path, rule: str) -> bool:
    """True where a rule decides the chunks; False where an earlier version began."""
    for record in (directory / "manifest.json", directory / "cache" / RUN_RECORD):
        with suppress(FileNotFoundError, DamagedJsonError):
            return rule in read_checked(record, {})
    return True


def modification_times(files: Sequence[InputFile]) -> dict[str, int | str | None]:
    """Modification times of the files, by name, in nanoseconds; of remote files their versions."""
    return {file.name: file.modified_ns for file in files}


def files_with_changed_times(directory: Path, files: Sequence[InputFile]) -> set[str]:
    """Names of the files whose modification time has changed since the directory's run."""
    for record in (directory / "last_run.json", directory / "cache" / RUN_RECORD):
        with suppress(FileNotFoundError, DamagedJsonError):
            known = read_checked(record, {"modified_ns": dict})["modified_ns"]
            return {name for name, time in modification_times(files).items() if time is None or known.get(name) != time}
    return {file.name for file in files}


def restore_last_run(arguments: PrepareArguments, files: Sequence[InputFile], tokenizer: dict) -> None:
    """Writes last_run.json of a complete preparation anew, where it is damaged or missing.

    The input has been compared with what was read: its modification times are those of the record.

    Args:
        arguments: of the run.
        files: its input files.
        tokenizer: `tokenizer_record` of its tokenizer.
    """
    path = arguments.output_dir / "last_run.json"
    try:
        read_checked(path, {"modified_ns": dict})
        return
    except FileNotFoundError:
        reason = "is missing"
    except DamagedJsonError as error:
        reason = error.reason
    log_rank_zero(f"{path} {reason}: it is made anew, without the times of the run")
    content = {"num_workers": arguments.run.num_workers, **tokenizer, "modified_ns": modification_times(files)}
    write_checked(path, with_checksum(content))


def refuse_changed_content(directory: Path, names: Sequence[str]) -> None:
    """Refuses to resume with changed input.

    Args:
        directory: the output directory.
        names: of the input files whose content has changed.

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


def differences(name: str, recorded: Any, requested: Any) -> Iterator[str]:
    """Names what two identities of runs differ in, one a line.

    Args:
        name: of the compared value; empty for the whole identity.
        recorded: of the run that began in the directory.
        requested: of this run.
    """
    if name == "input_files":
        yield from _file_differences(recorded, requested)
    elif isinstance(recorded, dict) and isinstance(requested, dict):
        for key in sorted({*recorded, *requested}):
            default = _UNRECORDED.get(key)
            label = f"{name}.{key}" if name.partition(".")[0] == "mixture" else key
            yield from differences(label, recorded.get(key, default), requested.get(key, default))
    elif recorded != requested:
        yield f"{name}: {recorded} then, {requested} now"


def _file_differences(recorded: list, requested: list) -> Iterator[str]:
    then = {file["name"]: file["size_bytes"] for file in recorded}
    now = {file["name"]: file["size_bytes"] for file in requested}
    changed = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    yield from truncate_problems(
        [f"input file {name}: {_size(then.get(name))} then, {_size(now.get(name))} now" for name in changed], 10
    )

    kinds = {ending_of(name).lower() for name in now if name not in then} - _ALWAYS_READ
    if kinds:
        yield (
            f"files of {', '.join(sorted(kinds))} were not read by earlier versions: to keep what one prepared, "
            "give the files that it read, for instance --data_input_dirs 'DIRECTORY/*.jsonl'"
        )


def _size(size_bytes: int | None) -> str:
    return "absent" if size_bytes is None else f"{size_bytes:,} bytes"


def _remove_outputs(directory: Path) -> None:
    """Removes what the scripts wrote, and nothing else.

    The manifest goes first, so that a partly removed preparation does not look complete.

    Raises:
        UserError: arrow/ or jsonl/ holds what they did not write; then nothing is removed.
    """
    if foreign := foreign_parts(directory):
        raise UserError(foreign_messages(directory, foreign))
    indices = {path.name[5:10] for name in ("arrow", "jsonl") for path in (directory / name).glob("part-*")}
    for name in REPORTS:
        if is_ours(directory / name):
            (directory / name).unlink()
    for index in sorted(indices):
        remove_part(directory, int(index))
    empty_cache(directory)
    for path in directory.glob(".*.tmp-*"):
        if leftover(path):
            path.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def missing_directories(arguments: PrepareArguments) -> list[Path]:
    """Those of arrow/, jsonl/ and cache/ that do not exist."""
    return [path for name in _DIRECTORIES if not (path := arguments.output_dir / name).exists()]


def discard_run(arguments: PrepareArguments, made: Sequence[Path]) -> None:
    """Removes everything that a failed run has written, and the directories that it made."""
    _remove_outputs(arguments.output_dir)
    for path in made:
        with suppress(OSError):
            path.rmdir()


def empty_cache(directory: Path) -> None:
    """Removes the intermediates under cache/."""
    for path in (directory / "cache").glob(".*.tmp-*"):
        if leftover(path):
            path.unlink(missing_ok=True)
    for name in CACHED:
        _remove(directory / "cache" / name)
