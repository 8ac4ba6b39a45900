"""Two-phase commit of a directory that all ranks write: it appears complete or not at all.

The ranks write in threads, while training goes on. Each writes its own files and votes, through the
key-value store of the process group. Rank 0 collects the votes; when all succeeded it adds its own
files, flushes and renames the directory, and publishes the decision. The training's collectives are
never used here: they belong to the main threads.

    rank 0   copy │ training …                                                   main thread
                  └ write a.safetensors ─ collect votes ─ complete, rename ─ decision
    rank 1   copy │ training …                 ▲                                │
                  └ write b.safetensors ─ vote ┘                                └ decision
"""

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from colossal_llama.model.weights.weight_files import write_safetensors
from colossal_llama.training.checkpoint.archive import make_way
from colossal_llama.training.checkpoint.staging import StagedFile
from colossal_llama.training.distributed.heartbeat import Heartbeat, HeartbeatMonitor
from colossal_llama.utils.atomic_io import fsync_tree, replace_directory, unfinished_path
from colossal_llama.utils.checksums import ChecksumBuilder, FileChecksum

_WRITER_THREADS = 4
"""A rank: a fast disk takes several files at a time."""
_POLL_INTERVAL_S = 0.05
_HEARTBEAT_INTERVAL_S = 1.0
_HEARTBEAT_TIMEOUT_S = 20.0
"""Less than the 30 s that torchrun gives to ranks to end, after another one died."""


@dataclass(frozen=True)
class CommitOutcome:
    """The result of a commit, the same on all ranks."""

    target: Path
    error: str | None
    written_bytes: int
    write_s: float
    """Seconds from the first byte to the rename."""


def commit_stores(prefix: str) -> tuple[dist.Store, dist.Store]:
    """Opens two connections to the process group's store, for one commit.

    Waiting in the connection of the training would hold up the training.

    Args:
        prefix: of all keys, the same on all ranks, and unique to one commit.
    """
    store: Any = _get_default_store()
    return dist.PrefixStore(prefix, store.clone()), dist.PrefixStore(prefix, store.clone())


@dataclass(frozen=True)
class WrittenFile:
    """A file that a rank has written."""

    tensors: dict[str, int]
    """Bytes by name."""
    checksum: FileChecksum
    """Checksum of the content as it was in memory."""

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "WrittenFile":
        """Reads what `dataclasses.asdict` made of one."""
        return cls(content["tensors"], FileChecksum(**content["checksum"]))


WrittenFiles = dict[str, WrittenFile]
"""By file name."""


