"""The README's commands over several hosts: options that torchrun, srun and train.py take."""

import argparse
import re
import shlex
import signal
from pathlib import Path

from torch.distributed.run import get_args_parser

from colossal_llama.training.command_line import build_parser
from colossal_llama.training.signals import STOPPING

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def documented(launcher: str) -> list[str]:
    """Returns the README's commands of a launcher over several hosts, whose options parse."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = re.sub(r"\\\n\s*", " ", "\n".join(blocks)).splitlines()
    found = []
    for line in lines:
        head, script, tail = line.partition("train.py ")
        if script and re.match(rf"(\w+=\S+ )*{launcher}\b", head) and "node" in head:
            build_parser().parse_args(shlex.split(tail.split(" #")[0].replace("…", "")))
            found.append(head)
    return found


def test_documented_torchrun_commands_parse():
    heads = documented("torchrun") + [
        head[head.index("torchrun") :] for head in documented("srun") if "torchrun" in head
    ]
    assert len(heads) >= 2
    for head in heads:
        options = get_args_parser().parse_args([*shlex.split(head)[1:], "train.py"])
        assert options.training_script == "train.py"
        assert options.nnodes != "1"


def test_documented_srun_commands_parse():
    srun = argparse.ArgumentParser(prog="srun", allow_abbrev=False)
    for name in ("--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task"):
        srun.add_argument(name, type=int)
    srun.add_argument("--kill-on-bad-exit", action="store_true")
    heads = documented("srun")
    assert len(heads) >= 2
    for head in heads:
        options, command = srun.parse_known_args(shlex.split(head)[1:])
        assert options.nodes > 1
        assert command[0] in ("python", "torchrun")
        assert options.ntasks_per_node == (1 if command[0] == "torchrun" else options.gpus_per_node)


def test_documented_jobs_are_signalled_in_time_and_not_through_their_shell():
    jobs = [shlex.split(line)[1:] for line in re.findall(r"^#SBATCH .*", README, flags=re.MULTILINE)]
    assert len(jobs) == len(documented("srun"))
    for job, srun in zip(jobs, documented("srun"), strict=True):
        options = dict(word.removeprefix("--").split("=") for word in job)
        name, seconds = re.fullmatch(r"([A-Z]+)@(\d+)", options.pop("signal")).groups()
        assert signal.Signals[f"SIG{name}"] in STOPPING
        assert f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={seconds}" in README
        assert (
            options.items() <= dict(word.removeprefix("--").split("=") for word in srun.split() if "=" in word).items()
        )
