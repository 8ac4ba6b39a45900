"""Rank and world size from the variables of srun or torchrun."""

import os
import socket

import pytest

from colossal_llama.utils.distributed_env import (
    adopt_slurm_variables,
    first_host,
    is_multi_host,
    is_rank_zero,
    launcher_problems,
    nccl_interface_problems,
    speaks_for_host,
)
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


LAUNCHED = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        ({}, []),
        ({"RANK": None}, ["LOCAL_RANK, WORLD_SIZE set without RANK"]),
        ({"MASTER_PORT": None, "MASTER_ADDR": ""}, ["set without MASTER_ADDR, MASTER_PORT"]),
        ({"RANK": "abc", "WORLD_SIZE": "-1"}, ["RANK='abc' is not a whole", "WORLD_SIZE='-1' is not a whole"]),
        ({"RANK": ""}, ["RANK='' is not a whole number"]),
        ({"RANK": "2"}, ["RANK is 2, and WORLD_SIZE is 2: ranks count from 0 to 1"]),
        ({"LOCAL_WORLD_SIZE": "1"}, ["LOCAL_RANK is 1, and LOCAL_WORLD_SIZE is 1"]),
        ({"MASTER_PORT": "99999"}, ["MASTER_PORT=99999 is no port"]),
        ({"MASTER_ADDR": "no-such-host.invalid"}, ["MASTER_ADDR='no-such-host.invalid' cannot be resolved"]),
        ({"GLOO_SOCKET_IFNAME": "lo,xyz"}, ["has no network interface 'xyz'"]),
        ({"COLOSSAL_LLAMA_HOST_TIMEOUT_S": "0"}, ["COLOSSAL_LLAMA_HOST_TIMEOUT_S='0' is not a number of seconds"]),
    ],
)
def test_odd_variables_of_a_launcher(no_launcher, change, problems):
    for name, value in {**LAUNCHED, **change}.items():
        if value is not None:
            no_launcher.setenv(name, value)
    found = launcher_problems()
    assert len(found) == len(problems)
    assert all(words in problem for problem, words in zip(found, problems, strict=True))


def test_a_process_that_is_no_rank_is_never_silent(no_launcher):
    """Leftovers in a shell, or ranks that contradict each other, are no launcher's."""

    def is_heard() -> bool:
        assert speaks_for_host() == is_rank_zero()
        return speaks_for_host() and not is_multi_host()

    no_launcher.setenv("GROUP_WORLD_SIZE", "2")
    assert is_heard()
    for name, value in LAUNCHED.items():
        assert is_heard()
        no_launcher.setenv(name, value)
    assert is_multi_host()
    assert not speaks_for_host() | is_rank_zero()
    no_launcher.setenv("RANK", "2")
    assert is_heard()


def test_slurm_s_names_are_given_with_what_is_missing(no_launcher):
    for name, value in of_srun(0, 4, 2, "[").items():
        no_launcher.setenv(name, value)
    no_launcher.delenv("SLURM_STEP_NUM_TASKS")
    no_launcher.delenv("SLURM_NTASKS")
    adopt_slurm_variables()
    (problem,) = launcher_problems()
    assert "WORLD_SIZE (SLURM_NTASKS), MASTER_ADDR (SLURM_STEP_NODELIST)" in problem


@pytest.mark.parametrize(
    ("names", "is_good"),
    [("", True), ("e", True), ("=e", False), ("=eth0", True), ("^lo", True), ("ib,eth", True), ("ib", False)],
)
def test_interfaces_as_nccl_reads_them(no_launcher, names, is_good):
    no_launcher.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0")])
    no_launcher.setenv("NCCL_SOCKET_IFNAME", names)
    assert (nccl_interface_problems() == []) == is_good
