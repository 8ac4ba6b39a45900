"""Saves checkpoints beside the training: the state is copied, the run goes on, and the copy is written in the background."""

import contextlib
import itertools
import math
import shutil
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from colossal_llama.engine.backend import Backend
from colossal_llama.engine.launch import current_device
from colossal_llama.engine.loss_scale import loss_scale_state
from colossal_llama.engine.optimizer_shards import OptimizerShard
from colossal_llama.model.lora import merge_adapter
from colossal_llama.model.weights.stored_tensors import shape_of
from colossal_llama.training.checkpoint.commit import HeldFile, Outcome, SharedWriting, Written, own_stores
from colossal_llama.training.checkpoint.discovery import (
    MERGED_MODEL,
    MODEL,
    RUNNING_STATES,
    Origin,
    Progress,
    complete_checkpoints,
)
from colossal_llama.training.checkpoint.model_files import complete_model_directory, small_files
from colossal_llama.training.checkpoint.optimizer_io import INDEX, index_of, tensors_to_save
from colossal_llama.training.checkpoint.rng_state import random_states
from colossal_llama.training.checkpoint.staging import HostMemory, available_bytes
from colossal_llama.training.distributed.consensus import AgreedError
from colossal_llama.utils.atomic_io import fsync_tree, remove_directory, replace_directory, unfinished_path, write_json
from colossal_llama.utils.console import is_rank_zero, log_rank_zero

_FILE_BYTES = 2**30
_MEMORY_SHARE = 0.8
"""Of the available host memory that copies may take."""
_GIVE_UP_WITHIN_S = 10.0
_SAVERS = itertools.count()  # the same on all ranks, which make them together

Completion = Callable[[Path, Written], None]
"""Adds to a directory, in which all weights are, what rank 0 alone writes."""
Tensors = Iterable[tuple[str, torch.Tensor, dict[str, Any]]]
"""Name, tensor, and what the file's header says of it."""


