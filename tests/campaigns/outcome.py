"""How a trial of a campaign ended, and the command line that runs campaigns by hand.

A campaign is a module of this package with a function

    run_trials(trials: int, seed: int, work_dir: Path) -> Iterator[Outcome]

Tests run a few trials of each (tests/campaigns/test_<campaign>.py). The long form is run by hand:

    python -m tests.campaigns killed_workers --trials 300 --seed 1 --output killed_workers.jsonl
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[2]

WHOLE = "whole"  # code 0, and the result is that of an undisturbed run
REFUSED = "refused"  # code 2 and a sentence
REPAIRED = "repaired"  # code 0, the damage was said and what it concerns made anew or left out
STOPPED = "stopped"  # ended by the signal that was sent, with a sentence
GOOD = (WHOLE, REFUSED, REPAIRED, STOPPED)

TRACEBACK = "TRACEBACK"  # a Python traceback or a crash of the interpreter
SILENT = "SILENT"  # another exit code than 0 without a sentence, or code 2 without one
HANG = "HANG"  # not ended within the time limit
WRONG = "WRONG"  # code 0 and another result, without a word


@dataclass(frozen=True)
class Outcome:
    """The end of one trial.

    Attributes:
        kind: what was done, as counted in the table (`optimizer shard: byte flipped`).
        result: one of the words above.
        detail: the trial in full, so that it can be repeated by hand.
        output: the last lines of stderr, when the result is none of `GOOD`.
        duration_s: how long it took.
    """

    kind: str
    result: str
    detail: str = ""
    output: str = ""
    duration_s: float = 0.0

    @property
    def is_good(self) -> bool:
        """True when nothing was silent, wrong, hung or ended in a traceback."""
        return self.result in GOOD


@dataclass(frozen=True)
class Ended:
    """An ended command: exit code (None: killed at the time limit), stdout, stderr, seconds."""

    code: int | None
    stdout: str
    stderr: str
    duration_s: float

    def result(self, stopped_by: int | None = None) -> str:
        """Returns the word for this end; `WHOLE` for code 0, which the caller must still compare.

        Args:
            stopped_by: signal that the trial sent, whose exit code is a good one with a sentence.
        """
        if self.code is None:
            return HANG
        if "Traceback (most recent call last)" in self.stderr or "Fatal Python error" in self.stderr:
            return TRACEBACK
        if self.code == 0:
            return WHOLE
        spoke = re.search(r"^(error|interrupted|stopped)\b", self.stderr, re.MULTILINE) is not None
        if self.code == 2:
            return REFUSED if spoke else SILENT
        if stopped_by is not None and self.code in (-stopped_by, 128 + stopped_by) and spoke:
            return STOPPED
        return TRACEBACK if self.code < 0 and -self.code != stopped_by else SILENT

    def last_lines(self, count: int = 6) -> str:
        """Returns the last lines of stderr."""
        return "\n".join(self.stderr.splitlines()[-count:])


def run_command(
    command: Sequence[str],
    timeout_s: float = 60,
    cwd: Path = PROJECT_ROOT,
    env: Mapping[str, str] | None = None,
) -> Ended:
    """Runs a script of the project (`["train.py", …]`) in a session of its own, which is killed at
    the time limit.

    Args:
        env: added to this process's environment.
    """
    begin = time.monotonic()
    process = start_command(command, cwd, env)
    return wait_for(process, timeout_s, begin)


def run_shell(
    line: str, words: Sequence[str], timeout_s: float, cwd: Path = PROJECT_ROOT, env: Mapping[str, str] | None = None
) -> Ended:
    """Runs a line of bash in which `"$@"` is a command, in a session of its own.

    Args:
        line: with the redirections, limits and variables of the trial.
        words: the command, with its interpreter.
        timeout_s: then the session is killed.
        cwd: the working directory.
        env: added to this process's environment.
    """
    begin = time.monotonic()
    process = start_command(["-c", line, "bash", *words], cwd, env, executable="bash")
    return wait_for(process, timeout_s, begin)


def start_command(
    command: Sequence[str],
    cwd: Path = PROJECT_ROOT,
    env: Mapping[str, str] | None = None,
    executable: str = sys.executable,
) -> subprocess.Popen[str]:
    """Starts a script of the project in a session of its own."""
    return subprocess.Popen(
        [executable, *command],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def wait_for(process: subprocess.Popen[str], timeout_s: float, begin: float) -> Ended:
    """Waits for a started command; kills its whole session at the time limit."""
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
        code: int | None = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        code = None
    return Ended(code, stdout, stderr, time.monotonic() - begin)


def format_table(outcomes: Iterable[Outcome]) -> str:
    """Returns a Markdown table: a row a kind, with the number of trials by result."""
    outcomes = list(outcomes)
    counts = {kind: Counter(o.result for o in outcomes if o.kind == kind) for kind in {o.kind for o in outcomes}}
    results = [*GOOD, *sorted({o.result for o in outcomes} - set(GOOD))]
    lines = [f"| kind | trials | {' | '.join(results)} |", f"|---|{'---:|' * (len(results) + 1)}"]
    for kind, count in sorted(counts.items()):
        lines.append(f"| {kind} | {count.total()} | {' | '.join(str(count[result]) for result in results)} |")
    total = Counter(o.result for o in outcomes)
    lines.append(f"| all | {total.total()} | {' | '.join(str(total[result]) for result in results)} |")
    return "\n".join(lines)
