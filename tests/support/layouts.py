"""Short training runs in several parallel layouts on the CPU, for campaigns on them."""

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.campaigns.outcome import PROJECT_ROOT, Ended
from tests.support.ranks import run_ranks, start_ranks
from tests.support.training_runs import Runner, make_toy
from tests.support.versions import can_run

STEPS = 6
LAST_CHECKPOINT_STEP = 4
TIMEOUT_S = 120


@dataclass(frozen=True)
class Layout:
    """A parallel layout, by the options of train.py."""

    name: str
    ranks: int
    options: tuple[str, ...]


LAYOUTS = tuple(
    layout
    for layout in (
        Layout("zero2, 2 ranks", 2, ("--plugin", "zero2", "--micro_batch_size", "2")),
        Layout("3d tp 2", 2, ("--plugin", "3d", "--zero", "0", "--tp", "2", "--micro_batch_size", "4")),
        Layout("3d pp 2", 2, ("--plugin", "3d", "--pp", "2", "--micro_batch_size", "4")),
        Layout("LoRA, 2 ranks", 2, ("--plugin", "zero2", "--micro_batch_size", "2", "--lora_rank", "4")),
        Layout("ddp, 1 process", 1, ("--plugin", "ddp", "--micro_batch_size", "4")),
    )
    if can_run(layout.options)
)


class Runs:
    """Runs of a toy model with dropout, so that every step depends on all of a checkpoint."""

    def __init__(self, work_dir: Path):
        work_dir.mkdir(parents=True, exist_ok=True)
        toy = make_toy(work_dir / "toy")
        config = toy.model / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "attention_dropout": 0.1}))
        self.runner = Runner(PROJECT_ROOT, toy, work_dir)
        self._undisturbed: dict[str, Path] = {}

    def command(self, layout: Layout, name: str, *options: str) -> list[str]:
        """The command line of a run of six steps with a checkpoint after every second one."""
        common = ("--mixed_precision", "bf16", "--num_epochs", "2", "--max_steps", str(STEPS))
        saving = ("--skip_save_each_epoch",) if "--save_interval" in options else ("--save_interval", "2")
        return self.runner.command(name, *layout.options, *common, *saving, *options)

    def train(self, layout: Layout, name: str, *options: str) -> Ended:
        """Runs train.py in ranks forked from a process that has imported all."""
        begin = time.monotonic()
        command = self.command(layout, name, *options)
        done = run_ranks("train.py", command, layout.ranks, PROJECT_ROOT, TIMEOUT_S)
        code = None if done.returncode == 124 else done.returncode
        return Ended(code, done.stdout, done.stdout, time.monotonic() - begin)

    def train_and_kill(
        self,
        layout: Layout,
        name: str,
        reached: Callable[[], bool],
        one_first: bool,
        rng: random.Random,
        *options: str,
    ) -> None:
        """Starts train.py, and kills its ranks by SIGKILL at a moment, unless it ends before.

        Args:
            layout: of the run.
            name: of the run.
            reached: True when the moment has come.
            one_first: a random rank is killed first, the others up to 0.3 s later.
            rng: chooses rank and time.
            options: of train.py.
        """
        command = self.command(layout, name, *options)
        ranks = start_ranks("train.py", command, layout.ranks, PROJECT_ROOT, os.devnull)
        while not reached() and any(rank.is_alive() for rank in ranks):
            time.sleep(0.001)
        if one_first:
            rng.choice(ranks).kill()
            time.sleep(rng.uniform(0, 0.3))
        for rank in ranks:
            rank.kill()
        for rank in ranks:
            rank.join()

    def save_dir(self, name: str) -> Path:
        """Its checkpoints and final model."""
        return self.runner.workspace / name / "save"

    def undisturbed(self, layout: Layout) -> str:
        """The name of a run that nothing disturbs, trained at the first call."""
        name = f"undisturbed-{LAYOUTS.index(layout)}"
        if not (self.save_dir(name) / "modelling").exists():
            ended = self.train(layout, name)
            assert ended.code == 0, ended.stdout[-3000:]
        return name

    def differences(self, layout: Layout, name: str) -> list[str]:
        """What is not, bit for bit, as in the undisturbed run: losses by step, final weights."""
        undisturbed = self.undisturbed(layout)
        expected, found = (
            {entry["step"]: entry["loss"] for entry in self.runner.metrics(run)} for run in (undisturbed, name)
        )
        problems = [f"loss of step {step}" for step, loss in found.items() if expected[step] != loss]
        if STEPS not in found:
            problems.append("the last step is missing")
        weights, others = self.runner.weights(undisturbed), self.runner.weights(name)
        if weights.keys() != others.keys():
            return [*problems, "names of weights"]
        return problems + [key for key, tensor in weights.items() if not torch.equal(tensor, others[key])]

    def copy_checkpoints(self, layout: Layout, name: str, steps: Sequence[int]) -> list[Path]:
        """Copies checkpoints of the undisturbed run into the save directory of another."""
        source, target = self.save_dir(self.undisturbed(layout)), self.save_dir(name)
        found = [next(source.glob(f"epoch-*_step-{step}")) for step in steps]
        return [Path(shutil.copytree(path, target / path.name)) for path in found]
