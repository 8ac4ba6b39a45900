"""Metrics of a run: metrics.jsonl, one entry a step, and TensorBoard events, written by rank 0."""

import errno
import io
import itertools
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from colossal_llama.training.record_files import BENCHMARK_FILE, EVENTS, METRICS_FILE, WRITER_FILE
from colossal_llama.utils.atomic_io import write_json, write_text
from colossal_llama.utils.console import is_rank_zero, log_rank_zero
from colossal_llama.utils.errors import UserError

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "H800": 989e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12}
"""Dense bf16 FLOP/s of the vendors' datasheets, the denominator of model FLOPs utilisation."""


def peak_flops(device: torch.device) -> float | None:
    """Dense half-precision FLOP/s of a device; None when `PEAK_FLOPS` lacks it."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for model, rate in PEAK_FLOPS.items() if model in name), None)


class MetricsWriter:
    """Writes each step's metrics as a line of metrics.jsonl and as TensorBoard scalars.

    Ranks other than 0 write nothing. A benchmark writes benchmark.jsonl and no TensorBoard events,
    which would be mixed with those of the run that owns the directory. Metrics that cannot be
    written later (a full disk) are logged once and left out: training does not end for them.

    Args:
        directory: receives the files (`--tensorboard_dir`).
        save_dir: of the run.
        resumed_at_step: step after which the run resumes; 0: it is a fresh run.
        is_benchmark: True for a run that saves nothing.

    Raises:
        OSError: the directory or a file cannot be written.
    """

    def __init__(self, directory: Path, save_dir: Path, resumed_at_step: int = 0, is_benchmark: bool = False):
        self._file = self._writer = None
        self._has_warned = False
        if not is_rank_zero():
            return
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / (BENCHMARK_FILE if is_benchmark else METRICS_FILE)
        if not is_benchmark:
            if resumed_at_step == 0:
                _archive_earlier_metrics(directory)
            write_json(directory / WRITER_FILE, {"save_dir": str(save_dir.resolve())})
        begin_record(path, resumed_at_step)
        self._file = path.open("ab", buffering=0)
        if not is_benchmark:
            self._writer = _open_events(directory, resumed_at_step + 1 if resumed_at_step else None)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes a step's metrics.

        None is null in the file and is left out of TensorBoard. A dictionary (losses by category)
        becomes one scalar `name/key` per key.
        """
        if self._file is None:
            return
        line = json.dumps({"step": step, "time_s": round(time.time(), 3), **values}) + "\n"
        try:
            self._append(self._file, line.encode())
            self._add_scalars(step, values)
        except OSError as error:
            self._warn_once(step, self._file.name, error)

    def amend(self, step: int, values: dict[str, Any]) -> None:
        """Adds values to the last line, which is that of the step from which the run resumes.

        An evaluation that a signal ended is made up for so.
        """
        if self._file is None or not values:
            return
        path = Path(self._file.name)
        *others, last = path.read_text(encoding="utf-8").splitlines(keepends=True)
        entry = json.loads(last)
        assert entry["step"] == step, "the record ends with another step"
        try:
            write_text(path, "".join(others) + json.dumps({**entry, **values}) + "\n")
            self._file.close()
            self._file = path.open("ab", buffering=0)
            self._add_scalars(step, values)
        except OSError as error:
            self._warn_once(step, path, error)

    def _add_scalars(self, step: int, values: dict[str, Any]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                for tag, scalar in _scalars(name, value):
                    self._writer.add_scalar(tag, scalar, step)

    @staticmethod
    def _append(file: io.FileIO, line: bytes) -> None:
        """Appends a whole line, or leaves the file as it was."""
        end = os.fstat(file.fileno()).st_size
        try:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(file.fileno(), end)
            raise

    def _warn_once(self, step: int, path: Any, error: OSError) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        log_rank_zero(
            f"WARNING: THE METRICS OF STEP {step} COULD NOT BE WRITTEN to {path}: {error.strerror}. "
            "Training continues; metrics are written again as soon as there is room, to TensorBoard when the run is "
            "resumed. This warning is not repeated"
        )

    def close(self) -> None:
        """Flushes and closes both files."""
        for writer in (self._file, self._writer):
            if writer is not None:
                with suppress(OSError):  # of TensorBoard's buffer: logged by `_warn_once`
                    writer.close()


def _open_events(directory: Path, purge_step: int | None) -> Any:
    """Opens a TensorBoard file whose name comes after those that are there.

    TensorBoard reads the files of a directory in the order of their names, which begin with the
    time. After the clock was set back it would read this file first, and show twice the steps that
    it replaces.

    Args:
        directory: receives the file.
        purge_step: first step that this file replaces; None for a fresh run.
    """
    from tensorboard.summary.writer import event_file_writer
    from torch.utils.tensorboard import SummaryWriter

    stamps = [int(match[1]) for path in directory.glob(EVENTS) if (match := re.match(r"\D+(\d+)\.", path.name))]
    stamp = max([int(time.time()), *(stamp + 1 for stamp in stamps)])
    clock = event_file_writer.time
    event_file_writer.time = SimpleNamespace(time=lambda: stamp)  # the name cannot be given otherwise
    try:
        return SummaryWriter(str(directory), purge_step=purge_step)
    finally:
        event_file_writer.time = clock


def begin_record(path: Path, resumed_at_step: int) -> None:
    """Prepares a JSON Lines file for appending, so that it holds every step once.

    Each line is an object with a `step`. A resumed run drops the lines beyond its checkpoint. A
    fresh run renames an existing file, metrics.jsonl to metrics-0.jsonl and so on.

    Args:
        path: of the file, which need not exist.
        resumed_at_step: step after which the run resumes; 0: it is a fresh run.
    """
    if not path.exists():
        return
    if resumed_at_step == 0:
        names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count())
        path.rename(next(name for name in names if not name.exists()))
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= resumed_at_step]
    write_text(path, "".join(line + "\n" for line in kept))


