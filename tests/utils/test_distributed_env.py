"""Rank and world size from the variables of srun or torchrun."""

import os

import pytest

from colossal_llama.utils.distributed_env import adopt_slurm_variables, first_host
from tests.support.slurm import RANK_VARIABLES, of_srun


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("gpu-7", "gpu-7"),
        ("alpha,beta", "alpha"),
        ("gpu[007-012,020],login", "gpu007"),
        ("rack[2-3]n[1,4]-ib", "rack2n1-ib"),
        ("n[5]", "n5"),
    ],
)
def test_the_first_host_of_a_node_list(nodelist, first):
    assert first_host(nodelist) == first


@pytest.fixture
def no_launcher(monkeypatch):
    """An environment without any launcher's variables, put back afterwards."""
    for name in [name for name in os.environ if name in RANK_VARIABLES or name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name in RANK_VARIABLES:  # so that what the code sets is forgotten again
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def test_every_task_of_a_step_gets_its_place(no_launcher):
    places = []
    for task in range(8):
        for name in RANK_VARIABLES:
            no_launcher.delenv(name, raising=False)
        for name, value in of_srun(task, 4, 2, "gpu[11-12]").items():
            no_launcher.setenv(name, value)
        adopt_slurm_variables()
        places.append({name: os.environ[name] for name in RANK_VARIABLES})
    assert [place["RANK"] for place in places] == [str(task) for task in range(8)]
    assert [place["LOCAL_RANK"] for place in places] == list("01230123")
    assert [place["GROUP_RANK"] for place in places] == list("00001111")
    for name, value in {
        "WORLD_SIZE": "8",
        "GROUP_WORLD_SIZE": "2",
        "MASTER_ADDR": "gpu11",
        "MASTER_PORT": "24711",
    }.items():
        assert {place[name] for place in places} == {value}


@pytest.mark.parametrize(
    "kept",
    [("SLURM_STEP_ID",), ("RANK",)],
    ids=["the script of sbatch is no task of a step", "torchrun stands between"],
)
def test_other_processes_of_a_job_are_left_alone(no_launcher, kept):
    variables = of_srun(0, 4, 2, "gpu[11-12]")
    if kept == ("SLURM_STEP_ID",):
        del variables["SLURM_STEP_ID"]
    else:
        variables["RANK"] = "5"
    for name, value in variables.items():
        no_launcher.setenv(name, value)
    adopt_slurm_variables()
    assert "MASTER_ADDR" not in os.environ
    assert os.environ.get("RANK") == variables.get("RANK")
