"""Locks: exclusive or shared; a refusal names the holder; a killed process releases its own."""

import subprocess
import sys

import pytest

from colossal_llama.utils.file_lock import directory_lock, file_lock

HOLDS = """
import sys, time
from pathlib import Path
from colossal_llama.utils.file_lock import directory_lock
with directory_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_shared_locks_exclude_only_exclusive_ones(tmp_path):
    path = tmp_path / "lock"
    with (
        file_lock(path, shared=True),
        file_lock(path, shared=True),
        pytest.raises(BlockingIOError),
        file_lock(path),
    ):
        raise AssertionError("shared and exclusive at once")
    with file_lock(path), pytest.raises(BlockingIOError), file_lock(path, shared=True):
        raise AssertionError("exclusive and shared at once")
    with file_lock(path, wait=True):
        pass
    assert path.read_text() == ""


def test_a_refusal_names_the_holder_and_a_killed_holder_has_released_its_lock(tmp_path, project_root):
    directory = tmp_path / "not" / "yet"
    command = [sys.executable, "-c", HOLDS, directory]
    with subprocess.Popen(command, cwd=project_root, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError) as refusal, directory_lock(directory):
            pass
        assert refusal.value.filename.startswith(f"process {holder.pid} on ")
        holder.kill()
    with directory_lock(directory):
        assert len((directory / ".lock").read_text().splitlines()) == 1


def test_a_block_that_fails_leaves_no_lock_and_no_empty_directory(tmp_path):
    directory = tmp_path / "new" / "deeper"
    with pytest.raises(ValueError, match="refused"), directory_lock(directory):
        raise ValueError("refused")
    assert not (tmp_path / "new").exists()
    directory.mkdir(parents=True)
    (directory / "result").touch()
    with pytest.raises(ValueError, match="late"), directory_lock(directory):
        raise ValueError("late")
    assert [path.name for path in directory.iterdir()] == ["result"]
