"""The preflight compares every part of a directory on all hosts; what is not whole is refused."""

import shutil

import pytest

from colossal_llama.cluster.preflight import parse_arguments, parts_to_compare
from colossal_llama.utils.errors import UserError


@pytest.fixture
def directory(toy, tmp_path):
    """A directory of parts."""
    for part in toy.parts:
        shutil.copytree(part, tmp_path / "parts" / part.name)
    return tmp_path / "parts"


def test_directories_are_their_parts_and_what_is_not_here_is_asked_for(directory, tmp_path, monkeypatch):
    words = ["--dataset", f"{directory},{tmp_path / 'elsewhere'}", "--record", str(tmp_path / "record.json")]
    monkeypatch.setattr("sys.argv", ["preflight.py", *words])
    parts = [directory / f"part-{number:05d}" for number in range(3)]
    assert parse_arguments().dataset == [*parts, tmp_path / "elsewhere"]


def test_a_preparation_that_is_not_whole_is_refused_before_any_host_is_asked(directory, tmp_path, monkeypatch, capsys):
    shutil.rmtree(directory / "part-00001")
    with pytest.raises(UserError, match="part-00001 is missing"):
        parts_to_compare([directory])
    monkeypatch.setattr("sys.argv", ["preflight.py", "--dataset", str(directory), "--hostfile", "no"])
    with pytest.raises(SystemExit) as end:
        parse_arguments()
    assert end.value.code == 2
    assert "part-00001 is missing" in capsys.readouterr().err
