"""Odd environments of a launcher: train.py refuses them in one sentence, before it imports PyTorch.

Every tenth is harmless and must train, or has a port in use, which is found after the imports.
"""

import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.campaigns.outcome import REFUSED, WHOLE, WRONG, Outcome, run_command
from tests.support.training_runs import MAX_LENGTH, Toy, make_toy

_ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
_NO_NUMBERS = ("abc", "", "-1", "1.5", " 0", "0x1", "١", "1e3", "9" * 20, "0;id", "$(id)", "None", "0\n")
_NO_ADDRESSES = (
    *("no-such-host.invalid", "a b", "-oProxyCommand=id", "é.invalid", "x" * 300, "[::1", "http://localhost"),
    *("localhost:29500", "a" * 64 + ".b", ".", "$(id)", "256.256.256.256", "\udcff"),
)
_NO_INTERFACES = ("xyz", "eth99", "lo,xyz", "lo ", "^lo", "-", "\n", "lo:1")
_NO_SECONDS = ("abc", "", "0", "-5", "inf", "nan", "1e3", "30s", ".")
_SLURM = {"SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1", "SLURM_JOB_ID": "77"}
_NO_SLURM = {
    "SLURM_PROCID": ("x", "", "7"),
    "SLURM_LOCALID": ("x", "-1"),
    "SLURM_NTASKS": ("x", "0", ""),
    "SLURM_JOB_ID": ("x", "", "1_2"),
    "SLURM_STEP_NODELIST": ("[", "no-such-host[1-2].invalid", "a b", ","),
    "SLURM_STEP_NUM_NODES": ("x", "0"),
}
_SLOW = ("harmless", "port in use")
_HARMLESS = (
    {"MASTER_ADDR": "no-such-host.invalid", "MASTER_PORT": "abc"},
    {"SLURM_JOB_ID": "x", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
    {"GLOO_SOCKET_IFNAME": "lo"},
    {"COLOSSAL_LLAMA_HOST_TIMEOUT_S": "2.5"},
    {"OMP_NUM_THREADS": "abc"},
    {"TORCHELASTIC_RESTART_COUNT": "x", "GROUP_RANK": "x"},
)


def run_trials(trials: int, seed: int, work_dir: Path) -> Iterator[Outcome]:
    """Yields the end of each trial: half a second, ten for the tenth."""
    generator = random.Random(seed)
    toy = make_toy(work_dir / "toy")
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        kinds = _kinds(str(listener.getsockname()[1]))
        for trial in range(trials):
            quick = [name for name in kinds if name not in _SLOW]
            kind = generator.choice(_SLOW) if trial % 10 == 9 else generator.choice(quick)
            variables = kinds[kind](generator)
            ended = run_command(_command(toy, work_dir / str(trial)), timeout_s=120, env=variables)
            result = ended.result()
            if result in (WHOLE, REFUSED) and result != (WHOLE if kind == "harmless" else REFUSED):
                result = WRONG
            shown = "" if result in (WHOLE, REFUSED) else ended.last_lines()
            yield Outcome(kind, result, f"trial {trial}: {variables}", shown, ended.duration_s)


def _kinds(used_port: str) -> dict[str, Callable[[random.Random], dict[str, str]]]:
    """For each kind a function that makes an environment of it."""

    def some(generator: random.Random) -> dict[str, str]:
        while True:
            names = generator.sample(sorted(_ALONE), generator.randint(1, 4))
            if {"RANK", "LOCAL_RANK", "WORLD_SIZE"} & set(names):
                return {name: _ALONE[name] for name in names}

    def odd_slurm(generator: random.Random) -> dict[str, str]:
        name = generator.choice(sorted(_NO_SLURM))
        return {**_SLURM, name: generator.choice(_NO_SLURM[name])}

    contradictions = (
        {"RANK": "1"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"WORLD_SIZE": "0"},
        {"LOCAL_RANK": "4", "LOCAL_WORLD_SIZE": "4"},
        {"LOCAL_WORLD_SIZE": "0"},
        {"GROUP_WORLD_SIZE": "0"},
        {"MASTER_PORT": "0"},
        {"MASTER_PORT": "65536"},
    )
    numbers = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
    return {
        "harmless": lambda generator: dict(generator.choice(_HARMLESS)),
        "some variables only": some,
        "no number": lambda generator: {**_ALONE, generator.choice(numbers): generator.choice(_NO_NUMBERS)},
        "contradiction": lambda generator: {**_ALONE, **generator.choice(contradictions)},
        "unknown address": lambda generator: {**_ALONE, "MASTER_ADDR": generator.choice(_NO_ADDRESSES)},
        "unknown interface": lambda generator: {"GLOO_SOCKET_IFNAME": generator.choice(_NO_INTERFACES)},
        "odd time limit": lambda generator: {"COLOSSAL_LLAMA_HOST_TIMEOUT_S": generator.choice(_NO_SECONDS)},
        "SLURM": odd_slurm,
        "port in use": lambda generator: {**_ALONE, "MASTER_PORT": used_port},
    }


def _command(toy: Toy, directory: Path) -> list[str]:
    words = ["train.py", "--pretrained", toy.model, "--dataset", toy.parts[0], "--max_length", MAX_LENGTH]
    words += ["--plugin", "zero2", "--mixed_precision", "fp32", "--max_steps", 1, "--save_dir", directory / "save"]
    words += ["--tensorboard_dir", directory / "logs", "--config_file", directory / "config.json"]
    return [str(word) for word in words]
