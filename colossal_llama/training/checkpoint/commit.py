"""One directory written by all ranks, in threads beside the training, that appears complete or not at all.

Every rank writes its own files, and tells rank 0 through the key-value store of the process group;
rank 0 adds what it alone knows, flushes, renames, and tells the others. The training's own
collectives are never used here: they belong to the main threads.

    rank 0   copy │ training …                                                   the main thread
                  └ write a.safetensors ─ wait for answers ─ complete, rename ─ outcome ┐
    rank 1   copy │ training …                 ▲                                        ▼
                  └ write b.safetensors ─ answer ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ outcome
"""

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from colossal_llama.model.weights.stored_tensors import TensorShape
from colossal_llama.model.weights.weight_files import write_safetensors
from colossal_llama.utils.atomic_io import fsync_tree, replace_directory, unfinished_path

NOTES = "notes"
_WRITERS = 4
"""Threads a rank: a fast disk takes several files at a time."""
_LOOK_EVERY_S = 0.05
_BEAT_EVERY_S = 1.0
_DEAD_AFTER_S = 20.0
"""Less than the 30 s that torchrun gives to ranks to end, after another one died."""


@dataclass
class HeldFile:
    """A safetensors file whose content is in memory."""

    name: str
    """Relative to the directory."""
    shapes: dict[str, TensorShape] = field(default_factory=dict)
    pieces: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    """What the header says of the tensors, as JSON, under `NOTES`."""
    bytes: int = 0

    def add(self, name: str, shape: TensorShape, pieces: list[torch.Tensor], notes: Mapping[str, Any]) -> None:
        """Adds a tensor, held as flat pieces."""
        self.shapes[name], self.pieces[name] = shape, pieces
        self.notes |= notes
        self.bytes += shape.bytes

    @property
    def metadata(self) -> dict[str, str]:
        """For the header."""
        return {"format": "pt"} | ({NOTES: json.dumps(self.notes)} if self.notes else {})


@dataclass(frozen=True)
class Outcome:
    """How the writing of a directory ended, the same on all ranks."""

    target: Path
    error: str | None
    written_bytes: int
    write_s: float
    """From the first byte to the rename."""


def own_stores(prefix: str) -> tuple[dist.Store, dist.Store]:
    """Two connections to the process group's store that the training does not use: a wait on a shared one would hold it up.

    Args:
        prefix: of all keys, the same on all ranks, and of nobody else.
    """
    store = _get_default_store()
    return dist.PrefixStore(prefix, store.clone()), dist.PrefixStore(prefix, store.clone())


Written = dict[str, dict[str, int]]
"""File → tensor → bytes."""


