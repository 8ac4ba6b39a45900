"""The record of a run: TensorBoard events and metrics.jsonl, one entry a step, written by rank 0."""

import errno
import itertools
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from colossal_llama.utils.atomic_io import write_json, write_text
from colossal_llama.utils.console import is_rank_zero, log_rank_zero
from colossal_llama.utils.errors import UserError

METRICS_FILE, BENCHMARK_FILE = "metrics.jsonl", "benchmark.jsonl"
WRITER_FILE = "run.json"
"""Says which `--save_dir` the run has whose record a directory holds."""
_EVENTS = "events.out.tfevents.*"

# Dense bf16 rates of the vendors' datasheets, in FLOP/s; utilisation is model FLOPs over these.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "H800": 989e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12}


def peak_flops(device: torch.device) -> float | None:
    """The device's dense half-precision rate in FLOP/s, or None when it is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for model, rate in PEAK_FLOPS.items() if model in name), None)


class MetricsWriter:
    """Writes each step's numbers to `directory` as TensorBoard scalars and as a line of metrics.jsonl; silent on ranks > 0.

    A benchmark's go to benchmark.jsonl, and to no TensorBoard events: they would be taken for those
    of the run whose directory it is. What cannot be written once the run has begun (a full disk) is
    announced and left out: the training is worth more than its record.

    Args:
        directory: of the record.
        save_dir: of the run; a benchmark's is left alone.
        resumed_at_step: the run goes on after this step; 0: it is a fresh one.
        is_benchmark: nothing is saved.
    """

    def __init__(self, directory: Path, save_dir: Path, resumed_at_step: int = 0, is_benchmark: bool = False):
        self._file = self._writer = None
        self._lost_step: int | None = None
        if not is_rank_zero():
            return
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / (BENCHMARK_FILE if is_benchmark else METRICS_FILE)
        if not is_benchmark:
            if resumed_at_step == 0:
                _set_former_aside(directory)
            write_json(directory / WRITER_FILE, {"save_dir": str(save_dir.resolve())})
        begin_record(path, resumed_at_step)
        self._file = path.open("ab", buffering=0)
        if not is_benchmark:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(directory), purge_step=resumed_at_step + 1 if resumed_at_step else None)

    def write(self, step: int, numbers: dict[str, Any]) -> None:
        """Records a step's numbers; None is left out of TensorBoard and is null in the file.

        A dictionary among them (losses by category) becomes a scalar `name/key` each.
        """
        if self._file is None:
            return
        line = json.dumps({"step": step, "time_s": round(time.time(), 3), **numbers}) + "\n"
        try:
            self._append(line.encode())
            if self._writer is not None:
                for name, value in numbers.items():
                    for tag, number in _scalars(name, value):
                        self._writer.add_scalar(tag, number, step)
        except OSError as error:
            self._announce(step, error)

    def _append(self, line: bytes) -> None:
        """All of a line, or nothing of it."""
        end = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(self._file.fileno(), end)
            raise

    def _announce(self, step: int, error: OSError) -> None:
        if self._lost_step is None:
            self._lost_step = step
            log_rank_zero(
                f"WARNING: THE RECORD OF STEP {step} COULD NOT BE WRITTEN to {self._file.name}: {error.strerror}; "
                "training goes on, and "
                "later steps are recorded as soon as there is room (in TensorBoard when a run goes on). This is said "
                "once"
            )

    def close(self) -> None:
        """Flushes and closes both records."""
        for record in (self._file, self._writer):
            if record is not None:
                with suppress(OSError):  # of TensorBoard's buffer; said already
                    record.close()


def begin_record(path: Path, resumed_at_step: int) -> None:
    """Makes a file of one JSON object with a `step` a line ready for a run to append to, so that every step stands once.

    A resumed run drops what was written beyond its checkpoint. A fresh run begins a new record: one
    that lies there is kept as metrics-0.jsonl and so on.

    Args:
        path: the record, which need not exist.
        resumed_at_step: the run goes on after this step; 0: it is a fresh one.
    """
    if not path.exists():
        return
    if resumed_at_step == 0:
        names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count())
        path.rename(next(name for name in names if not name.exists()))
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= resumed_at_step]
    write_text(path, "".join(line + "\n" for line in kept))


def refuse_other_record(directory: Path, save_dir: Path) -> None:
    """Refuses to append the record of a run that goes on to that of another run.

    Raises:
        UserError: the directory holds the record of a run with another `--save_dir`.
    """
    file = directory / WRITER_FILE
    try:
        writer = Path(json.loads(file.read_text(encoding="utf-8"))["save_dir"])
    except (OSError, ValueError, KeyError, TypeError):
        return  # empty, or from before these files were written
    if writer != save_dir.resolve():
        raise UserError(
            f"--tensorboard_dir {directory} holds the record of the run with --save_dir {writer}, and a run that goes "
            f"on in {save_dir} "
            f"would be mixed with it: give another --tensorboard_dir (or delete {file}, if {writer} is this "
            "--save_dir before it was moved)"
        )


def _set_former_aside(directory: Path) -> None:
    """Keeps an earlier run's record as metrics-N.jsonl and events-N/, which TensorBoard shows as another run."""
    metrics, writer = directory / METRICS_FILE, directory / WRITER_FILE
    events = sorted(directory.glob(_EVENTS))
    if not events and not metrics.exists():
        return
    pairs = ((directory / f"metrics-{n}.jsonl", directory / f"events-{n}") for n in itertools.count())
    aside, folder = next(pair for pair in pairs if not any(path.exists() for path in pair))
    folder.mkdir()
    for path in [*events, writer]:
        if path.exists():
            path.rename(folder / path.name)
    if metrics.exists():
        metrics.rename(aside)
    log_rank_zero(f"the record of an earlier run in {directory} is now {aside.name} and {folder.name}/")


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
        return float("inf")  # half a line, from a run that was killed while it wrote


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The entries of a metrics.jsonl file, or of the one in a directory."""
    file = path / METRICS_FILE if path.is_dir() else path
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
