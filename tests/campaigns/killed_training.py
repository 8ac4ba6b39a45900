"""Trainings killed by SIGKILL at random moments, also while a checkpoint is written, and resumed.

Each trial starts a run that saves after every step, kills one rank or all of them once to three
times, and resumes by `auto` each time. A launcher ends the other ranks when one has died; here they
live on for a random moment. The trial ends well when the last run ends with code 0, its losses and
weights are those of an undisturbed run, bit for bit, every checkpoint is whole, and nothing
half-written is left.
"""

import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from colossal_llama.training.checkpoint.state import checkpoint_directories
from colossal_llama.utils.checksums import differences, read_checksums
from tests.campaigns.outcome import WHOLE, WRONG, Ended, Outcome
from tests.support.layouts import LAYOUTS, STEPS, Layout, Runs

SAVING = ("--save_interval", "1", "--load_checkpoint", "auto")


def run_trials(trials: int, seed: int, work_dir: Path) -> Iterator[Outcome]:
    """Kills runs of all layouts in turn."""
    rng, runs = random.Random(seed), Runs(work_dir)
    for number in range(trials):
        layout = LAYOUTS[number % len(LAYOUTS)]
        runs.undisturbed(layout)
        yield run_trial(runs, f"trial-{number}", layout, rng)


def run_trial(runs: Runs, name: str, layout: Layout, rng: random.Random) -> Outcome:
    """Kills a run several times, and resumes it to its end."""
    begin, kills = time.monotonic(), []
    for _ in range(rng.randint(1, 3)):
        victim = rng.choice(("one rank", "all ranks")) if layout.ranks > 1 else "all ranks"
        moment, reached = _moment(rng, runs.save_dir(name))
        kills.append(f"{victim} {moment}")
        runs.train_and_kill(layout, name, reached, victim == "one rank", rng, *SAVING)
    ended = runs.train(layout, name, *SAVING)
    outcome = Outcome(
        kind=f"{layout.name}, {len(kills)} kills",
        result=_result(runs, layout, name, ended),
        detail="; ".join(kills),
        output=ended.last_lines(12),
        duration_s=round(time.monotonic() - begin, 2),
    )
    if outcome.is_good:
        shutil.rmtree(runs.runner.workspace / name)
    return outcome


def _moment(rng: random.Random, save_dir: Path) -> tuple[str, Callable[[], bool]]:
    """A random moment: after so many seconds, or so long after a checkpoint's writing began."""
    begin = time.monotonic()
    if rng.random() < 0.5:
        delay_s = rng.uniform(0, 2)
        return f"after {delay_s:.2f} s", lambda: time.monotonic() - begin > delay_s
    delay_s, wanted, seen = rng.uniform(0, 0.05), rng.randint(1, 3), set()

    def reached() -> bool:
        seen.update(path.name for path in save_dir.glob(".*.unfinished"))
        if len(seen) < wanted:
            return False
        time.sleep(delay_s)
        return True

    return f"{delay_s * 1000:.0f} ms after the beginning of save {wanted}", reached


def _result(runs: Runs, layout: Layout, name: str, ended: Ended) -> str:
    result = ended.result()
    if result != WHOLE:
        return result
    save_dir = runs.save_dir(name)
    damaged = [difference for path in checkpoint_directories(save_dir) for difference in _damage(path)]
    left = [path.name for path in save_dir.iterdir() if path.name.startswith(".") and path.name != ".lock"]
    steps = [entry["step"] for entry in runs.runner.metrics(name)]
    is_whole = steps == list(range(1, STEPS + 1)) and not runs.differences(layout, name)
    return WHOLE if is_whole and not damaged and not left else WRONG


def _damage(checkpoint: Path) -> list[str]:
    return differences(checkpoint, read_checksums(checkpoint))