class CheckpointSaver(contextlib.AbstractContextManager):
    """Writes the checkpoints and the final model of one run; its methods are called by all ranks together.

    One checkpoint is written at a time: the next one, and the end of the run, wait for it. One that
    cannot be written (a full disk) is deleted and announced, and the run goes on: the state in
    memory is worth more than an early end, the former checkpoints are intact, and it is tried again
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
    ):
        self._save_dir, self._keep_last, self._origin = save_dir, keep_last, origin
        self._backend, self._model, self._optimizer = backend, model, optimizer
        self._in_background, self._memory_is_checked = in_background, False
        self._memory = HostMemory(pinned=torch.cuda.is_available())
        network = backend.unwrap(model)
        self._model_file_bytes = math.inf if isinstance(network, PeftModel) else _FILE_BYTES  # an adapter is one file
        self._small_files = small_files(network, backend.parameter_dtype, tokenizer) if is_rank_zero() else {}
        self._number, self._writings = next(_SAVERS), itertools.count()
        self._pending: SharedWriting | None = None
        self._outcome: Outcome | None = None
        self._stall_s = 0.0
        self._news: dict[str, float] = {}

    def save(self, progress: Progress, schedule: dict[str, Any]) -> None:
        """Copies the state of the run; `SAVE_DIR/epoch-E_step-S` appears as soon as the copy is on disk."""
        begun = time.perf_counter()
        self.wait()
        shards = self._backend.optimizer_shards(self._model, self._optimizer)
        self._decide_where_to_write(shards)
        target = self._save_dir / f"epoch-{progress.epoch}_step-{progress.step}"
        writing = self._begin(target, self._records(progress, schedule))
        self._hold(writing, "modelling", self._weights(), self._in_background, self._model_file_bytes)
        self._hold(writing, "optimizer", tensors_to_save(shards), self._in_background, _FILE_BYTES)
        self._hold(writing, "random_states", _random_states(), self._in_background, _FILE_BYTES)
        self._start(writing)
        if not self._in_background:
            writing.wait()
        self._stall_s = time.perf_counter() - begun
        self._news["save_stall_s"] = round(self._stall_s + self._news.get("save_stall_s", 0.0), 4)
        self.look()

    def look(self) -> None:
        """Announces the pending checkpoint if it has been written, or could not be. Waits for nothing."""
        if self._pending is None or not self._pending.is_done:
            return
        outcome, self._pending = self._pending.wait(), None
        self._outcome = outcome
        self._news["save_write_s"] = round(outcome.write_s, 4)
        self._news["save_failed"] = float(outcome.error is not None)
        if outcome.error is None:
            log_rank_zero(
                f"saved {outcome.target}: training waited {self._stall_s:.2f} s, {outcome.written_bytes / 1e9:.2f} GB "
                "were written in "
                f"{outcome.write_s:.1f} s"
            )
            return
        found = complete_checkpoints(self._save_dir)
        log_rank_zero(
            f"WARNING: {outcome.target} COULD NOT BE SAVED: {outcome.error}\n"
            "WARNING: training goes on and tries again within a tenth of --save_interval, and when it is told to end "
            "(SIGTERM, Ctrl-C). "
            f"Former checkpoints are intact; the newest is {found[-1] if found else 'none'}"
        )

    def news(self) -> dict[str, float]:
        """What happened since the last call, for the records: `save_stall_s`, `save_write_s`, `save_failed` (0 or 1)."""
        self.look()
        news, self._news = self._news, {}
        return news

    def wait(self) -> bool:
        """Waits for the pending checkpoint and announces it; returns whether the latest checkpoint was written."""
        if self._pending is not None:
            self._pending.wait()
            self.look()
        return self._outcome is not None and self._outcome.error is None

    def must_try_again(self) -> bool:
        """Whether the latest checkpoint could not be written, as rank 0 knows by now; the ranks hear of it at different steps."""
        has_failed = self._pending is None and self._outcome is not None and self._outcome.error is not None
        answer = torch.tensor(int(has_failed), device=current_device())
        dist.broadcast(answer, src=0)
        return bool(answer.item())

    def require_saved(self) -> None:
        """Waits for the pending checkpoint.

        Raises:
            AgreedError: it could not be written.
        """
        if not self.wait():
            found = complete_checkpoints(self._save_dir)
            raise AgreedError(
                f"{self._outcome.target} could not be saved: {self._outcome.error}. What was trained "
                f"after {found[-1].name if found else 'the start'} is lost. Make room, then go on with the same "
                "command and "
                "--load_checkpoint auto"
            )

    def save_model(self) -> Path:
        """Writes `SAVE_DIR/modelling`, the finished model; one from an earlier stage is replaced.

        Raises:
            AgreedError: it could not be written.
        """
        self.wait()

        def complete(directory: Path, written: Written) -> None:
            complete_model_directory(directory, _inside("", written), self._small_files)

        writing = self._begin(self._save_dir / MODEL, complete)
        self._hold(writing, ".", self._weights(), False, self._model_file_bytes)
        self._start(writing)
        outcome = writing.wait()
        self._pending = None
        if outcome.error is not None:
            found = complete_checkpoints(self._save_dir)
            raise AgreedError(
                f"the finished model {outcome.target} could not be saved: {outcome.error}. Make room, then give the "
                "same command with "
                "--load_checkpoint auto; it goes on from "
                f"{found[-1] if found else 'the start, since there is no checkpoint'}"
            )
        return outcome.target

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        """Waits for the pending checkpoint, which is whole in memory; gives it up when the run ends by an error of this rank alone."""
        if kind is None or issubclass(kind, AgreedError):
            self.wait()
        elif self._pending is not None and not self._pending.is_done:
            self._pending.give_up(_GIVE_UP_WITHIN_S)
            found = complete_checkpoints(self._save_dir)
            log_rank_zero(
                f"{self._pending.target.name} was still being written and is given up; the newest checkpoint is "
                f"{found[-1] if found else 'none'}"
            )

    def _begin(self, target: Path, complete: Completion) -> SharedWriting:
        self._memory.clear()
        prefix = f"saving-{self._number}-{next(self._writings)}"
        return SharedWriting(target, own_stores(prefix), complete, self._forget_old)

    def _start(self, writing: SharedWriting) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the copies are complete
        writing.start()
        self._pending = writing

    def _records(self, progress: Progress, schedule: dict[str, Any]) -> Completion:
        """A function that adds to a checkpoint what rank 0 alone writes, all of it known now."""
        states = {
            "progress": asdict(progress),
            "origin": asdict(self._origin),
            "loss_scale": loss_scale_state(self._optimizer),
            "world_size": dist.get_world_size(),
        }
        records = {"lr_scheduler": schedule, RUNNING_STATES: states}
        index = index_of(self._optimizer)

        def complete(directory: Path, written: Written) -> None:
            complete_model_directory(directory / "modelling", _inside("modelling", written), self._small_files)
            sizes = {name: sum(tensors.values()) for name, tensors in _inside("optimizer", written).items()}
            write_json(directory / "optimizer" / INDEX, {**index, "files": sizes})
            for name, content in records.items():
                write_json(directory / name, content)

        return complete

    def _weights(self) -> Tensors:
        return ((name, tensor, {}) for name, tensor in self._backend.weights_to_save(self._model))

    def _hold(
        self,
        writing: SharedWriting,
        folder: str,
        tensors: Tensors,
        in_background: bool,
        file_bytes: float,
    ) -> None:
        """Copies tensors to the host, as files of limited size; each is written at once unless there is memory for all."""
        numbers = itertools.count()
        file = _new_file(folder, next(numbers))
        for name, tensor, note in tensors:
            if file.bytes and file.bytes + tensor.nbytes > file_bytes:
                self._hand_over(writing, file, in_background)
                file = _new_file(folder, next(numbers))
            if writing.failed:
                continue  # but go through all tensors: other ranks may need this one to gather them
            try:
                file.add(name, shape_of(tensor), self._memory.keep(tensor), note)
            except (RuntimeError, MemoryError) as error:
                writing.fail(f"no host memory for a copy of {name}: {error}")
        if file.bytes:
            self._hand_over(writing, file, in_background)

    def _hand_over(self, writing: SharedWriting, file: HeldFile, in_background: bool) -> None:
        if in_background:
            writing.add(file)
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        writing.write_now(file)
        self._memory.clear()

    def _decide_where_to_write(self, shards: list[OptimizerShard]) -> None:
        """Before the first checkpoint: writes in the foreground when some host has no room for copies of what its ranks write."""
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
                    "GB of host "
                    f"memory, and {host} has {available / 1e9:.1f} GB"
                )
                return

    def _bytes_to_copy(self, shards: list[OptimizerShard]) -> int:
        states = sum(tensor.nbytes for _, tensor, _ in tensors_to_save(shards))
        parameters = self._backend.unwrap(self._model).parameters()
        trained = sum(math.prod(shard.range.shape) for shard in shards) * self._backend.parameter_dtype.itemsize
        weights = max(sum(parameter.nbytes for parameter in parameters), trained)  # Gemini's are empty between steps
        copies, _ = self._backend.replicas(over_data=True, over_tensor=False)
        return states + weights // copies

    def _forget_old(self) -> None:
        """Keeps the newest `--keep_last`."""
        if self._keep_last is None:
            return
        for old in complete_checkpoints(self._save_dir)[: -self._keep_last]:
            try:
                remove_directory(old)
            except OSError as error:
                log_rank_zero(f"WARNING: {old} could not be deleted (--keep_last): {error.strerror}")


def save_merged_model(save_dir: Path, base_path: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Writes `SAVE_DIR/modelling_merged`: the base model with the adapter of `SAVE_DIR/modelling` added, by rank 0 alone."""
    target = save_dir / MERGED_MODEL
    if is_rank_zero():
        temporary = unfinished_path(target)
        shutil.rmtree(temporary, ignore_errors=True)
        merge_adapter(base_path, save_dir / MODEL, temporary)
        tokenizer.save_pretrained(temporary)
        fsync_tree(temporary)
        replace_directory(temporary, target)
    dist.barrier()
    return target


def _new_file(folder: str, number: int) -> HeldFile:
    return HeldFile(f"{folder}/rank-{dist.get_rank():05d}-{number:05d}.safetensors")


def _random_states() -> Iterator[tuple[str, torch.Tensor, dict[str, Any]]]:
    return ((name, state, {}) for name, state in random_states().items())


def _inside(folder: str, written: Written) -> Written:
    """The files in a folder, by their names there."""
    return {Path(name).name: tensors for name, tensors in written.items() if Path(name).parent.name == folder}
