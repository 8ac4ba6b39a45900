"""Comparison of a model that a run has written with its checksums.json. Imports no torch.

Weights must be as they were written. Configuration and tokenizer may have been edited since, which
is said. XXH3 reads about 6 GB/s from memory, and a disk's speed from a disk.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama.utils.checksums import CHECKSUMS, FileChecksum, differences, has_checksums, read_checksums
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.errors import UserError, truncate_problems

_WEIGHT_ENDINGS = (".safetensors", ".safetensors.index.json")
_PREFERRED_WEIGHTS = "model.safetensors"
"""Is read in place of all shards when it is there."""


@dataclass(frozen=True)
class RecordedFiles:
    """Checksums of a model's files by name."""

    weights: Mapping[str, FileChecksum]
    others: Mapping[str, FileChecksum]


def recorded_files(directory: Path) -> RecordedFiles:
    """Reads the checksums of a model; none where another program or an earlier version wrote it.

    Raises:
        UserError: the list is damaged, or there are weights that would be read in place of those.
    """
    files = read_checksums(directory) if has_checksums(directory) else {}
    weights = {name: entry for name, entry in files.items() if name.endswith(_WEIGHT_ENDINGS)}
    if weights and _PREFERRED_WEIGHTS not in weights and (directory / _PREFERRED_WEIGHTS).exists():
        raise _damaged(directory, [f"{_PREFERRED_WEIGHTS} was not written with it and would be read in place of it"])
    return RecordedFiles(weights, {name: entry for name, entry in files.items() if name not in weights})


def check_weights(directory: Path, weights: Mapping[str, FileChecksum]) -> None:
    """Compares weight files with their checksums.

    Raises:
        UserError: names those that differ.
    """
    if problems := differences(directory, weights):
        raise _damaged(directory, problems)


def _damaged(directory: Path, problems: list[str]) -> UserError:
    return UserError(
        f"{directory} is damaged: {'; '.join(truncate_problems(problems, 3))}: copy it again, or delete {CHECKSUMS} "
        "there if the weights were changed on purpose"
    )


def say_what_was_edited(
    directory: Path, others: Mapping[str, FileChecksum], say: Callable[[str], Any] = log_rank_zero
) -> None:
    """Says which files of configuration and tokenizer differ from their checksums."""
    for difference in differences(directory, others):
        say(f"warning: {directory} was edited or is damaged: {difference}")


def check_written_model(directory: Path, say: Callable[[str], Any] = log_rank_zero) -> None:
    """Compares a whole model with its checksums, if it has any.

    Args:
        directory: of the model.
        say: receives a line for each other file that differs.

    Raises:
        UserError: weights differ.
    """
    files = recorded_files(directory)
    say_what_was_edited(directory, files.others, say)
    check_weights(directory, files.weights)
