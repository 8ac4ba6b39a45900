"""Checkpoints on disk: what a directory holds, and which of them a run goes on from.

    SAVE_DIR/epoch-0_step-200/
        modelling/            a model directory that transformers opens by itself: safetensors, config, tokenizer
        optimizer/            safetensors: both Adam moments, and the fp32 master weights (training/checkpoint/optimizer_io.py)
        random_states/        safetensors: generators of every rank
        lr_scheduler          JSON: schedule and position
        running_states.json   JSON: position in data and run, what the run was begun with

A directory of this name is complete (training/checkpoint/commit.py). Nothing in it is unpickled.
"""

import itertools
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from colossal_llama.utils.errors import UserError, truncate_problems

RUNNING_STATES = "running_states.json"
OPTIMIZER_INDEX = "index.json"
MODEL, MERGED_MODEL = "modelling", "modelling_merged"
"""The finished model's directory in `--save_dir`, and that of the base with the adapter merged."""
_NAME = re.compile(r"epoch-(\d+)_step-(\d+)")
_SUPERSEDED = "superseded-"


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    epoch: int = 0
    rows_done_in_epoch: int = 0
    step: int = 0
    """Optimizer steps done."""
    samples_seen: int = 0
    tokens_seen: int = 0
    target_tokens_seen: int = 0

    def advanced(self, rows: int, samples: int, tokens: int, target_tokens: int) -> "Progress":
        """The position after one more step."""
        return replace(
            self,
            rows_done_in_epoch=self.rows_done_in_epoch + rows,
            step=self.step + 1,
            samples_seen=self.samples_seen + samples,
            tokens_seen=self.tokens_seen + tokens,
            target_tokens_seen=self.target_tokens_seen + target_tokens,
        )

    def next_epoch(self) -> "Progress":
        """The position at the beginning of the following epoch."""
        return replace(self, epoch=self.epoch + 1, rows_done_in_epoch=0)


@dataclass(frozen=True)
class Origin:
    """What a run was begun with; a resumed run must find the same."""

    data_fingerprint: str
    tokenizer_fingerprint: str
    parts: int
    seed: int
    shuffle: str
    packed_to_tokens: int | None
    """Samples were packed into rows of so many tokens; None: each by itself."""

    def differences(self, saved: dict[str, Any]) -> list[str]:
        """One sentence for each thing that is not as the checkpoint has it."""
        names = {
            "data_fingerprint": "the data (--dataset, its order or its content)",
            "tokenizer_fingerprint": "the tokenizer",
            "parts": "the number of parts",
            "seed": "--seed",
            "shuffle": "--shuffle",
            "packed_to_tokens": "the packing of samples (--padding_mode, --max_length)",
        }
        return [
            f"{names[name]} differs: {_short(saved.get(name))} when the run began, {_short(value)} now"
            for name, value in asdict(self).items()
            if saved.get(name) != value
        ]


def _short(value: object) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 16 else str(value)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    running_states: dict[str, Any]

    @property
    def model_path(self) -> Path:
        """The model directory inside."""
        return self.path / MODEL

    @property
    def progress(self) -> Progress:
        """Where the run stood."""
        return Progress(**self.running_states["progress"])


class IncompleteCheckpoint(UserError):
    """A directory has a checkpoint's name, but not all that belongs to one: a copy that was interrupted, for instance."""


