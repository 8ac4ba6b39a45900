"""Saves checkpoints: copies the state to the host, and writes the copy while training goes on."""

import contextlib
import itertools
import math
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from colossal_llama.engine.backend import Backend
from colossal_llama.engine.launch import current_device
from colossal_llama.engine.loss_scale import loss_scale_state
from colossal_llama.engine.optimizer_shards import OptimizerShard
from colossal_llama.model.weights.stored_tensors import shape_of
from colossal_llama.training.checkpoint.archive import own_checkpoints
from colossal_llama.training.checkpoint.commit import CommitOutcome, DirectoryCommit, WrittenFiles, commit_stores
from colossal_llama.training.checkpoint.model_files import complete_model_directory, small_files
from colossal_llama.training.checkpoint.optimizer_io import index_of, tensors_to_save
from colossal_llama.training.checkpoint.rng_state import random_states
from colossal_llama.training.checkpoint.staging import StagedFile, StagingBuffer, available_bytes
from colossal_llama.training.checkpoint.state import (
    LR_SCHEDULER,
    MODEL,
    OPTIMIZER,
    OPTIMIZER_INDEX,
    RANDOM_STATES,
    RUNNING_STATES,
    Origin,
    Progress,
    checkpoint_name,
    rank_file,
)
from colossal_llama.training.distributed.consensus import CollectiveError
from colossal_llama.utils.atomic_io import remove_directory, write_json
from colossal_llama.utils.checksums import CHECKSUMS, write_checksums
from colossal_llama.utils.console import is_rank_zero, log_rank_zero

_FILE_BYTES = 2**30
_MEMORY_SHARE = 0.8
"""Largest share of the available host memory that copies may take."""
_ABORT_WITHIN_S = 10.0
_SAVERS = itertools.count()  # the same on all ranks, which create savers in the same order

Completion = Callable[[Path, WrittenFiles], None]
"""Adds rank 0's files to a directory that has all weights."""
Tensors = Iterable[tuple[str, torch.Tensor, dict[str, Any]]]
"""Name, tensor, and the entry in the file's header about it."""


