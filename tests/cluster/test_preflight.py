"""The preflight compares directories of parts on all hosts, with every part in them."""

import shutil

import pytest

from colossal_llama.cluster.preflight import parse_arguments
from colossal_llama.cluster.survey import survey


@pytest.fixture
def output_dir(toy, tmp_path):
    """An output directory of a preparation, with a record beside its parts."""
    for part in toy.parts:
        shutil.copytree(part, tmp_path / "data" / "arrow" / part.name)
    (tmp_path / "data" / "last_run.json").write_text("{}")
    return tmp_path / "data"


def test_an_output_directory_stands_for_its_parts_and_what_is_not_here_is_asked_for(output_dir, tmp_path, monkeypatch):
    words = ["--dataset", f"{output_dir},{tmp_path / 'elsewhere'}", "--record", str(tmp_path / "record.json")]
    monkeypatch.setattr("sys.argv", ["preflight.py", *words])
    assert parse_arguments().dataset == [output_dir / "arrow", tmp_path / "elsewhere"]


@pytest.mark.parametrize("change", ["missing", "further", "other"])
def test_a_part_that_differs_changes_the_survey_of_its_directory(change, output_dir, tmp_path):
    arrow = output_dir / "arrow"
    before = survey(tmp_path, None, [arrow])["directories"]
    if change == "missing":
        shutil.rmtree(arrow / "part-00001")
    elif change == "further":
        shutil.copytree(arrow / "part-00001", arrow / "part-00003")
    else:
        (arrow / "part-00001" / "part.json").write_text("{}")
    assert survey(tmp_path, None, [arrow])["directories"] != before
