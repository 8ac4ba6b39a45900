"""Archive of what earlier runs left in a save directory: `superseded-N-…`. Imports no torch."""

import itertools
import os
from pathlib import Path

from colossal_llama.training.checkpoint.state import (
    LR_SCHEDULER,
    MERGED_MODEL,
    MODEL,
    OPTIMIZER,
    RANDOM_STATES,
    RUNNING_STATES,
    checkpoint_directories,
    read_running_states,
    step_of_checkpoint,
)
from colossal_llama.utils.atomic_io import interrupted_writes
from colossal_llama.utils.checksums import CHECKSUMS, has_checksums
from colossal_llama.utils.console import log_rank_zero

ARCHIVED = "superseded-"
_IN_A_CHECKPOINT = {MODEL, OPTIMIZER, RANDOM_STATES, LR_SCHEDULER, RUNNING_STATES, CHECKSUMS}
_IN_A_MODEL = {".safetensors", ".json", ".model", ".jinja", ".txt", ".md"}


def archive(path: Path) -> Path:
    """Renames a directory to `superseded-N-…` with the first free N; returns the new path."""
    names = (path.with_name(f"{ARCHIVED}{number}-{path.name}") for number in itertools.count())
    return path.rename(next(name for name in names if not os.path.lexists(name)))


def make_way(target: Path) -> None:
    """Archives what has the name of a directory that a run completes, unless a run wrote it.

    A finished model of an earlier stage is left, to be replaced. A checkpoint is never replaced:
    a run archives those beyond its own step when it begins.
    """
    is_replaceable = target.name in (MODEL, MERGED_MODEL) and has_checksums(target) and not target.is_symlink()
    if os.path.lexists(target) and not is_replaceable:
        log_rank_zero(f"{target} was not written by this run: it is archived as {archive(target)}")


def own_checkpoints(save_dir: Path) -> list[Path]:
    """Checkpoints that runs have saved in a save directory, oldest first.

    Other directories with a checkpoint's name, and links, belong to somebody else.
    """
    return [path for path in checkpoint_directories(save_dir) if not path.is_symlink() and _was_saved_by_a_run(path)]


def _was_saved_by_a_run(path: Path) -> bool:
    try:
        read_running_states(path)
    except (OSError, ValueError):
        return False
    return True


def archive_foreign_writes(save_dir: Path) -> list[Path]:
    """Archives what only looks like an interrupted write of a run; returns the new paths.

    `clean_up_interrupted_writes` would delete it, or a run would write into it.
    """
    found = interrupted_writes(save_dir)
    return [archive(path) for path, name in found if is_name_of_a_run(name) and not _holds_only_own_files(path, name)]


def is_name_of_a_run(name: str) -> bool:
    """True for the names of checkpoints and finished models."""
    return name in (MODEL, MERGED_MODEL) or step_of_checkpoint(name) is not None


def _holds_only_own_files(path: Path, name: str) -> bool:
    if path.is_symlink() or not path.is_dir():
        return False
    entries = [entry for entry in path.iterdir() if ".tmp-" not in entry.name]
    if step_of_checkpoint(name) is not None:
        return all(entry.name in _IN_A_CHECKPOINT for entry in entries)
    return all(entry.suffix in _IN_A_MODEL and not entry.is_dir() for entry in entries)


def archive_later_checkpoints(save_dir: Path, step: int) -> list[Path]:
    """Archives checkpoints of steps after `step`, left by an earlier run; returns their new paths.

    `--load_checkpoint auto` and `--keep_last` would take them for the newest of the run that begins
    now.
    """
    return [archive(path) for path in checkpoint_directories(save_dir) if (step_of_checkpoint(path.name) or 0) > step]


def archived_checkpoints(save_dir: Path) -> list[Path]:
    """Archived checkpoints in a save directory, by name."""
    return sorted(save_dir.glob(f"{ARCHIVED}*-epoch-*_step-*"))


def entry_written_by_a_run(path: Path, save_dir: Path) -> str | None:
    """The entry of a save directory that contains `path`, if runs that save there write it.

    Such runs may replace, rename or delete it.

        entry_written_by_a_run(Path("S/epoch-0_step-2/modelling"), Path("S"))  →  "epoch-0_step-2"

    Returns:
        None for a path elsewhere, and for an entry that no run writes; links count under their own
            names and where they lead.
    """
    for real in (os.path.abspath, os.path.realpath):
        path_there, save_dir_there = Path(real(path)), Path(real(save_dir))
        if save_dir_there in path_there.parents:
            entry = path_there.relative_to(save_dir_there).parts[0]
            if is_name_of_a_run(entry):
                return entry
    return None
