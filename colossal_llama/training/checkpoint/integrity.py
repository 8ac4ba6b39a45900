"""Comparison of checkpoints and models with their checksums, divided over the ranks.

A file of one rank's state is compared by the rank that will read it, in a run of the same ranks.
Model files, which every host reads, are divided over the ranks of each host. So nothing is read
twice from a disk that the run would not read anyway.
"""

import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from colossal_llama.model.weights.written_model import check_weights, recorded_files, say_what_was_edited
from colossal_llama.training.checkpoint.state import Checkpoint
from colossal_llama.training.distributed import consensus
from colossal_llama.utils.checksums import (
    FileChecksum,
    differences,
    has_checksums,
    read_checksums,
    unlisted_files,
)
from colossal_llama.utils.console import is_rank_zero, log_rank_zero
from colossal_llama.utils.errors import UserError, truncate_problems

_OF_A_RANK = re.compile(r"rank-(\d+)-\d+\.safetensors")
_READ_BY_LIBRARIES = {".bin", ".jinja", ".json", ".model", ".py", ".safetensors"}
"""Endings of files that are read when they are there: an additional one changes the result."""


def damage_of_checkpoint(checkpoint: Checkpoint) -> str | None:
    """Compares a checkpoint with its checksums; a collective.

    Returns:
        A sentence on what differs, the same on all ranks; None when nothing does. A checkpoint
        without checksums is not compared, which is logged.
    """
    path = checkpoint.path
    if not has_checksums(path):
        log_rank_zero(f"{path} was written without checksums, by an earlier version: it is not compared with them")
        return None
    begun, position = time.perf_counter(), _position()
    problems: list[str] = []
    try:
        with consensus.raise_on_all_ranks():
            files = read_checksums(path)
            if is_rank_zero():
                problems += _additional_files(path, files)
            problems += differences(path, share_of_checkpoint(files, position))
            if problems:
                raise UserError(problems)
    except consensus.CollectiveError as error:
        return f"{path} is damaged: {'; '.join(truncate_problems(error.problems, 3))}"
    size = sum(entry.bytes for entry in files.values())
    log_rank_zero(
        f"{path}: {len(files)} files ({size / 1e9:.2f} GB) are as they were written, by checksums compared in "
        f"{time.perf_counter() - begun:.1f} s"
    )
    return None


def check_model_directory(path: Path) -> None:
    """Compares a model that a run has written with its checksums; a collective.

    Weights must be as they were written. Configuration and tokenizer may have been edited since:
    what differs is logged. A model without checksums is not compared.

    Raises:
        CollectiveError: weights differ.
    """
    position = _position()
    with consensus.raise_on_all_ranks():
        files = recorded_files(path)
        if is_rank_zero():
            say_what_was_edited(path, files.others)
        check_weights(path, _divided(files.weights, position))


@dataclass(frozen=True)
class Position:
    """Position of a rank among all, and among those of its host."""

    rank: int
    ranks: int
    index_on_host: int
    ranks_of_host: int


def position_of(rank: int, hosts: Sequence[str]) -> Position:
    """Position of a rank, given the host of each rank."""
    host = hosts[rank]
    return Position(rank, len(hosts), hosts[:rank].count(host), hosts.count(host))


def share_of_checkpoint(files: Mapping[str, FileChecksum], position: Position) -> dict[str, FileChecksum]:
    """The files of a checkpoint that a rank compares."""
    writers = {name: int(match[1]) for name in files if (match := _OF_A_RANK.fullmatch(Path(name).name))}
    own = {name: files[name] for name, rank in writers.items() if rank % position.ranks == position.rank}
    shared = {name: entry for name, entry in files.items() if name not in writers}
    return own | _divided(shared, position)


def _position() -> Position:
    """Position of this rank; a collective."""
    hosts: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(hosts, socket.gethostname())
    return position_of(dist.get_rank(), hosts)


def _divided(files: Mapping[str, FileChecksum], position: Position) -> dict[str, FileChecksum]:
    """The files that a rank of a host compares: dealt out by size, so that all read alike much."""
    by_size = sorted(files, key=lambda name: (-files[name].bytes, name))
    return {name: files[name] for name in by_size[position.index_on_host :: position.ranks_of_host]}


def _additional_files(path: Path, files: Mapping[str, FileChecksum]) -> list[str]:
    """Files that the run did not write and that would be read; others are logged."""
    found = unlisted_files(path, files)
    harmful = [name for name in found if Path(name).parent != Path() and Path(name).suffix in _READ_BY_LIBRARIES]
    for name in found:
        if name not in harmful:
            log_rank_zero(f"{path / name} was not written with the checkpoint: it is ignored")
    return [f"{name} was not written with it and would be read: move it away" for name in harmful]
