"""The record of a run: TensorBoard events and metrics.jsonl, one entry a step, written by rank 0."""

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from colossal_llama.utils.console import is_rank_zero

METRICS_FILE = "metrics.jsonl"

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

    A resumed run appends, after dropping what a killed run wrote beyond the checkpoint, so that every step stands once. A fresh run
    begins a new record; one that lies there is kept as metrics-0.jsonl and so on.
    """

    def __init__(self, directory: Path, resumed_at_step: int = 0):
        self._writer = None
        if not is_rank_zero():
            return
        from torch.utils.tensorboard import SummaryWriter

        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / METRICS_FILE
        self._forget_after(resumed_at_step)
        self._file = self._path.open("a", encoding="utf-8")
        self._writer = SummaryWriter(str(directory), purge_step=resumed_at_step + 1 if resumed_at_step else None)

    def _forget_after(self, step: int) -> None:
        if not self._path.exists():
            return
        if step == 0:
            number = next(n for n in itertools.count() if not self._path.with_name(f"metrics-{n}.jsonl").exists())
            self._path.rename(self._path.with_name(f"metrics-{number}.jsonl"))
            return
        kept = [line for line in self._path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        from colossal_llama.utils.files import write_text

        write_text(self._path, "".join(line + "\n" for line in kept))

    def write(self, step: int, numbers: dict[str, Any]) -> None:
        """Records a step's numbers; None is left out of TensorBoard and is null in the file.

        A dictionary among them (losses by category) becomes a scalar `name/key` each.
        """
        if self._writer is None:
            return
        self._file.write(json.dumps({"step": step, "time_s": round(time.time(), 3), **numbers}) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            for tag, number in _scalars(name, value):
                self._writer.add_scalar(tag, number, step)

    def close(self) -> None:
        """Flushes and closes both records."""
        if self._writer is not None:
            self._file.close()
            self._writer.close()


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