def recorded_names(directory: Path, step: int) -> frozenset[str]:
    """Names of the values in a step's line of metrics.jsonl; empty where there is no such line."""
    try:
        entries = read_metrics(directory)
    except (OSError, ValueError):
        return frozenset()
    return frozenset(name for entry in entries if entry.get("step") == step for name in entry)


def refuse_other_record(directory: Path, save_dir: Path) -> None:
    """Refuses to append a resumed run's metrics to those of another run.

    Raises:
        UserError: the directory holds the metrics of a run with another `--save_dir`.
    """
    file = directory / WRITER_FILE
    try:
        writer = Path(json.loads(file.read_text(encoding="utf-8"))["save_dir"])
    except (OSError, ValueError, KeyError, TypeError):
        return  # no such file: an empty directory, or one of an early version
    if writer != save_dir.resolve():
        raise UserError(
            f"--tensorboard_dir {directory} holds the metrics of the run with --save_dir {writer}; those of the run "
            f"resumed in {save_dir} would be mixed with them. Give another --tensorboard_dir, or delete {file} if "
            f"{writer} is the former path of this --save_dir"
        )


def _archive_earlier_metrics(directory: Path) -> None:
    """Renames an earlier run's metrics to metrics-N.jsonl and events-N/.

    TensorBoard shows the latter as another run.
    """
    metrics, writer = directory / METRICS_FILE, directory / WRITER_FILE
    events = sorted(directory.glob(EVENTS))
    if not events and not metrics.exists():
        return
    pairs = ((directory / f"metrics-{n}.jsonl", directory / f"events-{n}") for n in itertools.count())
    archived, folder = next(pair for pair in pairs if not any(path.exists() for path in pair))
    folder.mkdir()
    for path in [*events, writer]:
        if path.exists():
            path.rename(folder / path.name)
    if metrics.exists():
        metrics.rename(archived)
    log_rank_zero(f"the metrics of an earlier run in {directory} are archived as {archived.name} and {folder.name}/")


def _scalars(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _scalars(f"{name}/{key}", inner)
    elif isinstance(value, int | float):
        yield name, value


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # an incomplete line of a killed run


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads the entries of a metrics.jsonl file, or of the one in a directory."""
    file = path / METRICS_FILE if path.is_dir() else path
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
