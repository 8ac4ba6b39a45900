"""A model by name in a run: one download for all ranks, its commit recorded, offline the cache."""

import json
import subprocess
import sys

import pytest

from tests.support.hub_server import HubServer
from tests.support.training_runs import make_toy


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_train_a_model_that_is_given_by_name(project_root, tmp_path):
    toy = make_toy(tmp_path / "toy")
    with HubServer() as hub:
        commit = hub.add("org/toy", toy.model)

        def train(name: str, save_dir: str, **variables: str) -> subprocess.CompletedProcess:
            command = [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc_per_node",
                "2",
                "train.py",
            ]
            command += ["--pretrained", name, "--dataset", *map(str, toy.parts), "--max_length", "96"]
            command += ["--plugin", "zero2", "--mixed_precision", "bf16", "--max_steps", "1", "--lora_rank", "2"]
            outputs = {"save_dir": save_dir, "tensorboard_dir": f"{save_dir}.logs", "config_file": f"{save_dir}.json"}
            command += [word for option, path in outputs.items() for word in (f"--{option}", str(tmp_path / path))]
            environment = hub.environment(tmp_path, **variables)
            return subprocess.run(
                command, cwd=project_root, env=environment, capture_output=True, text=True, check=False
            )

        done = train("org/toy", "first")
        assert done.returncode == 0, done.stderr
        assert f"org/toy at revision {commit}" in done.stdout
        assert hub.downloads().count("config.json") == 1
        record = json.loads((tmp_path / "first.json").read_text())
        assert record["arguments"]["pretrained"] == "org/toy"
        assert record["pretrained_repository"]["revision"] == commit
        adapter = json.loads((tmp_path / "first" / "modelling" / "adapter_config.json").read_text())
        assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("org/toy", commit)

        hub.requests.clear()
        done = train("org/toy", "second", HF_HUB_OFFLINE="1")
        assert done.returncode == 0, done.stderr
        assert hub.requests == []

        done = train("org/nothing", "third")
        assert done.returncode != 0
        assert done.stderr.count("has no model org/nothing") == 1
