"""Directories that appear whole or not at all, and what killed processes leave behind."""

import os
import subprocess
import sys

import pytest

from colossal_llama.utils.atomic_io import atomic_directory, remove_abandoned_files, temporary_path


def test_a_directory_appears_when_the_block_ends_and_not_before(tmp_path):
    with atomic_directory(tmp_path / "out") as directory:
        (directory / "a").write_text("a")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "a"]
    with pytest.raises(ZeroDivisionError), atomic_directory(tmp_path / "other"):
        _ = 1 / 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_left_is_removed_and_what_a_running_one_writes_is_not(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    own = temporary_path(tmp_path / "out").name
    left, written, other = (
        tmp_path / own.replace(str(os.getpid()), str(process)) for process in (ended.pid, os.getppid(), "elsewhere")
    )
    for directory in (left, written, other):
        (directory / "below").mkdir(parents=True)
    with atomic_directory(tmp_path / "out"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"out", written.name, other.name}


def test_files_that_killed_processes_left_are_removed_and_others_are_not(tmp_path):
    for name in (".a.json.tmp-host-7", ".b.json.tmp-host-7", ".a.json.tmp-note", "a.json"):
        (tmp_path / name).touch()
    remove_abandoned_files(tmp_path, ["a.json"])
    assert {path.name for path in tmp_path.iterdir()} == {".b.json.tmp-host-7", ".a.json.tmp-note", "a.json"}
    remove_abandoned_files(tmp_path / "none", ["a.json"])