class CheckpointSaver(contextlib.AbstractContextManager):
    """Saves the checkpoints and the final model of one run; its methods are collectives.

    One checkpoint is written at a time: the next one, and the end of the run, wait for it. One that
    cannot be written (a full disk) is deleted and reported, and training goes on: the state in
    memory is worth more than an early end, the former checkpoints are intact, and saving is retried
    soon. Only an end without a saved state is an error.
    """

    def __init__(
        self,
        save_dir: Path,
        backend: Backend,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        tokenizer: PreTrainedTokenizerBase,
        origin: Origin,
        keep_last: int | None = None,
        in_background: bool = True,
        stop_ids: Sequence[int] = (),
        carried_on: Mapping[str, bytes] = MappingProxyType({}),
    ):
        self._save_dir, self._keep_last, self._origin = save_dir, keep_last, origin
        self._backend, self._model, self._optimizer = backend, model, optimizer
        self._in_background, self._memory_is_checked = in_background, False
        self._staging = StagingBuffer(pinned=torch.cuda.is_available())
        network = backend.unwrap(model)
        self._model_file_bytes = math.inf if isinstance(network, PeftModel) else _FILE_BYTES  # an adapter is one file
        self._small_files: dict[str, bytes] = {}
        if is_rank_zero():
            dtype = backend.parameter_dtype
            self._small_files = small_files(network, dtype, tokenizer, stop_ids, carried_on)
        self._number, self._commits = next(_SAVERS), itertools.count()
        self._pending: DirectoryCommit | None = None
        self._outcome: CommitOutcome | None = None
        self._stall_s = 0.0
        self._metrics: dict[str, float] = {}

    def save(self, progress: Progress, schedule: dict[str, Any]) -> None:
        """Copies the state; `SAVE_DIR/epoch-E_step-S` appears as soon as the copy is on disk."""
        begun = time.perf_counter()
        self.wait()
        shards = self._backend.optimizer_shards(self._model, self._optimizer)
        self._decide_where_to_write(shards)
        target = self._save_dir / checkpoint_name(progress.epoch, progress.step)
        commit = self._begin(target, self._completion(progress, schedule))
        self._stage(commit, MODEL, self._weights(), self._in_background, self._model_file_bytes)
        self._stage(commit, OPTIMIZER, tensors_to_save(shards), self._in_background, _FILE_BYTES)
        self._stage(commit, RANDOM_STATES, _random_states(), self._in_background, _FILE_BYTES)
        self._start(commit)
        if not self._in_background:
            commit.wait()
        self._stall_s = time.perf_counter() - begun
        self._metrics["save_stall_s"] = round(self._stall_s + self._metrics.get("save_stall_s", 0.0), 4)
        self.poll()

    def poll(self) -> None:
        """Logs the pending checkpoint's outcome if it is known; does not wait."""
        if self._pending is None or not self._pending.is_done:
            return
        outcome, self._pending = self._pending.wait(), None
        self._outcome = outcome
        self._metrics["save_write_s"] = round(outcome.write_s, 4)
        self._metrics["save_failed"] = float(outcome.error is not None)
        if outcome.error is None:
            log_rank_zero(
                f"saved {outcome.target}: training waited {self._stall_s:.2f} s, {outcome.written_bytes / 1e9:.2f} GB "
                f"were written in {outcome.write_s:.1f} s"
            )
            return
        log_rank_zero(
            f"WARNING: {outcome.target} COULD NOT BE SAVED: {outcome.error}\n"
            "WARNING: training goes on and retries within a tenth of --save_interval, and when a signal ends it "
            "(SIGTERM, Ctrl-C). "
            f"Former checkpoints are intact; the newest is {self._newest() or 'none'}"
        )

    def metrics(self) -> dict[str, float]:
        """Metrics since the last call: `save_stall_s`, `save_write_s`, `save_failed` (0 or 1)."""
        self.poll()
        metrics, self._metrics = self._metrics, {}
        return metrics

    def wait(self) -> bool:
        """Waits for the pending checkpoint; returns True when the latest checkpoint was written."""
        if self._pending is not None:
            self._pending.wait()
            self.poll()
        return self._outcome is not None and self._outcome.error is None

    def must_retry(self) -> bool:
        """True when the latest checkpoint failed, as far as rank 0 knows.

        The ranks learn of it at different steps.
        """
        has_failed = self._pending is None and self._outcome is not None and self._outcome.error is not None
        answer = torch.tensor(int(has_failed), device=current_device())
        dist.broadcast(answer, src=0)
        return bool(answer.item())

    def require_saved(self) -> None:
        """Waits for the pending checkpoint.

        Raises:
            CollectiveError: it could not be written.
        """
        if not self.wait():
            assert self._outcome is not None, "a checkpoint was begun"
            newest = self._newest()
            raise CollectiveError(
                f"{self._outcome.target} could not be saved: {self._outcome.error}. What was trained after "
                f"{newest.name if newest else 'the start'} is lost. Free disk space, then give the same command with "
                "--load_checkpoint auto"
            )

    def save_model(self) -> Path:
        """Writes `SAVE_DIR/modelling`, the finished model; one of an earlier stage is replaced.

        Raises:
            CollectiveError: it could not be written.
        """
        self.wait()

        def complete(directory: Path, written: WrittenFiles) -> None:
            """Adds the small files, the indexes and the checksums to the written tensors."""
            complete_model_directory(directory, _files_in("", written), self._small_files)

        commit = self._begin(self._save_dir / MODEL, complete)
        self._stage(commit, ".", self._weights(), False, self._model_file_bytes)
        self._start(commit)
        outcome = commit.wait()
        self._pending = None
        if outcome.error is not None:
            raise CollectiveError(
                f"the finished model {outcome.target} could not be saved: {outcome.error}. Free disk space, then give "
                "the same command with --load_checkpoint auto; it resumes from "
                f"{self._newest() or 'the start, since there is no checkpoint'}"
            )
        return outcome.target

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        """Waits for the pending checkpoint; aborts it when this rank alone has an error."""
        if kind is None or issubclass(kind, CollectiveError):
            self.wait()
        elif self._pending is not None and not self._pending.is_done:
            self._pending.abort(_ABORT_WITHIN_S)
            log_rank_zero(
                f"{self._pending.target.name} was still being written and is aborted; the newest checkpoint is "
                f"{self._newest() or 'none'}"
            )

    def _newest(self) -> Path | None:
        found = own_checkpoints(self._save_dir)
        return found[-1] if found else None

    def _begin(self, target: Path, complete: Completion) -> DirectoryCommit:
        self._staging.reset()
        prefix = f"saving-{self._number}-{next(self._commits)}"
        return DirectoryCommit(target, commit_stores(prefix), complete, self._delete_old)

    def _start(self, commit: DirectoryCommit) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the copies are complete
        commit.start()
        self._pending = commit

    def _completion(self, progress: Progress, schedule: dict[str, Any]) -> Completion:
        """A function that adds rank 0's files to a checkpoint; their content is that of now."""
        states = {
            "progress": asdict(progress),
            "origin": asdict(self._origin),
            "loss_scale": loss_scale_state(self._optimizer),
            "world_size": dist.get_world_size(),
            "checksums": CHECKSUMS,
        }
        contents = {LR_SCHEDULER: schedule, RUNNING_STATES: states}
        index = index_of(self._optimizer)

        def complete(directory: Path, written: WrittenFiles) -> None:
            """Adds the small files, the indexes and the checksums to the written tensors."""
            complete_model_directory(directory / MODEL, _files_in(MODEL, written), self._small_files)
            sizes = {name: sum(file.tensors.values()) for name, file in _files_in(OPTIMIZER, written).items()}
            write_json(directory / OPTIMIZER / OPTIMIZER_INDEX, {**index, "files": sizes})
            for name, content in contents.items():
                write_json(directory / name, content)
            write_checksums(directory, {name: file.checksum for name, file in written.items()})

        return complete

    def _weights(self) -> Tensors:
        return ((name, tensor, {}) for name, tensor in self._backend.weights_to_save(self._model))

    def _stage(
        self,
        commit: DirectoryCommit,
        folder: str,
        tensors: Tensors,
        in_background: bool,
        file_bytes: float,
    ) -> None:
        """Copies tensors to the staging buffer, as files of limited size.

        In the foreground each file is written at once.
        """
        names = (f"{folder}/{rank_file(dist.get_rank(), number)}" for number in itertools.count())
        file = StagedFile(next(names))
        for name, tensor, entry in tensors:
            if file.bytes and file.bytes + tensor.nbytes > file_bytes:
                self._write(commit, file, in_background)
                file = StagedFile(next(names))
            if commit.has_failed:
                continue  # but go through all tensors: other ranks may need this one to gather them
            try:
                file.add(name, shape_of(tensor), self._staging.stage(tensor), entry)
            except (RuntimeError, MemoryError) as error:
                commit.fail(f"no host memory for a copy of {name}: {error}")
        if file.bytes:
            self._write(commit, file, in_background)

    def _write(self, commit: DirectoryCommit, file: StagedFile, in_background: bool) -> None:
        if in_background:
            commit.add(file)
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        commit.write_now(file)
        self._staging.reset()

    def _decide_where_to_write(self, shards: list[OptimizerShard]) -> None:
        """Chooses the foreground when some host has no memory for its ranks' copies; once a run."""
        if self._memory_is_checked or not self._in_background:
            return
        self._memory_is_checked = True
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, (socket.gethostname(), self._bytes_to_copy(shards), available_bytes()))
        needed: dict[str, int] = defaultdict(int)
        for host, count, _ in everyone:
            needed[host] += count
        for host, _, available in everyone:
            if needed[host] > _MEMORY_SHARE * available:
                self._in_background = False
                log_rank_zero(
                    f"checkpoints are written while training waits: copies of the state take {needed[host] / 1e9:.1f} "
                    f"GB of host memory, and {host} has {available / 1e9:.1f} GB"
                )
                return

    def _bytes_to_copy(self, shards: list[OptimizerShard]) -> int:
        states = sum(tensor.nbytes for _, tensor, _ in tensors_to_save(shards))
        parameters = self._backend.unwrap(self._model).parameters()
        trained = sum(math.prod(shard.range.shape) for shard in shards) * self._backend.parameter_dtype.itemsize
        weights = max(sum(parameter.nbytes for parameter in parameters), trained)  # Gemini's are empty between steps
        replicas, _ = self._backend.replicas(over_data=True, over_tensor=False)
        return states + weights // replicas

    def _delete_old(self) -> None:
        """Deletes all checkpoints but the newest `--keep_last`.

        Directories with a checkpoint's name that no run saved are not counted, and stay.
        """
        if self._keep_last is None:
            return
        for old in own_checkpoints(self._save_dir)[: -self._keep_last]:
            try:
                remove_directory(old)
            except OSError as error:
                log_rank_zero(f"WARNING: {old} could not be deleted (--keep_last): {error.strerror}")


def _random_states() -> Iterator[tuple[str, torch.Tensor, dict[str, Any]]]:
    return ((name, state, {}) for name, state in random_states().items())


def _files_in(folder: str, written: WrittenFiles) -> WrittenFiles:
    """The files in a folder, by their names there."""
    return {Path(name).name: file for name, file in written.items() if Path(name).parent.name == folder}
