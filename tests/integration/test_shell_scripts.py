"""setup_environment.sh, run_tests.sh and .ci/run: refusals, repair, the second run. Nothing is
downloaded here.

The environments of these tests borrow the packages of the one that runs the tests, through a .pth
file.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import pytest

SHELL_SCRIPTS = ("setup_environment.sh", "quickstart.sh", "run_tests.sh", ".ci/run", "tests/fetch_sshd.sh")


@pytest.fixture
def project(project_root: Path, tmp_path: Path) -> Path:
    """A copy of what setting up needs, so that the requirements can be changed."""
    copy = tmp_path / "project"
    copy.mkdir()
    for name in ("setup_environment.sh", "requirements.txt", "requirements-engine.txt"):
        shutil.copy(project_root / name, copy)
    return copy


@pytest.fixture
def borrowing_environment(tmp_path: Path) -> Path:
    """A virtual environment without pip that sees this one's packages."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    (site_packages(environment) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment


def site_packages(environment: Path) -> Path:
    return next(environment.glob("lib/python3*/site-packages"))


def set_up(project: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    settings = {**os.environ, "PYTHON": sys.executable, **offline, **variables}
    command = ["bash", str(project / "setup_environment.sh"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=settings, cwd=project.parent)


def fake_package(environment: Path, name: str, version: str, whole: bool = True) -> Path:
    """A package without files that counts as installed; half-installed ones lack RECORD and
    INSTALLER.
    """
    info = site_packages(environment) / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if whole:
        (info / "INSTALLER").write_text("pip\n")
        (info / "RECORD").write_text("".join(f"{info.name}/{part},,\n" for part in ("METADATA", "INSTALLER", "RECORD")))
    return info


@pytest.mark.parametrize("name", SHELL_SCRIPTS)
def test_scripts_parse_and_stop_at_the_first_error(project_root: Path, name: str) -> None:
    script = project_root / name
    subprocess.run(["bash", "-n", script], check=True)
    assert "\nset -euo pipefail\n" in script.read_text()
    assert os.access(script, os.X_OK)


def test_set_up_is_done_once_and_again_when_requirements_change(project: Path, borrowing_environment: Path) -> None:
    first = set_up(project, borrowing_environment)
    assert first.returncode == 0, first.stderr
    assert "all of them ColossalAI's own outdated pins" in first.stdout

    start = time.monotonic()
    second = set_up(project, borrowing_environment)
    assert time.monotonic() - start < 10  # installing takes minutes
    assert second.returncode == 0
    assert "pip check" not in second.stdout

    with (project / "requirements.txt").open("a") as file:
        file.write("a-package-that-nobody-has==1.0\n")
    changed = set_up(project, borrowing_environment)
    assert changed.returncode != 0
    assert "a-package-that-nobody-has" in changed.stderr
    assert set_up(project, borrowing_environment).returncode != 0  # a failed set-up is not taken for done


def test_an_interrupted_set_up_is_repaired(project: Path, borrowing_environment: Path) -> None:
    assert set_up(project, borrowing_environment).returncode == 0
    (borrowing_environment / ".setup-started").touch()  # what a run that is killed leaves
    half = fake_package(borrowing_environment, "half_copied", "1.0", whole=False)
    whole = fake_package(borrowing_environment, "whole", "1.0")
    lost = fake_package(borrowing_environment, "lost_file", "1.0")
    with (lost / "RECORD").open("a") as file:
        file.write("lost_file.py,,12\n")
    leftover = site_packages(borrowing_environment) / "~umpy"
    leftover.mkdir()

    repaired = set_up(project, borrowing_environment)
    assert repaired.returncode == 0, repaired.stderr
    assert "half_copied" in repaired.stdout
    assert whole.is_dir()
    assert not any(path.exists() for path in (half, lost, leftover, borrowing_environment / ".setup-started"))


@pytest.mark.parametrize(("version", "kept"), [("2.12.1+cu130", True), ("2.5.1", False)])
def test_a_torch_that_suits_is_kept(project: Path, borrowing_environment: Path, version: str, kept: bool) -> None:
    info = fake_package(borrowing_environment, "torch", version)
    result = set_up(project, borrowing_environment)
    assert (f"keeping torch {version}" in result.stdout) == kept
    assert (result.returncode == 0) == kept  # without an index pip cannot bring the pinned one
    assert info.exists()


def test_complaints_of_other_packages_are_errors(project: Path, borrowing_environment: Path) -> None:
    info = fake_package(borrowing_environment, "unhappy", "1.0")
    with (info / "METADATA").open("a") as file:
        file.write("Requires-Dist: a-package-that-nobody-has\n")
    result = set_up(project, borrowing_environment)
    assert result.returncode == 2
    assert "a-package-that-nobody-has" in result.stderr
    assert "colossalai" not in result.stderr


def test_set_up_leaves_alone_what_is_no_environment(project: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "town.png").write_text("a bridge")
    for place in (photos, photos / "town.png"):
        refused = set_up(project, place)
        assert refused.returncode == 2
        assert str(place) in refused.stderr
    assert [path.name for path in photos.iterdir()] == ["town.png"]


@pytest.mark.parametrize("interpreter", ["/bin/false", "no-such-python"])
def test_set_up_refuses_an_interpreter_that_does_not_suit(project: Path, tmp_path: Path, interpreter: str) -> None:
    refused = set_up(project, tmp_path / "new", PYTHON=interpreter)
    assert refused.returncode == 2
    assert interpreter in refused.stderr
    assert "3.11 or 3.12" in refused.stderr
    assert not (tmp_path / "new").exists()


def test_set_up_refuses_a_machine_without_python(project: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "ls", "cat", "sed"):
        (tools / name).symlink_to(shutil.which(name))
    refused = set_up(project, tmp_path / "new", PATH=str(tools), PYTHON="")
    assert refused.returncode == 2
    assert "no Python 3.11 or 3.12" in refused.stderr
    assert not (tmp_path / "new").exists()


STUB = """#!/usr/bin/env bash
set -euo pipefail
project=$(cd "$(dirname "$0")" && pwd)
cd "$project"
venv=${COLOSSAL_LLAMA_VENV:-$project/.venv}
mkdir -p "$venv/bin" quickstart_output
ln -sf "$(type -P true)" "$venv/bin/python"
echo "ran $(basename "$0") $* in $(basename "$venv") with ${PYTHON:-any}"
[[ $(basename "$0") != "${FAILS:-}" ]]
"""


@pytest.fixture
def ci_project(project_root: Path, tmp_path: Path) -> Path:
    """A checkout of .ci/run and two scripts that only print what they were asked to do."""
    checkout = tmp_path / "checkout"
    (checkout / ".ci").mkdir(parents=True)
    shutil.copy(project_root / ".ci" / "run", checkout / ".ci")
    for name in ("quickstart.sh", "run_tests.sh"):
        (checkout / name).write_text(STUB)
    return checkout


def run_ci(checkout: Path, tmp_path: Path, interpreters: tuple[str, ...], *words: str, **variables: str):
    """Runs CI with these interpreters, of which each claims to suit, and no others."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "basename", "dirname", "ln", "mkdir", "rm", "true"):
        (tools / name).symlink_to(shutil.which(name))
    for name in interpreters:
        (tools / name).symlink_to(shutil.which("true"))
    settings = {"PATH": str(tools), "PYENV_ROOT": str(tmp_path / "none"), "HOME": str(tmp_path), **variables}
    command = ["bash", ".ci/run", *words]
    return subprocess.run(command, capture_output=True, text=True, env=settings, cwd=checkout, check=False)


def ran(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line.removeprefix("ran ") for line in done.stdout.splitlines() if line.startswith("ran ")]


def test_ci_does_what_the_readme_says_on_both_versions(ci_project: Path, tmp_path: Path) -> None:
    before = sorted(ci_project.iterdir())
    done = run_ci(ci_project, tmp_path, ("python3.11", "python3.12"), "-k", "tokenizer")
    assert done.returncode == 0, done.stderr
    first, second = (tmp_path / "bin" / name for name in ("python3.11", "python3.12"))
    assert ran(done) == [
        f"run_tests.sh --engine in .venv312 with {second}",
        f"quickstart.sh  in .venv with {first}",
        f"run_tests.sh -k tokenizer in .venv with {first}",
    ]
    assert sorted(ci_project.iterdir()) == before, "something was left behind"


def test_ci_without_python_3_12_says_so_and_keeps_what_was_there(ci_project: Path, tmp_path: Path) -> None:
    (ci_project / ".venv").mkdir()
    done = run_ci(ci_project, tmp_path, ())
    assert done.returncode == 0, done.stderr
    assert "skipped: no python3.12" in done.stdout
    assert ran(done) == ["quickstart.sh  in .venv with any", "run_tests.sh  in .venv with any"]
    assert (ci_project / ".venv").is_dir()
    assert not (ci_project / "quickstart_output").exists()


def test_ci_fails_with_any_part_and_runs_the_others(ci_project: Path, tmp_path: Path) -> None:
    done = run_ci(ci_project, tmp_path, ("python3.12",), FAILS="quickstart.sh")
    assert done.returncode == 1
    assert len(ran(done)) == 3
    assert done.stderr == "error: quickstart.sh failed\n"
