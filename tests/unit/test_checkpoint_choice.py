"""Which checkpoint a run goes on from, what of a save directory it may not begin from, and records that go back with it."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from colossal_llama.training.checkpoint import Origin, Progress, entry_written_by_a_run, find_checkpoint
from colossal_llama.training.metrics import begin_record
from colossal_llama.utils.errors import UserError

STATES = {"progress": asdict(Progress(step=2)), "origin": asdict(Origin("d", "t", 1, 0, "none", None)), "world_size": 1}


@pytest.fixture
def save_dir(tmp_path: Path) -> Path:
    """A complete checkpoint, and three newer directories that are none."""
    for step in (2, 4, 5):
        for folder in ("modelling", "optimizer"):
            (tmp_path / f"epoch-0_step-{step}" / folder).mkdir(parents=True)
        write_states(tmp_path / f"epoch-0_step-{step}", STATES)
    (tmp_path / "epoch-0_step-4" / "optimizer").rmdir()
    write_states(tmp_path / "epoch-0_step-5", {**STATES, "origin": None})
    (tmp_path / "epoch-0_step-99").mkdir()
    return tmp_path


def write_states(checkpoint: Path, states: dict) -> None:
    kept = {name: value for name, value in states.items() if value is not None}
    (checkpoint / "running_states.json").write_text(json.dumps(kept))


def test_auto_goes_on_to_the_newest_complete_one_and_says_what_it_skips(save_dir):
    notices: list[str] = []
    found = find_checkpoint("auto", save_dir, notices.append)
    assert found.path == save_dir / "epoch-0_step-2"
    reasons = {"99": "cannot be read (No such file", "5": "it lacks origin", "4": "optimizer/ is missing"}
    assert len(notices) == len(reasons)
    for (step, reason), notice in zip(reasons.items(), notices, strict=True):
        assert notice.startswith(f"skipped: {save_dir / f'epoch-0_step-{step}'} is not a complete checkpoint")
        assert reason in notice


def test_one_that_is_named_must_be_complete_and_so_must_one_of_all(save_dir):
    with pytest.raises(UserError, match="optimizer/ is missing: copy it again, name another, or give auto"):
        find_checkpoint(str(save_dir / "epoch-0_step-4"), save_dir)
    (save_dir / "epoch-0_step-2" / "optimizer").rmdir()
    with pytest.raises(UserError, match="has no complete checkpoint: move these away") as error:
        find_checkpoint("auto", save_dir)
    assert len(error.value.problems) == 5


def test_what_a_run_writes_in_its_save_directory(tmp_path):
    (tmp_path / "linked").symlink_to(tmp_path / "S" / "modelling")
    for path, entry in {
        "S/modelling": "modelling",
        "S/x/../modelling_merged": "modelling_merged",
        "S/epoch-0_step-2/modelling": "epoch-0_step-2",
        "linked": "modelling",
        "S/superseded-0-epoch-0_step-2/modelling": None,
        "S/base": None,
        "S": None,
        "modelling": None,
    }.items():
        assert entry_written_by_a_run(tmp_path / path, tmp_path / "S") == entry, path


def test_a_record_has_every_step_once_after_going_back(tmp_path):
    record, lines = tmp_path / "bad_steps.jsonl", [json.dumps({"step": step}) + "\n" for step in (3, 7, 9)]
    record.write_text("".join(lines) + '{"st')
    begin_record(record, 7)
    assert record.read_text() == "".join(lines[:2])
    begin_record(record, 0)
    assert not record.exists()
    assert (tmp_path / "bad_steps-0.jsonl").read_text() == "".join(lines[:2])