@dataclass
class SharedWriting:
    """A directory on its way to the disk; made by all ranks together."""

    target: Path
    stores: tuple[dist.Store, dist.Store]
    """From `own_stores`: one for the writing, one for the signs of life."""
    complete: Callable[[Path, Written], None]
    """Called on rank 0, in its thread, when all files are there: adds the rest to the temporary
    directory."""
    after: Callable[[], None] = lambda: None
    """Called on rank 0 after the rename."""
    outcome: Outcome | None = None
    _files: list[HeldFile] = field(default_factory=list)
    _written: Written = field(default_factory=dict)
    _error: str | None = None
    _begun: float = field(default_factory=time.perf_counter)
    _given_up: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self):
        self._temporary = unfinished_path(self.target)
        self._store, self._beat_store = self.stores
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        self._thread = threading.Thread(target=self._run, name=f"writing {self.target.name}", daemon=True)

    def add(self, file: HeldFile) -> None:
        """Adds a file of this rank, to be written after `start`."""
        self._files.append(file)

    def write_now(self, file: HeldFile) -> None:
        """Writes a file of this rank before this returns, so that its memory can be used again."""
        self._write(file)

    def fail(self, reason: str) -> None:
        """Makes the writing fail on all ranks for a reason of this one."""
        self._error = self._error or f"rank {self._rank} on {socket.gethostname()}: {reason}"

    @property
    def failed(self) -> bool:
        """Whether this rank already knows that it cannot contribute."""
        return self._error is not None

    def start(self) -> None:
        """Begins to write in the background."""
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether the outcome is known."""
        return self.outcome is not None

    def wait(self) -> Outcome:
        """Waits for the outcome; signals are handled meanwhile."""
        while self.outcome is None:
            self._thread.join(_LOOK_EVERY_S)
        self._thread.join()
        return self.outcome

    def give_up(self, within_s: float) -> None:
        """Stops writing and deletes what there is: the run ends in disorder."""
        self._given_up.set()
        self._thread.join(within_s)

    def _run(self) -> None:
        ended = threading.Event()
        beating = threading.Thread(target=self._beat, args=(ended,), daemon=True)
        beating.start()
        try:
            self._write_all()
            self._tell(f"answer-{self._rank}", {"error": self._error, "files": self._written})
            if self._rank == 0:
                self._tell("outcome", self._conclude())
            found = json.loads(self._hear("outcome", [0]))
        except Exception as error:  # whatever it is, the training must hear of it
            self.fail(str(error) or type(error).__name__)
            found = {"error": self._error, "bytes": 0}
        # A daemon thread that the interpreter's end finds inside the store, in C++, aborts the
        # process ("terminate called without an active exception"). So it is gone before anybody can
        # know the outcome.
        ended.set()
        beating.join(_DEAD_AFTER_S)
        self.outcome = Outcome(self.target, found["error"], found["bytes"], time.perf_counter() - self._begun)

    def _write_all(self) -> None:
        writers = [threading.Thread(target=self._write_some, daemon=True) for _ in self._files[:_WRITERS]]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()

    def _write_some(self) -> None:
        while True:
            with self._lock:
                if not self._files:
                    return
                file = self._files.pop()
            self._write(file)

    def _write(self, file: HeldFile) -> None:
        if self.failed or self._given_up.is_set():
            return
        path = self._temporary / file.name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_safetensors(path, file.shapes, lambda name: self._while_wanted(file.pieces[name]), file.metadata)
            with self._lock:
                self._written[file.name] = {name: shape.bytes for name, shape in file.shapes.items()}
        except OSError as error:
            self.fail(f"{path.name}: {error.strerror or error}")
        except Exception as error:  # a thread's exception would be lost
            self.fail(f"{path.name}: {type(error).__name__}: {error}")

    def _while_wanted(self, pieces: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        for piece in pieces:
            if self._given_up.is_set():
                raise InterruptedError("given up")
            yield piece

    def _conclude(self) -> dict[str, Any]:
        """Rank 0: hears all answers, completes and publishes the directory, or deletes it."""
        error, written, here = None, {}, f"rank 0 on {socket.gethostname()}"
        try:
            for rank in range(self._ranks):
                answer = json.loads(self._hear(f"answer-{rank}", [rank]))
                self._store.delete_key(f"answer-{rank}")
                error = error or answer["error"]
                written |= answer["files"]
            if error is None:
                self._publish(written)
        except OSError as problem:
            named = f"{Path(problem.filename).name}: " if problem.filename else ""
            error = f"{here}: {named}{problem.strerror or problem}"
        except Exception as problem:
            error = f"{here}: {type(problem).__name__}: {problem}"
        if error is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
        return {"error": error, "bytes": sum(sum(tensors.values()) for tensors in written.values())}

    def _publish(self, written: Written) -> None:
        unseen = [name for name in written if not (self._temporary / name).is_file()]
        if unseen:
            raise FileNotFoundError(
                0, f"{unseen[0]}, written by another host, is not seen here: --save_dir must be shared by all hosts"
            )
        self.complete(self._temporary, written)
        fsync_tree(self._temporary)
        replace_directory(self._temporary, self.target)
        self.after()

    def _tell(self, key: str, content: dict[str, Any]) -> None:
        self._store.set(key, json.dumps(content))

    def _hear(self, key: str, ranks: list[int]) -> bytes:
        """Waits until a key is told, for as long as those who can tell it are alive."""
        last_beats, last_change = b"", time.monotonic()
        while not self._store.check([key]):
            if self._given_up.is_set():
                raise InterruptedError("given up: the run ends")
            beats = b" ".join(self._beats_of(rank) for rank in ranks)
            if beats != last_beats:
                last_beats, last_change = beats, time.monotonic()
            elif time.monotonic() - last_change > _DEAD_AFTER_S:
                raise ConnectionError(f"rank {ranks[0]} has not been heard of for {_DEAD_AFTER_S:.0f} s")
            time.sleep(_LOOK_EVERY_S)
        return self._store.get(key)

    def _beats_of(self, rank: int) -> bytes:
        key = f"beats-{rank}"
        return self._store.get(key) if self._store.check([key]) else b""

    def _beat(self, ended: threading.Event) -> None:
        beats = 0
        try:
            while not ended.is_set() and not self._given_up.is_set():
                self._beat_store.set(f"beats-{self._rank}", str(beats))
                beats += 1
                ended.wait(_BEAT_EVERY_S)
        except dist.DistError:
            return  # the store has gone, and the run with it
