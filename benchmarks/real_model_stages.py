"""Stages of benchmarks/real_model.py: each is done once, within the time of a call."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.errors import UserError

_ROOT = Path(__file__).resolve().parents[1]
_LEAST_S = 25.0  # a stage that would be interrupted sooner is not begun: most of it are imports
_ENDING_S = 15.0  # for a checkpoint, and for a last entry in the results


class OutOfTime(Exception):
    """The time of this call is over; the next call goes on."""


class Stages:
    """Record of what is done already, in files of the working directory.

    A command that the time limit interrupts is sent SIGTERM. Each command of the product goes on
    where it was when it is called again.

    Args:
        work_dir: receives stages/NAME.json, the result of each, and logs/NAME.log.
        time_limit_s: of this call.
        after_each: is called after each new result.
    """

    def __init__(self, work_dir: Path, time_limit_s: float | None, after_each: Callable[[], None]):
        self._directory, self._logs = work_dir / "stages", work_dir / "logs"
        self._deadline = time.monotonic() + time_limit_s if time_limit_s else float("inf")
        self._after_each = after_each
        for directory in (self._directory, self._logs):
            directory.mkdir(parents=True, exist_ok=True)

    def do(self, name: str, make: Callable[[], dict[str, Any]], again: bool = False) -> dict[str, Any]:
        """Returns the result of a stage, which is done now unless it was before.

        Args:
            name: of the stage.
            make: does it.
            again: do it also if it was done before.

        Raises:
            OutOfTime: it would not end, or has not.
            UserError: one of its commands has failed.
        """
        if (done := self.result(name)) is not None and not again:
            return done
        if self.left_s() < _LEAST_S:
            raise OutOfTime(name)
        log_rank_zero(f"{name} …")
        started = time.monotonic()
        result = make()
        result["stage_s"] = round(time.monotonic() - started, 1)
        write_json(self._directory / f"{name}.json", result)
        log_rank_zero(f"{name}: {result['stage_s']} s")
        self._after_each()
        return result

    def result(self, name: str) -> dict[str, Any] | None:
        """The result of a stage; None if it is not done."""
        path = self._directory / f"{name}.json"
        return json.loads(path.read_bytes()) if path.is_file() else None

    def seconds(self) -> dict[str, float]:
        """Seconds of the stages that are done; where a call was interrupted, of the last one."""
        paths = sorted(self._directory.glob("*.json"), key=lambda path: path.stat().st_mtime)
        return {path.stem: json.loads(path.read_bytes())["stage_s"] for path in paths}

    def left_s(self) -> float:
        """Seconds of this call in which commands may run."""
        return self._deadline - time.monotonic() - _ENDING_S

    def script(self, log: str, path: str, *arguments: Any) -> None:
        """Runs a script of the project.

        Raises:
            OutOfTime: it was interrupted.
            UserError: it has failed.
        """
        self.command(log, sys.executable, _ROOT / path, *arguments)

    def torchrun(self, log: str, path: str, *arguments: Any) -> None:
        """Runs a script of the project under torchrun, in one process; raises as `script` does."""
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 1]
        self.command(log, *launcher, _ROOT / path, *arguments)

    def command(self, log: str, *words: Any) -> None:
        """Runs a command, its output appended to logs/`log`.log; raises as `script` does."""
        command, path = list(map(str, words)), self._logs / f"{log}.log"
        environment = {**os.environ, "PYTHONPATH": f"{_ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        with path.open("ab") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
            try:
                code = process.wait(None if self._deadline == float("inf") else max(0.0, self.left_s()))
            except subprocess.TimeoutExpired:
                raise OutOfTime(log) from None
            finally:
                _end(process)
        if code:
            end = path.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise UserError(f"{' '.join(command)} ended with code {code}; the end of {path}:\n{end}")


def _end(process: subprocess.Popen) -> None:
    """Asks a command that still runs to save and end, and kills it when it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(2 * _ENDING_S)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