@dataclass
class DirectoryCommit:
    """A directory that all ranks write, and rank 0 commits."""

    target: Path
    stores: tuple[dist.Store, dist.Store]
    """Result of `commit_stores`: one for votes and decision, one for heartbeats."""
    complete: Callable[[Path, WrittenFiles], None]
    """Called on rank 0, in its thread, when all files are written: adds the rest to the temporary
    directory."""
    after: Callable[[], None] = lambda: None
    """Called on rank 0 after the rename."""
    outcome: CommitOutcome | None = None
    _files: list[StagedFile] = field(default_factory=list)
    _written: WrittenFiles = field(default_factory=dict)
    _error: str | None = None
    _begun: float = field(default_factory=time.perf_counter)
    _aborted: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self):
        self._temporary = unfinished_path(self.target)
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        self._store, self._heartbeat_store = self.stores
        self._heartbeat = Heartbeat(self._heartbeat_store, self._rank, _HEARTBEAT_INTERVAL_S)
        self._thread = threading.Thread(target=self._run, name=f"writing {self.target.name}", daemon=True)

    def add(self, file: StagedFile) -> None:
        """Adds a file of this rank, to be written after `start`."""
        self._files.append(file)

    def write_now(self, file: StagedFile) -> None:
        """Writes a file of this rank before this returns, so that its memory can be reused."""
        self._write(file)

    def fail(self, reason: str) -> None:
        """Makes the commit fail on all ranks, for a reason of this one."""
        self._error = self._error or f"rank {self._rank} on {socket.gethostname()}: {reason}"

    @property
    def has_failed(self) -> bool:
        """True when this rank already knows that it cannot write its files."""
        return self._error is not None

    def start(self) -> None:
        """Starts writing in the background."""
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """True when the outcome is known."""
        return self.outcome is not None

    def wait(self) -> CommitOutcome:
        """Waits for the outcome; signals are handled meanwhile."""
        while self.outcome is None:
            self._thread.join(_POLL_INTERVAL_S)
        self._thread.join()
        return self.outcome

    def abort(self, within_s: float) -> None:
        """Stops writing on this rank, and so fails the commit: the run ends by an error."""
        self._aborted.set()
        self._heartbeat.stop(0)
        self._thread.join(within_s)

    def _run(self) -> None:
        try:
            self._heartbeat.start()
            self._write_all()
            files = {name: asdict(file) for name, file in self._written.items()}
            self._publish(f"vote-{self._rank}", {"error": self._error, "files": files})
            if self._rank == 0:
                self._publish("decision", self._decide())
            decision = json.loads(self._wait_for("decision", 0))
        except Exception as error:  # whatever it is, the training must hear of it
            self.fail(str(error) or type(error).__name__)
            decision = {"error": self._error, "bytes": 0}
        self._heartbeat.stop(_HEARTBEAT_TIMEOUT_S)  # before anybody, knowing the outcome, ends the process
        self.outcome = CommitOutcome(
            self.target, decision["error"], decision["bytes"], time.perf_counter() - self._begun
        )

    def _write_all(self) -> None:
        writers = [threading.Thread(target=self._write_some, daemon=True) for _ in self._files[:_WRITER_THREADS]]
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

    def _write(self, file: StagedFile) -> None:
        if self.has_failed or self._aborted.is_set():
            return
        path = self._temporary / file.name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            blocks, checksum = lambda name: self._until_aborted(file.slices[name]), ChecksumBuilder()
            write_safetensors(path, file.shapes, blocks, file.metadata, on_data=checksum.update)
            tensors = {name: shape.bytes for name, shape in file.shapes.items()}
            with self._lock:
                self._written[file.name] = WrittenFile(tensors, checksum.result())
        except OSError as error:
            self.fail(f"{path.name}: {error.strerror or error}")
        except Exception as error:  # a thread's exception would be lost
            self.fail(f"{path.name}: {type(error).__name__}: {error}")

    def _until_aborted(self, slices: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        for each in slices:
            if self._aborted.is_set():
                raise InterruptedError("aborted")
            yield each

    def _decide(self) -> dict[str, Any]:
        """Collects all votes on rank 0, and commits the directory or deletes it."""
        error, here = None, f"rank 0 on {socket.gethostname()}"
        written: WrittenFiles = {}
        try:
            for rank in range(self._ranks):
                vote = json.loads(self._wait_for(f"vote-{rank}", rank))
                self._store.delete_key(f"vote-{rank}")
                error = error or vote["error"]
                written |= {name: WrittenFile.from_json(file) for name, file in vote["files"].items()}
            if error is None:
                self._commit(written)
        except OSError as problem:
            file = f"{Path(problem.filename).name}: " if problem.filename else ""
            error = f"{here}: {file}{problem.strerror or problem}"
        except Exception as problem:
            error = f"{here}: {type(problem).__name__}: {problem}"
        if error is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
        return {"error": error, "bytes": sum(sum(file.tensors.values()) for file in written.values())}

    def _commit(self, written: WrittenFiles) -> None:
        unseen = [name for name in written if not (self._temporary / name).is_file()]
        if unseen:
            raise FileNotFoundError(
                0, f"{unseen[0]}, written by another host, is not visible here: --save_dir must be shared by all hosts"
            )
        self.complete(self._temporary, written)
        fsync_tree(self._temporary)
        make_way(self.target)
        replace_directory(self._temporary, self.target)
        self.after()

    def _publish(self, key: str, content: dict[str, Any]) -> None:
        self._store.set(key, json.dumps(content))

    def _wait_for(self, key: str, rank: int) -> bytes:
        """Waits for a key that a rank will publish, for as long as that rank has a heartbeat."""
        monitor = HeartbeatMonitor(self._store, [rank])
        while not self._store.check([key]):
            if self._aborted.is_set():
                raise InterruptedError("aborted: the run ends")
            monitor.poll()
            if monitor.silent_ranks(_HEARTBEAT_TIMEOUT_S):
                raise ConnectionError(f"no heartbeat from rank {rank} for {_HEARTBEAT_TIMEOUT_S:.0f} s")
            time.sleep(_POLL_INTERVAL_S)
        return self._store.get(key)
