"""Preflight: from the surveys of hosts to their problems; what a survey reads from nvidia-smi."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from colossal_llama.cluster.host_checks import HostReport, Problem, RunRequirements, compare_hosts
from colossal_llama.cluster.hostfile import read_hostfile
from colossal_llama.cluster.preflight import write_record
from colossal_llama.cluster.survey import survey
from colossal_llama.training.command_line import parse_arguments
from colossal_llama.utils.environment import code_fingerprint, installed_packages, query_gpus
from colossal_llama.utils.errors import UserError

NEEDS = RunRequirements(nproc_per_node=2, save_dir=Path("checkpoints"), min_free_bytes=10 * 2**30)


def gpu(name: str = "H200", used_mib: float = 4) -> dict[str, str]:
    return {"index": "0", "name": name, "memory.total": "143771", "memory.used": str(used_mib), "driver_version": "580"}


def report(host: str, skew_s: float = 0.0, skew_error_s: float = 0.01, **differences: object) -> HostReport:
    """A healthy host with two GPUs, but for the differences."""
    healthy = {
        "python": "3.12.1",
        "packages": {"torch": "2.13.0", "peft": "0.13.2"},
        "code": "c0de",
        "directories": {"/data/model": "a", "/data/part": "b"},
        "free_bytes": 2**40,
        "sees_mark": True,
        "gpus": [gpu(), gpu()],
        "gpu_error": None,
    }
    return HostReport(host, healthy | differences, skew_s, skew_error_s)


def test_hosts_that_are_alike_have_no_problems():
    assert compare_hosts([report(f"node-{number}") for number in range(4)], NEEDS) == []
    assert compare_hosts([report(f"node-{number}", gpus=[]) for number in range(4)], NEEDS) == []  # all of them CPUs


def test_a_driver_that_fails_is_no_host_without_gpus(tmp_path, monkeypatch, project_root, capsys):
    """On one host, on all of them, and when GPUs are chosen."""
    broken = {"gpus": [], "gpu_error": "no driver"}
    assert [problem.host for problem in compare_hosts([report("a", **broken), report("b", **broken)], NEEDS)] == [
        "a",
        "b",
    ]
    (tmp_path / "nvidia-smi").write_text(
        "#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n"
    )
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert query_gpus() == ([], "Failed to initialize NVML: Driver/library version mismatch")
    script = project_root / "colossal_llama" / "cluster" / "least_used_gpus.sh"
    chosen = subprocess.run(["bash", script, "8"], capture_output=True, text=True, check=False)
    assert "version mismatch" in chosen.stderr
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen.stdout.strip())
    with pytest.raises(SystemExit):
        parse_arguments(["--dataset", str(tmp_path), "--plugin", "zero2"], has_gpu=False)
    assert "nvidia-smi fails on this host" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("check", "difference", "words"),
    [
        ("python", {"python": "3.11.7"}, "3.11.7, elsewhere 3.12.1"),
        (
            "packages",
            {"packages": {"torch": "2.12.0", "peft": None}},
            "peft is missing (elsewhere 0.13.2), torch 2.12.0",
        ),
        ("code", {"code": "0ther"}, "check out the same version"),
        ("data", {"directories": {"/data/model": "a", "/data/part": None}}, "/data/part does not exist"),
        ("data", {"directories": {"/data/model": "stale", "/data/part": "b"}}, "/data/model differs"),
        ("save_dir", {"sees_mark": False}, "mount the same file system"),
        ("disk", {"free_bytes": 9 * 2**30}, "9.0 GiB free"),
        ("gpus", {"gpus": [gpu()]}, "1 GPUs, and --nproc_per_node is 2"),
        ("gpus", {"gpus": []}, "0 GPUs"),
        ("gpus", {"gpus": [], "gpu_error": "Driver/library version mismatch"}, "(Driver/library version mismatch)"),
        (
            "gpus",
            {"gpus": [gpu(used_mib=70_000), gpu(), gpu(used_mib=60_000)]},
            "1 of the 2 least used GPUs are in use (up to 60,000",
        ),
        ("gpus", {"gpus": [gpu("H100"), gpu("H100")]}, "H100, elsewhere H200"),
        ("clock", {"skew_s": -7.0}, "-7.0 s"),
    ],
)
def test_the_one_that_differs_is_named(check, difference, words):
    problems = compare_hosts([report("node-1"), report("node-2", **difference), report("node-3")], NEEDS)
    assert [(problem.host, problem.check) for problem in problems] == [("node-2", check)]
    assert words in problems[0].text


def test_a_clock_is_not_blamed_for_a_slow_network():
    assert compare_hosts([report("node-1"), report("node-2", skew_s=3.0, skew_error_s=1.5)], NEEDS) == []


def test_what_cannot_be_asked_is_listed_in_the_order_of_the_hostfile():
    down = HostReport("node-1", failure=Problem("node-1", "ssh", "is down"))
    problems = compare_hosts([down, report("node-2", free_bytes=0)], NEEDS)
    assert [problem.host for problem in problems] == ["node-1", "node-2"]


def test_a_survey_of_this_host(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, NVIDIA H200, 143771, 12, 580.1'\necho '1, NVIDIA H200, 143771, 9000, 580.1'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert [(one["index"], one["memory.used"]) for one in query_gpus()[0]] == [("0", "12"), ("1", "9000")]
    (tmp_path / "empty").mkdir()
    found = survey(tmp_path / "not" / "yet", tmp_path / "no mark", [tmp_path, tmp_path / "empty", tmp_path / "absent"])
    assert list(map(bool, found["directories"].values())) == [True, False, False]
    assert not found["sees_mark"]
    assert found["free_bytes"] > 0
    assert installed_packages()["torch"]
    assert code_fingerprint() == code_fingerprint()


def test_a_hostfile(tmp_path):
    path = tmp_path / "hostfile"
    path.write_text("a\n\n b \n")
    assert read_hostfile(path) == ["a", "b"]
    for content, words in (("a\nb\na\n", "names a more than once"), ("\n", "has no host name")):
        path.write_text(content)
        with pytest.raises(UserError, match=words):
            read_hostfile(path)


def test_preflight_refuses_what_it_could_not_write_or_read(project_root, tmp_path):
    """Before it asks any host."""
    (tmp_path / "hosts").write_bytes("nœud-1\n".encode("latin-1", "replace") + b"\xff\n")
    for words, said in (
        (["--record", tmp_path / "absent" / "x.json"], "absent does not exist"),
        (["--record", tmp_path], "is a directory"),
        (["--record", tmp_path / "x.json"], "is not UTF-8 text"),
    ):
        command = [sys.executable, "colossal_llama/cluster/preflight.py", "--hostfile", tmp_path / "hosts", *words]
        done = subprocess.run(command, cwd=project_root, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_the_record_of_preflight_has_null_for_a_host_without_a_survey(tmp_path):
    failure = Problem("node-2", "ssh", "no ssh server answers")
    write_record(tmp_path / "x.json", [HostReport("node-2", failure=failure)], None, [failure])
    record = json.loads((tmp_path / "x.json").read_text())
    assert sorted(record) == ["all_reduce", "hosts", "problems", "time_s"]
    assert record["problems"] == [{"host": "node-2", "check": "ssh", "text": "no ssh server answers"}]
    assert record["hosts"] == [
        {"host": "node-2", "survey": None, "skew_s": 0.0, "skew_error_s": 0.0, "failure": record["problems"][0]}
    ]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "vanished").symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=f"error; {tmp_path} must be readable"):
        survey(tmp_path, None, [tmp_path])
