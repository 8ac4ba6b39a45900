"""quickstart.sh from an empty directory to the answers, interrupted once on the way."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest


def quick_start(project_root: Path, python: Path | str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs it with an interpreter that has everything, so that nothing is installed."""
    command = ["bash", str(project_root / "quickstart.sh"), *map(str, arguments)]
    settings = {**os.environ, "COLOSSAL_LLAMA_PYTHON": str(python)}
    return subprocess.run(command, capture_output=True, text=True, env=settings, cwd=project_root.parent)


def python_that_fails_at(script: str, directory: Path) -> Path:
    """An interpreter that runs everything but `script`."""
    wrapper = directory / "python"
    wrapper.write_text(
        f'#!/bin/sh\nif [ "$1" = {script} ]; then echo "no space left on device" >&2; exit 1; fi\n'
        f'exec {sys.executable} "$@"\n'
    )
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    return wrapper


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_quick_start_goes_on_after_a_failure_and_answers_what_it_was_taught(project_root: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    failed = quick_start(project_root, python_that_fails_at("prepare_pretrain_dataset.py", tmp_path), work)
    assert failed.returncode == 2
    assert "no space left on device" in failed.stderr
    assert "prepare_pretrain.log" in failed.stderr

    finished = quick_start(project_root, sys.executable, work)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stdout.count("done before") == 5
    answers = [json.loads(line) for line in (work / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(answers) >= 40
    as_taught = [answer["generated"] == answer["messages"][-1]["content"] for answer in answers]
    assert sum(as_taught) >= 0.9 * len(answers)
    assert f"{sum(as_taught)} of {len(answers)} answers are word for word what the example teaches" in finished.stdout
    for stage in ("pretrain", "sft"):
        metrics = (work / stage / "tensorboard" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        losses = [json.loads(line)["loss"] for line in metrics]
        assert losses[-1] < 0.7 * losses[0]
    assert (work / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_quick_start_refuses_directories_that_are_not_its_own(project_root: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    refused = quick_start(project_root, sys.executable, tmp_path)
    assert refused.returncode == 2
    assert f"{tmp_path} contains other files" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

    refused = quick_start(project_root, sys.executable, tmp_path / "mine.txt")
    assert refused.returncode == 2
    assert "is a file" in refused.stderr

    (tmp_path / ".quickstart").write_text("of another version")
    refused = quick_start(project_root, sys.executable, tmp_path)
    assert refused.returncode == 2
    assert "another version" in refused.stderr