def open_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint's states.

    Raises:
        IncompleteCheckpoint: the directory is not a complete checkpoint.
        UserError: an earlier version wrote it.
    """
    checkpoint = Checkpoint(path, _running_states(path))
    for needed in (MODEL, "optimizer"):
        if not (path / needed).is_dir():
            raise IncompleteCheckpoint(f"{path} is not a complete checkpoint: {needed}/ is missing")
    if any((path / "optimizer").glob("*.bin*")):
        raise UserError(
            f"{path} was written by an earlier version, which pickled the optimizer states; pickles are not loaded. "
            "Go on from its weights "
            f"with --load_checkpoint {checkpoint.model_path}, or finish the run with the version that began it"
        )
    return checkpoint


def require_whole(checkpoint: Checkpoint) -> None:
    """Finds out whether every file of a checkpoint is there and as long as its header says; reads headers and indexes only.

    Raises:
        IncompleteCheckpoint: one is not: a copy was broken off, or the disk failed.
    """
    # Here, since the command line's parser imports this module, and must be fast.
    from colossal_llama.model.weights.adapter_files import ADAPTER_WEIGHTS, is_adapter
    from colossal_llama.model.weights.weight_files import find_weight_files, read_metadata

    path, model = checkpoint.path, checkpoint.model_path
    try:
        if is_adapter(model):
            read_metadata(model / ADAPTER_WEIGHTS)
        else:
            find_weight_files(model)
        for name in json.loads((path / "optimizer" / OPTIMIZER_INDEX).read_text(encoding="utf-8"))["files"]:
            read_metadata(path / "optimizer" / name)
        random_states = list((path / "random_states").glob("*.safetensors"))
        for file in random_states:
            read_metadata(file)
    except UserError as error:
        raise IncompleteCheckpoint(f"{path} is not a complete checkpoint: {error}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IncompleteCheckpoint(
            f"{path} is not a complete checkpoint: optimizer/{OPTIMIZER_INDEX} cannot be read ({error})"
        ) from error
    ranks = checkpoint.running_states["world_size"]
    if len(random_states) != ranks:
        raise IncompleteCheckpoint(
            f"{path} is not a complete checkpoint: random_states/ has {len(random_states)} files of {ranks}"
        )


def _running_states(path: Path) -> dict[str, Any]:
    try:
        states = json.loads((path / RUNNING_STATES).read_text(encoding="utf-8"))
        missing = [name for name in ("progress", "origin", "world_size") if name not in states]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        Progress(**states["progress"]), dict(states["origin"]), int(states["world_size"])
    except (OSError, ValueError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise IncompleteCheckpoint(
            f"{path} is not a complete checkpoint: {RUNNING_STATES} cannot be read ({reason})"
        ) from error
    return states


def complete_checkpoints(save_dir: Path) -> list[Path]:
    """The checkpoints in a save directory by name, oldest first. What a killed run left half-written has another name."""
    if not save_dir.is_dir():
        return []
    found = [
        (int(match[2]), path) for path in save_dir.iterdir() if path.is_dir() and (match := _NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def set_aside_later(save_dir: Path, step: int) -> list[Path]:
    """Renames checkpoints of later steps than `step`, left by an earlier run, to `superseded-…`; returns the new names.

    They would be taken for the newest of the run that begins now, by `--load_checkpoint auto` and
    by `--keep_last`.
    """
    moved = []
    for path in complete_checkpoints(save_dir):
        if int(_NAME.fullmatch(path.name)[2]) > step:
            moved.append(set_aside(path))
    return moved


def set_aside(path: Path) -> Path:
    """Renames what is in the way of a run, in its directory, to `superseded-N-…`; returns the new path."""
    names = (path.with_name(f"{_SUPERSEDED}{number}-{path.name}") for number in itertools.count())
    return path.rename(next(name for name in names if not name.exists()))


def entry_written_by_a_run(path: Path, save_dir: Path) -> str | None:
    """The entry of a save directory that holds `path`, if a run that saves there may replace, rename or delete it.

        entry_written_by_a_run(Path("S/epoch-0_step-2/modelling"), Path("S"))    →    "epoch-0_step-2"

    Returns:
        None for a path elsewhere, and for an entry that no run writes; links count under their own
            names and where they lead.
    """
    for real in (os.path.abspath, os.path.realpath):
        path_there, save_dir_there = Path(real(path)), Path(real(save_dir))
        if save_dir_there in path_there.parents:
            entry = path_there.relative_to(save_dir_there).parts[0]
            if entry in (MODEL, MERGED_MODEL) or _NAME.fullmatch(entry):
                return entry
    return None


def find_checkpoint(
    load_checkpoint: str | None, save_dir: Path, log: Callable[[str], None] = print
) -> Checkpoint | None:
    """The checkpoint that `--load_checkpoint` names, if it names one to resume from (a model directory is not one).

    Args:
        load_checkpoint: what the user gave; `auto` is the newest complete one in `save_dir`.
        save_dir: where the run saves.
        log: is told which incomplete ones `auto` leaves out, and why.

    Raises:
        UserError: the one that was named is incomplete, or all that `auto` found are.
    """
    if load_checkpoint == "auto":
        newest = _newest_complete(complete_checkpoints(save_dir), save_dir, log)
        superseded = [] if newest else [path.name for path in sorted(save_dir.glob(f"{_SUPERSEDED}*-epoch-*_step-*"))]
        if superseded:
            log(
                f"warning: auto begins afresh, since the latest run in {save_dir} left no checkpoint; begun without "
                "auto, it set those of "
                f"an earlier run aside ({', '.join(truncate_problems(superseded, 3))}): to go on from one of them, stop this "
                "run, take "
                f"{_SUPERSEDED}N- out of its name and give the command again"
            )
        return newest
    if load_checkpoint is None or not (Path(load_checkpoint) / RUNNING_STATES).is_file():
        return None
    try:
        return _whole_checkpoint(Path(load_checkpoint))
    except IncompleteCheckpoint as error:
        raise UserError(f"{error}: copy it again, name another, or give auto for the newest complete one") from error


def _whole_checkpoint(path: Path) -> Checkpoint:
    checkpoint = open_checkpoint(path)
    require_whole(checkpoint)
    return checkpoint


def _newest_complete(found: list[Path], save_dir: Path, log: Callable[[str], None]) -> Checkpoint | None:
    problems = []
    for path in reversed(found):
        try:
            checkpoint = _whole_checkpoint(path)
        except IncompleteCheckpoint as error:
            problems += error.problems
            continue
        for problem in problems:
            log(f"skipped: {problem}")
        return checkpoint
    if problems:
        raise UserError([*problems, f"{save_dir} has no complete checkpoint: move these away to begin afresh"])
    return None
