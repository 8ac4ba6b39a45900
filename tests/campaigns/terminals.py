"""Every script on a terminal, environment and host that a shell has prepared badly.

Streams closed, full or of another encoding, few open files, no usable TMPDIR or HOME, `python -O`,
a working directory that is gone. Commands end as undisturbed, or with code 2 and sentences.
"""

import random
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.campaigns.command_lines import EXIT_CODE_OF_FINDINGS, World, make_world, snapshot
from tests.campaigns.outcome import PROJECT_ROOT, REFUSED, SILENT, STOPPED, WHOLE, WRONG, Outcome, run_shell

TIMEOUT_S = 180
LOST_CONNECTION = 3  # exit code of a rank, documented in training/distributed/watchdog.py
LONG_DIRECTORY = "d" * 90
CONDITIONS = {
    "stdout closed": '"$@" >&-',
    "stderr closed": '"$@" 2>&-',
    "stdin closed": '"$@" <&-',
    "stdout and stderr closed": '"$@" >&- 2>&-',
    "all streams closed": '"$@" >&- 2>&- <&-',
    "stdout full": '"$@" >/dev/full',
    "stderr full": '"$@" 2>/dev/full',
    "reader gone": '"$@" > >(true)',
    "reader of both gone": '"$@" > >(true) 2>&1',
    "reader leaves": '"$@" | head -1; exit ${PIPESTATUS[0]}',
    "ulimit -n 20": 'ulimit -n 20; "$@"',
    "ulimit -n 64": 'ulimit -n 64; "$@"',
    "ulimit -f 0": 'ulimit -f 0; "$@"',
    "ascii": 'PYTHONIOENCODING=ascii "$@"',
    "latin-1": 'PYTHONIOENCODING=latin-1 "$@"',
    "C locale": 'LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 "$@"',
    "long TMPDIR": 'export TMPDIR="$OUT/$LONG/$LONG/$LONG"; mkdir -p "$TMPDIR"; "$@"',
    "absent TMPDIR": 'TMPDIR=/nowhere/at/all "$@"',
    "TMPDIR that takes no file": 'TMPDIR=/proc "$@"',
    "no HOME": 'env -u HOME "$@"',
    "HOME that takes no file": 'HOME=/proc/home "$@"',
    "working directory gone": 'mkdir "$OUT/gone"; cd "$OUT/gone"; rmdir "$OUT/gone"; "$@"',
    "python -O": 'script="$2"; shift 2; "$PYTHON" -O "$script" "$@"',
}
UNSEEN = {"stderr closed", "stdout and stderr closed", "all streams closed", "stderr full", "reader of both gone"}
"""Where stderr cannot be read: the exit code alone counts."""


def run_trials(trials: int, seed: int, work_dir: Path) -> Iterator[Outcome]:
    """Runs every script under every condition, in an order of chance."""
    world = make_world(work_dir / "world")
    pairs = [(condition, name) for condition in CONDITIONS for name in world.lines]
    random.Random(seed).shuffle(pairs)
    for condition, name in (pairs * (1 + trials // len(pairs)))[:trials]:
        yield run_trial(world, condition, name)


def run_trial(world: World, condition: str, name: str) -> Outcome:
    """Runs one script under one condition; an output of a refused command is an error."""
    script, words = world.lines[name]
    inputs, begin = snapshot(world.inputs), time.monotonic()
    command = [sys.executable, str(PROJECT_ROOT / script), *words]
    env = {"OUT": str(world.out), "LONG": LONG_DIRECTORY, "PYTHON": sys.executable}
    ended = run_shell(CONDITIONS[condition], command, TIMEOUT_S, world.out, env)
    ended = replace(ended, stderr=ended.stdout + ended.stderr, duration_s=time.monotonic() - begin)
    result = ended.result()
    if ended.code == EXIT_CODE_OF_FINDINGS.get(name):
        result = WHOLE
    elif result == SILENT and ended.code in (2, LOST_CONNECTION) and ("error" in ended.stderr or condition in UNSEEN):
        result = REFUSED
    elif result == SILENT and ended.code == 1 and condition.startswith("reader"):
        result = STOPPED  # as Python's documentation recommends, see utils/errors.py
    problem = ""
    left = {path for path in snapshot(world.out) if LONG_DIRECTORY not in path}
    if snapshot(world.inputs) != inputs:
        result, problem = WRONG, "inputs have changed"
    elif ended.code == 2 and left and condition not in ("stdout full", "ulimit -f 0"):
        result, problem = WRONG, f"a refused command left {sorted(left)}"
    shutil.rmtree(world.out)
    world.out.mkdir()
    is_good = Outcome(condition, result).is_good
    output = "" if is_good else f"code {ended.code} {problem}\n{ended.last_lines(12)}"
    return Outcome(condition, result, f"{name}: {condition}", output, ended.duration_s)
