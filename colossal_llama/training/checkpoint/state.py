"""Content of a checkpoint: the run's position and origin, and the names of its files.

    SAVE_DIR/epoch-0_step-200/
        modelling/            a model directory for transformers: safetensors, config, tokenizer
        optimizer/            safetensors: both Adam moments, fp32 master weights (optimizer_io.py)
        random_states/        safetensors: states of every rank's random generators
        lr_scheduler          JSON: learning rate schedule and position
        running_states.json   JSON: position in data and run, origin of the run
        checksums.json        of all other files (utils/checksums.py); modelling/ has its own, too

Nothing in it is unpickled. This module imports no torch.
"""

import json
import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

MODEL, OPTIMIZER, RANDOM_STATES = "modelling", "optimizer", "random_states"
"""Directories of a checkpoint. The finished model's directory in `--save_dir` is `MODEL`, too."""
MERGED_MODEL = "modelling_merged"
"""The directory in `--save_dir` of the base model with the adapter merged."""
RUNNING_STATES, LR_SCHEDULER = "running_states.json", "lr_scheduler"
OPTIMIZER_INDEX = "index.json"
"""File in `OPTIMIZER`."""
_CHECKPOINT_NAME = re.compile(r"epoch-(\d+)_step-(\d+)")


def checkpoint_name(epoch: int, step: int) -> str:
    """Name of a checkpoint's directory.

    >>> checkpoint_name(0, 200)
    'epoch-0_step-200'
    """
    return f"epoch-{epoch}_step-{step}"


def step_of_checkpoint(name: str) -> int | None:
    """The step in a checkpoint's name; None for another name.

    >>> step_of_checkpoint("epoch-0_step-200"), step_of_checkpoint("modelling")
    (200, None)
    """
    match = _CHECKPOINT_NAME.fullmatch(name)
    return int(match[2]) if match else None


def checkpoint_directories(save_dir: Path) -> list[Path]:
    """Directories with a checkpoint's name in a save directory, oldest first.

    Their files are not verified; `discovery.open_checkpoint` does that. A directory that a killed
    run left half-written has another name.
    """
    if not save_dir.is_dir():
        return []
    found = [(step_of_checkpoint(path.name), path) for path in save_dir.iterdir() if path.is_dir()]
    return [path for _, path in sorted((step, path) for step, path in found if step is not None)]


def rank_file(rank: int, number: int = 0) -> str:
    """Name of a file that a rank writes; `number` counts the rank's files in one directory.

    >>> rank_file(3)
    'rank-00003-00000.safetensors'
    """
    return f"rank-{rank:05d}-{number:05d}.safetensors"


@dataclass(frozen=True)
class Progress:
    """Position of a run: in the data, and in optimizer steps."""

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
    """Data, tokenizer and order that a run began with; a resumed run must have the same."""

    data_fingerprint: str
    tokenizer_fingerprint: str
    parts: int
    seed: int
    shuffle: str
    packed_to_tokens: int | None
    """Length of the rows into which samples were packed; None: each sample is a row."""

    def differences(self, saved: dict[str, Any]) -> list[str]:
        """Differences from a checkpoint's origin, one sentence each."""
        names = {
            "data_fingerprint": "the data (--dataset, its order or its content)",
            "tokenizer_fingerprint": "the tokenizer",
            "parts": "the number of parts",
            "seed": "--seed",
            "shuffle": "--shuffle",
            "packed_to_tokens": "the packing of samples (--padding_mode, --max_length)",
        }
        return [
            f"{names[name]} differs: {_shorten(saved.get(name))} when the run began, {_shorten(value)} now"
            for name, value in asdict(self).items()
            if saved.get(name) != value
        ]


def read_running_states(checkpoint: Path) -> dict[str, Any]:
    """Reads the running states of a checkpoint directory.

    Raises:
        OSError: they cannot be read.
        ValueError: they are not what a run writes; names what is wrong.
    """
    path = checkpoint / RUNNING_STATES
    if path.exists() and not path.is_file():
        raise ValueError("it is not a file")
    states = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(states, dict):
        raise ValueError("it is no JSON object")
    missing = [name for name in ("progress", "origin", "world_size") if name not in states]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    if not all(isinstance(states[name], dict) for name in ("progress", "origin")):
        raise ValueError("progress and origin are no JSON objects")
    counts = {"world_size": states["world_size"], **states["progress"]}
    unknown = states["progress"].keys() - {field.name for field in fields(Progress)}
    wrong = [name for name, value in counts.items() if type(value) is not int or value < 0 or name in unknown]
    if wrong:
        raise ValueError(f"{wrong[0]} is {counts[wrong[0]]!r}")
    return states


def _shorten(value: object) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 16 else str(value)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, with the content of its running states."""

    path: Path
    running_states: dict[str, Any]

    @property
    def model_path(self) -> Path:
        """The model directory inside."""
        return self.path / MODEL

    @property
    def progress(self) -> Progress:
        """The run's position when the checkpoint was saved."""
        return Progress(**self.running_states["progress"])
