"""Signals at random moments of a training's last phase, and before its first step.

Most trials are processes forked from one that has imported everything; every tenth goes through
`python train.py` or torchrun. Signalled after the last step, a run must end with code 0 and the
model of the undisturbed run. Signalled before the first, it ends on all ranks with a sentence.
"""

import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.campaigns.outcome import HANG, PROJECT_ROOT, SILENT, STOPPED, TRACEBACK, WHOLE, WRONG, Outcome
from tests.support.ranks import start_ranks
from tests.support.training_runs import MAX_LENGTH, Toy, make_toy, ranks_of

_STEPS = 3
_TIMEOUT_S = 120.0
_LAUNCHES = ("1 process", "2 processes")
_LAUNCHERS = ("python train.py", "torchrun")
_PORT_TAKEN = "is in use on"
_SENTENCE = re.compile(r"^stopped by |came after the last step|; the model is in ", re.MULTILINE)
_CRASH = re.compile(r"Traceback|terminate called|Fatal Python error|Connection reset")
_OF_TORCHRUN = re.compile(r"Traceback \(most recent call last\):\n(?:[ \t].*\n)+torch\.\S+\.ChildFailedError")
"""The traceback that torchrun prints when a rank ends with another code than 0."""


@dataclass(frozen=True)
class Running:
    """A run that was started.

    Attributes:
        ranks: returns the process ids of the ranks, by rank; fewer while they are being started.
        wait: waits for the end, and returns the exit codes (None: killed at the time limit).
        directory: of its outputs.
        launch: how it was started.
    """

    ranks: Callable[[], list[int]]
    wait: Callable[[], list[int | None]]
    directory: Path
    launch: str

    def output(self) -> str:
        """All that the processes wrote."""
        return (self.directory / "output").read_text(encoding="utf-8", errors="replace")

    def steps(self) -> int:
        """The number of steps that were recorded."""
        metrics = self.directory / "logs" / "metrics.jsonl"
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def model(self) -> dict[str, bytes]:
        """The files of the final model."""
        return {path.name: path.read_bytes() for path in sorted((self.directory / "save" / "modelling").glob("*"))}


@dataclass(frozen=True)
class Undisturbed:
    """A run without a signal: its model, and the seconds from its last step to its end."""

    model: dict[str, bytes]
    start_s: float
    end_s: float


def run_trials(trials: int, seed: int, work_dir: Path) -> Iterator[Outcome]:
    """Yields the end of each trial; about two seconds each, 20 through a launcher."""
    generator = random.Random(seed)
    toy = make_toy(work_dir / "toy")
    undisturbed: dict[str, Undisturbed] = {}
    for trial in range(trials):
        launch = generator.choice(_LAUNCHERS if trial % 10 == 9 else _LAUNCHES)
        number, to_all = generator.choice((signal.SIGTERM, signal.SIGINT)), generator.random() < 0.5
        at_the_end = generator.random() < 0.8
        if launch not in undisturbed:
            undisturbed[launch] = _measure(launch, toy, work_dir / f"undisturbed {launch}")
        reference = undisturbed[launch]
        delay_s = generator.random() * 1.05 * (reference.end_s if at_the_end else reference.start_s)
        who = "all" if to_all or launch in ("1 process", "python train.py") else "one"
        kind = f"{number.name} to {who}, {launch}: {'at the end' if at_the_end else 'before the first step'}"
        for attempt in itertools.count():  # another campaign on this machine may take the port first
            running = _start(launch, toy, work_dir / f"{trial}-{attempt}")
            begin = time.monotonic()
            sent = _signal(running, number, who == "all", at_the_end, delay_s, generator)
            codes = running.wait()
            if _PORT_TAKEN not in running.output() or attempt == 3:
                break
        result = _judge(running, codes, reference, number, at_the_end)
        detail = f"trial {trial}: rank {sent} after {delay_s:.3f} s, codes {codes}"
        shown = running.output()[-1500:] if result not in (WHOLE, STOPPED) else ""
        yield Outcome(kind, result, detail, shown, time.monotonic() - begin)


