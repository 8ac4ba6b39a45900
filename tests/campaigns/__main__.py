"""Runs campaigns by hand: prints a table by kind, and writes a line a trial.

    python -m tests.campaigns killed_workers --trials 300 --seed 1 --output results
    python -m tests.campaigns all --trials 300 --processes 16 --limit_s 550 --output results

With `--processes` the trials are divided over processes, each with a seed of its own. At the limit
they are killed; the trials that had ended are in the table.
"""

import argparse
import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.campaigns.outcome import PROJECT_ROOT, Outcome, format_table

NAMES = sorted(
    path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if path.stem != "outcome" and path.stem[:5] != "test_"
)
TRIALS_A_PROCESS = 30  # a process begins with the preparation of its inputs, which takes as long as some trials


@dataclass(frozen=True)
class Job:
    """Some trials of a campaign, which one process runs."""

    campaign: str
    trials: int
    seed: int
    output: Path


def main() -> int:
    """Returns 0 when every trial ended well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaigns", nargs="+", choices=[*NAMES, "all"])
    parser.add_argument("--trials", type=int, default=100, help="of each campaign")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--limit_s", type=float, default=3e6, help="kill what has not ended after so many seconds")
    parser.add_argument("--output", type=Path, help="directory for a file of JSON lines for each process")
    options = parser.parse_args()
    names = NAMES if "all" in options.campaigns else options.campaigns
    with tempfile.TemporaryDirectory(prefix="campaigns-") as scratch:
        output = options.output or Path(scratch)
        output.mkdir(parents=True, exist_ok=True)
        jobs = _jobs(names, options.trials, options.seed, output)
        if len(jobs) == 1 or options.processes == 1:
            for job in jobs:
                run_job(job)
        else:
            _run_in_processes(jobs, options.processes, options.limit_s)
        outcomes = {name: _read(job.output for job in jobs if job.campaign == name) for name in names}
    for name, ended in outcomes.items():
        print(f"\n{name}\n\n{format_table(ended)}")
    return 0 if all(outcome.is_good for ended in outcomes.values() for outcome in ended) else 1


def _jobs(names: Sequence[str], trials: int, seed: int, output: Path) -> list[Job]:
    """The jobs of all campaigns, in an order in which each campaign is begun early."""
    counts = [min(TRIALS_A_PROCESS, trials - first) for first in range(0, trials, TRIALS_A_PROCESS)]
    return [
        Job(name, count, 1000 * seed + number, output / f"{name}-{1000 * seed + number}.jsonl")
        for number, count in enumerate(counts)
        for name in names
    ]


def run_job(job: Job) -> None:
    """Runs the trials of a job in this process."""
    module = importlib.import_module(f"tests.campaigns.{job.campaign}")
    job.output.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="campaign-") as work_dir, job.output.open("w", encoding="utf-8") as file:
        for outcome in module.run_trials(job.trials, job.seed, Path(work_dir)):
            line = json.dumps(dataclasses.asdict(outcome), ensure_ascii=False)
            print(line, file=file, flush=True)
            if not outcome.is_good:
                print(line, file=sys.stderr, flush=True)


def _run_in_processes(jobs: Sequence[Job], processes: int, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(lambda job: _run_in_process(job, deadline), jobs))


def _run_in_process(job: Job, deadline: float) -> None:
    """Runs a job as a command of its own, in a session that is killed at the deadline."""
    remaining_s = deadline - time.monotonic()
    if remaining_s <= 0:
        return
    code = f"from pathlib import Path; from tests.campaigns.__main__ import Job, run_job; run_job({job!r})"
    code = code.replace("PosixPath", "Path")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT_ROOT, start_new_session=True)
    try:
        if process.wait(remaining_s):
            print(f"{job}: the campaign itself ended with code {process.returncode}", file=sys.stderr, flush=True)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _read(paths: Iterable[Path]) -> list[Outcome]:
    lines = [line for path in paths if path.exists() for line in path.read_text("utf-8").splitlines()]
    return [Outcome(**json.loads(line)) for line in lines]


if __name__ == "__main__":
    sys.exit(main())
