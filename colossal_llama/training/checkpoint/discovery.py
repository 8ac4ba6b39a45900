"""Checkpoint discovery: which checkpoint a run resumes from. Imports no torch.

A checkpoint is complete when every file that belongs to it is there and as long as its header says
(`open_checkpoint`). A directory gets a checkpoint's name only when all its files are on disk
(checkpoint/commit.py), but copies can be interrupted and disks can fail. Whether the content is
what was written is found by the ranks together, before they resume (checkpoint/integrity.py).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from colossal_llama.training.checkpoint.archive import ARCHIVED, archived_checkpoints
from colossal_llama.training.checkpoint.state import (
    MODEL,
    OPTIMIZER,
    OPTIMIZER_INDEX,
    RANDOM_STATES,
    RUNNING_STATES,
    Checkpoint,
    checkpoint_directories,
    read_running_states,
    step_of_checkpoint,
)
from colossal_llama.utils.checksums import has_checksums
from colossal_llama.utils.errors import UserError, truncate_problems


class IncompleteCheckpoint(UserError):
    """A directory with a checkpoint's name that lacks files or parts of them."""


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a complete checkpoint: reads its running states, indexes and headers, and no tensors.

    Raises:
        IncompleteCheckpoint: a file is missing or damaged.
        UserError: an earlier version wrote it.
    """
    checkpoint = read_checkpoint(path)
    _verify_files(checkpoint)
    step, named = checkpoint.progress.step, step_of_checkpoint(path.name)
    if named not in (None, step):
        raise IncompleteCheckpoint(f"{path} is not a complete checkpoint: its {RUNNING_STATES} is that of step {step}")
    return checkpoint


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint's running states without verifying its other files.

    Raises:
        IncompleteCheckpoint: the running states cannot be read, or a directory is missing.
        UserError: an earlier version wrote it.
    """
    checkpoint = Checkpoint(path, _running_states(path))
    for needed in (MODEL, OPTIMIZER):
        if not (path / needed).is_dir():
            raise IncompleteCheckpoint(f"{path} is not a complete checkpoint: {needed}/ is missing")
    recorded = checkpoint.running_states.get("checksums")
    if recorded is not None and not has_checksums(path):
        raise IncompleteCheckpoint(f"{path} is not a complete checkpoint: {recorded} is missing")
    if recorded is None and any((path / OPTIMIZER).glob("*.bin*")):
        raise UserError(
            f"{path} was written by an earlier version, which pickled the optimizer states; pickles are not loaded. "
            f"Start from its weights with --load_checkpoint {checkpoint.model_path}, or finish the run with the "
            "version that began it"
        )
    return checkpoint


def _running_states(path: Path) -> dict[str, Any]:
    try:
        return read_running_states(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise IncompleteCheckpoint(
            f"{path} is not a complete checkpoint: {RUNNING_STATES} cannot be read ({reason})"
        ) from error


def _verify_files(checkpoint: Checkpoint) -> None:
    """Verifies that every file is there and as long as its header says.

    Raises:
        IncompleteCheckpoint: one is not: a copy was interrupted, or the disk failed.
    """
    # Imported here: the command line's parser imports this module, and must be fast.
    from colossal_llama.model.weights.adapter_files import ADAPTER_WEIGHTS, is_adapter
    from colossal_llama.model.weights.weight_files import find_weight_files, read_metadata

    path, model = checkpoint.path, checkpoint.model_path
    try:
        if is_adapter(model):
            read_metadata(model / ADAPTER_WEIGHTS)
        else:
            find_weight_files(model)
        index = path / OPTIMIZER / OPTIMIZER_INDEX
        if index.exists() and not index.is_file():
            raise ValueError("it is not a file")
        for name in json.loads(index.read_text(encoding="utf-8"))["files"]:
            read_metadata(path / OPTIMIZER / name)
        random_states = list((path / RANDOM_STATES).glob("*.safetensors"))
        for file in random_states:
            read_metadata(file)
    except UserError as error:
        raise IncompleteCheckpoint(f"{path} is not a complete checkpoint: {error}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is incomplete or damaged: {error}"
        raise IncompleteCheckpoint(
            f"{path} is not a complete checkpoint: {OPTIMIZER}/{OPTIMIZER_INDEX} cannot be read ({reason})"
        ) from error
    ranks = checkpoint.running_states["world_size"]
    if len(random_states) != ranks:
        raise IncompleteCheckpoint(
            f"{path} is not a complete checkpoint: {RANDOM_STATES}/ has {len(random_states)} files of {ranks}"
        )


def find_checkpoint(
    load_checkpoint: str | None,
    save_dir: Path,
    log: Callable[[str], None] = print,
    damaged: Mapping[Path, str] | None = None,
) -> Checkpoint | None:
    """Finds the complete checkpoint to resume from; None where the option names none.

    Args:
        load_checkpoint: the option's value; `auto` is the newest complete checkpoint in `save_dir`.
        save_dir: the run's.
        log: receives a line for each incomplete checkpoint that `auto` skips, with the reason.
        damaged: checkpoints whose content is known to be damaged, with what is wrong.

    Raises:
        UserError: the named checkpoint is incomplete or damaged, or all that `auto` found are.
    """
    damaged = damaged or {}
    if load_checkpoint == "auto":
        newest = _newest_complete(checkpoint_directories(save_dir), save_dir, log, damaged)
        archived = [] if newest else [path.name for path in archived_checkpoints(save_dir)]
        if archived:
            log(
                f"warning: auto begins afresh, since the latest run in {save_dir} left no checkpoint. Begun without "
                f"auto, it archived those of an earlier run ({', '.join(truncate_problems(archived, 3))}): to resume "
                f"one of them, stop this run, remove {ARCHIVED}N- from its name and give the command again"
            )
        return newest
    if load_checkpoint is None or not (Path(load_checkpoint) / RUNNING_STATES).is_file():
        return None
    try:
        return _open_undamaged(Path(load_checkpoint), damaged)
    except IncompleteCheckpoint as error:
        raise UserError(f"{error}: copy it again, name another, or give auto for the newest complete one") from error


def _open_undamaged(path: Path, damaged: Mapping[Path, str]) -> Checkpoint:
    if path in damaged:
        raise IncompleteCheckpoint(damaged[path])
    return open_checkpoint(path)


def _newest_complete(
    found: list[Path], save_dir: Path, log: Callable[[str], None], damaged: Mapping[Path, str]
) -> Checkpoint | None:
    problems = []
    for path in reversed(found):
        try:
            checkpoint = _open_undamaged(path, damaged)
        except IncompleteCheckpoint as error:
            problems += error.problems
            continue
        for problem in problems:
            log(f"skipped: {problem}")
        return checkpoint
    if problems:
        raise UserError([*problems, f"{save_dir} has no complete checkpoint: move these away to begin afresh"])
    return None
