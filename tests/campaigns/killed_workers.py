"""Preparations of which one worker, or the fork server, is killed by SIGKILL at a random moment.

A kill of a process that still had something to do must end the run with code 2 and the sentence,
and the same command must then finish what an undisturbed run writes. A trial that came too late, so
that nothing was killed, ends well when the output is that of an undisturbed run. No process of the
run may be left in any case.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.campaigns.outcome import REFUSED, WHOLE, WRONG, Ended, Outcome, run_command, start_command, wait_for
from tests.support.made_data import make_data
from tests.support.preparations import content

SENTENCE = "a worker process was killed"
KINDS = ("worker at its start", "idle worker", "worker in work", "worker at the end", "worker", "fork server")
NUM_PARTS = 6


@dataclass(frozen=True)
class _Process:
    """A process of the run's session, from /proc."""

    pid: int
    parent: int
    state: str
    is_of_server: bool  # the fork server itself, or forked from it


def run_trials(trials: int, seed: int, work_dir: Path) -> Iterator[Outcome]:
    """Kills one process of a preparation in each trial, all kinds in turn."""
    rng = random.Random(seed)
    data = make_data(work_dir / "data")
    whole = run_command(_command(data, work_dir / "undisturbed", 2))
    assert whole.code == 0, whole.stderr
    undisturbed = content(work_dir / "undisturbed")
    for number in range(trials):
        yield _run_trial(KINDS[number % len(KINDS)], data, work_dir / "out", undisturbed, whole.duration_s, rng)


def _command(data: Path, output: Path, num_workers: int) -> list[str]:
    return [
        "prepare_pretrain_dataset.py",
        *("--data_input_dirs", str(data / "pretrain")),
        *("--tokenizer_dir", str(data / "tokenizers" / "llama2")),
        *("--data_output_dirs", str(output)),
        *("--num_spliced_dataset_bins", str(NUM_PARTS), "--num_workers", str(num_workers)),
    ]


def _run_trial(kind: str, data: Path, output: Path, undisturbed: dict, whole_s: float, rng: random.Random) -> Outcome:
    shutil.rmtree(output, ignore_errors=True)
    command = _command(data, output, rng.choice((2, 2, 3, 5)))
    begin = time.monotonic()
    process = start_command(command)
    killed = _kill_one(kind, process, output, whole_s, rng)
    ended = wait_for(process, 60, begin)
    result = _result(command, output, undisturbed, process.pid, ended, killed is not None)
    return Outcome(
        kind=kind,
        result=result,
        detail=f"{' '.join(command[-1:])} workers, {killed or 'ended before'}",
        output=ended.last_lines(),
        duration_s=round(time.monotonic() - begin, 2),
    )


def _kill_one(kind: str, run: subprocess.Popen, output: Path, whole_s: float, rng: random.Random) -> str | None:
    """Kills a process of the kind at a random moment; returns which and when, None if too late."""
    begin = time.monotonic()
    moments: dict[str, tuple[float, Callable[[], Sequence[_Process]]]] = {
        "worker at its start": (rng.choice((0.0, 0.01, 0.1)), lambda: _workers(run.pid)),
        "idle worker": (0.3, lambda: [worker for worker in _workers(run.pid) if worker.state == "S"]),
        "worker in work": (0.3, lambda: [worker for worker in _workers(run.pid) if worker.state == "R"]),
        "worker at the end": (0.1, lambda: _workers(run.pid) if _parts(output) >= NUM_PARTS - 1 else []),
        "worker": (whole_s, lambda: _workers(run.pid)),
        "fork server": (whole_s, lambda: _servers(run.pid)),
    }
    longest_delay_s, victims = moments[kind]
    is_from_beginning = kind in ("worker", "fork server")
    delay_s = rng.uniform(0, longest_delay_s)
    while run.poll() is None:
        if (is_from_beginning and time.monotonic() - begin < delay_s) or not victims():
            time.sleep(0.001)
            continue
        if not is_from_beginning:
            time.sleep(delay_s)
        if found := victims():
            victim = rng.choice(found)
            os.kill(victim.pid, signal.SIGKILL)
            return f"process {victim.pid} in state {victim.state} after {time.monotonic() - begin:.3f} s"
        if not is_from_beginning:
            delay_s /= 2
    return None


def _result(command: Sequence[str], output: Path, undisturbed: dict, session: int, ended: Ended, killed: bool) -> str:
    result = ended.result()
    deadline = time.monotonic() + 2
    while left := _processes(session):
        if time.monotonic() > deadline:
            for process in left:
                os.kill(process.pid, signal.SIGKILL)
            return WRONG
        time.sleep(0.01)
    if result == REFUSED and killed and SENTENCE in ended.stderr:
        again = run_command(command)
        return REFUSED if again.code == 0 and content(output) == undisturbed else WRONG
    if result == WHOLE:
        return WHOLE if content(output) == undisturbed else WRONG
    return WRONG if result == REFUSED else result


def _workers(run: int) -> list[_Process]:
    found = [process for process in _processes(run) if process.is_of_server]
    return [process for process in found if process.parent != run]


def _servers(run: int) -> list[_Process]:
    return [process for process in _processes(run) if process.is_of_server and process.parent == run]


def _processes(session: int) -> list[_Process]:
    """Running processes of a session, but for the one that leads it."""
    found = []
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit() or int(directory.name) == session:
            continue
        try:
            state, parent, _, own_session = (directory / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(own_session) == session and state not in "ZX":
                is_of_server = b"forkserver" in (directory / "cmdline").read_bytes()
                found.append(_Process(int(directory.name), int(parent), state, is_of_server))
        except (OSError, ValueError):
            continue
    return found


def _parts(output: Path) -> int:
    return len(list((output / "arrow").glob("part-*")))
