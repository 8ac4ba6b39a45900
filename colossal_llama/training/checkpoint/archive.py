"""Archive of what earlier runs left in a save directory: `superseded-N-…`. Imports no torch."""

import itertools
import os
from pathlib import Path

from colossal_llama.training.checkpoint.state import MERGED_MODEL, MODEL, checkpoint_directories, step_of_checkpoint

ARCHIVED = "superseded-"


def archive(path: Path) -> Path:
    """Renames a directory to `superseded-N-…` with the first free N; returns the new path."""
    names = (path.with_name(f"{ARCHIVED}{number}-{path.name}") for number in itertools.count())
    return path.rename(next(name for name in names if not name.exists()))


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
            if entry in (MODEL, MERGED_MODEL) or step_of_checkpoint(entry) is not None:
                return entry
    return None