def _measure(launch: str, toy: Toy, directory: Path) -> Undisturbed:
    running = _start(launch, toy, directory)
    _wait_until(lambda: _handles_signals(running, signal.SIGTERM))
    begin = time.monotonic()
    _wait_until(lambda: running.steps() >= 1)
    first = time.monotonic()
    _wait_until(lambda: running.steps() == _STEPS)
    last = time.monotonic()
    codes = running.wait()
    assert set(codes) == {0}, running.output()
    return Undisturbed(running.model(), first - begin, time.monotonic() - last)


def _signal(
    running: Running, number: int, to_all: bool, at_the_end: bool, delay_s: float, generator: random.Random
) -> list[int]:
    """Sends the signal, and returns the ranks that it was sent to."""
    _wait_until(lambda: running.steps() == _STEPS if at_the_end else _handles_signals(running, number))
    time.sleep(delay_s)
    ids = running.ranks()
    chosen = list(range(len(ids))) if to_all else [generator.randrange(max(1, len(ids)))]
    for rank in chosen:
        if rank < len(ids):
            try:
                os.kill(ids[rank], number)
            except ProcessLookupError:
                continue
    return chosen


def _judge(running: Running, codes: list[int | None], reference: Undisturbed, number: int, at_the_end: bool) -> str:
    output = running.output()
    if None in codes:
        return HANG
    if _CRASH.search(_OF_TORCHRUN.sub("", output)):
        return TRACEBACK
    if not _SENTENCE.search(output) and "stopped by a signal" not in output:
        return SILENT
    if set(codes) == {0}:
        if "stopped by a signal after step" in output:  # it came during the steps
            return WRONG if at_the_end else STOPPED
        return WHOLE if running.model() == reference.model else WRONG
    if at_the_end or set(codes) != {1 if running.launch == "torchrun" else 128 + number}:
        return WRONG
    return STOPPED if not (running.directory / "save" / "modelling").exists() else WRONG


def _start(launch: str, toy: Toy, directory: Path) -> Running:
    directory.mkdir()
    words = ["--pretrained", toy.model, "--dataset", *toy.parts, "--max_length", MAX_LENGTH, "--plugin", "zero2"]
    words += ["--mixed_precision", "fp32", "--lr", "1e-3", "--max_steps", _STEPS, "--save_dir", directory / "save"]
    words += ["--tensorboard_dir", directory / "logs", "--config_file", directory / "config.json"]
    command = [str(word) for word in words]
    if launch in _LAUNCHES:
        (directory / "output").touch()
        processes = start_ranks("train.py", command, int(launch[0]), PROJECT_ROOT, str(directory / "output"))

        def wait() -> list[int | None]:
            deadline = time.monotonic() + _TIMEOUT_S
            for process in processes:
                process.join(max(0.0, deadline - time.monotonic()))
            codes = [process.exitcode for process in processes]
            for process in processes:
                process.kill()
            return codes

        return Running(lambda: [process.pid or 0 for process in processes], wait, directory, launch)
    return _start_launcher(launch, command, directory)


def _start_launcher(launch: str, command: list[str], directory: Path) -> Running:
    is_torchrun = launch == "torchrun"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"] if is_torchrun else []
    with (directory / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *launcher, "train.py", *command],
            cwd=PROJECT_ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def ranks() -> list[int]:
        if not is_torchrun:
            return [process.pid]
        try:
            found = ranks_of(process)
        except psutil.Error:
            return []
        return [found[rank].pid for rank in sorted(found)]

    def wait() -> list[int | None]:
        try:
            return [process.wait(_TIMEOUT_S)]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return [None]

    return Running(ranks, wait, directory, launch)


def _handles_signals(running: Running, number: int) -> bool:
    """True when every rank has a handler for the signal (Linux, /proc/PID/status)."""
    ids = running.ranks()
    try:
        caught = [int(re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())[0], 16) for pid in ids]
    except OSError:
        return True  # it has ended
    # Any Python handles SIGINT, and a fork of torchrun SIGTERM, too: this project handles SIGHUP.
    both = 1 << (number - 1) | 1 << (signal.SIGHUP - 1)
    return bool(ids) and all(mask & both == both for mask in caught)


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
