"""Checkpoint discovery and archive; entries of a save directory; records truncated on resuming."""

import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from colossal_llama.training.checkpoint.archive import (
    archive,
    archive_foreign_writes,
    entry_written_by_a_run,
    is_name_of_a_run,
    make_way,
    own_checkpoints,
)
from colossal_llama.training.checkpoint.discovery import find_checkpoint
from colossal_llama.training.checkpoint.state import Origin, Progress
from colossal_llama.training.metrics import begin_record
from colossal_llama.utils.atomic_io import clean_up_interrupted_writes
from colossal_llama.utils.checksums import write_checksums
from colossal_llama.utils.errors import UserError

STATES = {"progress": asdict(Progress(step=2)), "origin": asdict(Origin("d", "t", 1, 0, "none", None)), "world_size": 1}


FILES = (
    "modelling/model-00001-of-00001.safetensors",
    "optimizer/rank-00000-00000.safetensors",
    "random_states/rank-00000-00000.safetensors",
)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


# By step: what happens to a checkpoint, and what is said of it.
DAMAGES = {
    4: (lambda path: shutil.rmtree(path / "optimizer"), "optimizer/ is missing"),
    5: (lambda path: write_states(path, {**STATES, "origin": None}), "it lacks origin"),
    6: (lambda path: cut(path / FILES[0]), f"{FILES[0]} cannot be read: it is incomplete or damaged"),
    7: (
        lambda path: (path / FILES[0]).unlink(),
        "names weight files that are not there: model-00001-of-00001.safetensors",
    ),
    8: (lambda path: cut(path / FILES[1]), f"{FILES[1]} cannot be read: it is incomplete or damaged"),
    9: (lambda path: (path / FILES[1]).unlink(), f"{FILES[1]} cannot be read: No such file"),
    10: (lambda path: cut(path / "optimizer" / "index.json"), "optimizer/index.json cannot be read"),
    11: (lambda path: (path / FILES[2]).unlink(), "random_states/ has 0 files of 1"),
    99: (lambda path: (path / "running_states.json").unlink(), "running_states.json cannot be read (No such file"),
}


@pytest.fixture
def save_dir(tmp_path: Path) -> Path:
    """A complete checkpoint, and newer directories that are none."""
    for step in (2, *DAMAGES):
        checkpoint = tmp_path / f"epoch-0_step-{step}"
        for file in FILES:
            (checkpoint / file).parent.mkdir(parents=True, exist_ok=True)
            save_file({"x": np.zeros(64)}, checkpoint / file)
        (checkpoint / "optimizer" / "index.json").write_text(
            json.dumps({"files": {"rank-00000-00000.safetensors": 512}})
        )
        weight_map = {"weight_map": {"x": "model-00001-of-00001.safetensors"}}
        (checkpoint / "modelling" / "model.safetensors.index.json").write_text(json.dumps(weight_map))
        write_states(checkpoint, STATES)
        if step in DAMAGES:
            DAMAGES[step][0](checkpoint)
    return tmp_path


def write_states(checkpoint: Path, states: dict) -> None:
    kept = {name: value for name, value in states.items() if value is not None}
    (checkpoint / "running_states.json").write_text(json.dumps(kept))


def test_auto_resumes_the_newest_complete_checkpoint_and_logs_what_it_skips(save_dir):
    notices: list[str] = []
    found = find_checkpoint("auto", save_dir, notices.append)
    assert found.path == save_dir / "epoch-0_step-2"
    assert len(notices) == len(DAMAGES)
    for (step, (_, reason)), notice in zip(reversed(DAMAGES.items()), notices, strict=True):
        assert notice.startswith(f"skipped: {save_dir / f'epoch-0_step-{step}'} is not a complete checkpoint")
        assert reason in notice


def test_auto_logs_which_checkpoints_another_run_has_archived(save_dir):
    """One forgotten --load_checkpoint auto would else cost the run its past without a word."""
    for step in DAMAGES:
        shutil.rmtree(save_dir / f"epoch-0_step-{step}")
    notices: list[str] = []
    assert find_checkpoint("auto", save_dir, notices.append) is not None
    assert notices == []
    moved = archive(save_dir / "epoch-0_step-2")
    assert find_checkpoint("auto", save_dir, notices.append) is None
    assert len(notices) == 1
    assert "auto begins afresh" in notices[0]
    assert moved.name == "superseded-0-epoch-0_step-2"
    assert moved.name in notices[0]


def test_a_named_checkpoint_must_be_complete_and_so_must_one_of_all(save_dir):
    for step in (4, 6):
        reason = re.escape(f"{DAMAGES[step][1]}") + ".*: copy it again, name another, or give auto"
        with pytest.raises(UserError, match=reason):
            find_checkpoint(str(save_dir / f"epoch-0_step-{step}"), save_dir)
    shutil.rmtree(save_dir / "epoch-0_step-2" / "optimizer")
    with pytest.raises(UserError, match="has no complete checkpoint: move these away") as error:
        find_checkpoint("auto", save_dir)
    assert len(error.value.problems) == len(DAMAGES) + 2


def test_damaged_content_is_skipped_or_refused_as_missing_files_are(save_dir):
    for step in DAMAGES:
        shutil.rmtree(save_dir / f"epoch-0_step-{step}")
    newer = Path(shutil.copytree(save_dir / "epoch-0_step-2", save_dir / "epoch-1_step-2"))
    damaged, notices = {newer: f"{newer} is damaged: lr_scheduler is missing"}, []
    assert find_checkpoint("auto", save_dir, notices.append, damaged).path == save_dir / "epoch-0_step-2"
    assert notices == [f"skipped: {damaged[newer]}"]
    with pytest.raises(UserError, match="lr_scheduler is missing: copy it again, name another, or give auto"):
        find_checkpoint(str(newer), save_dir, notices.append, damaged)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "it is no JSON object"),
        ("null", "it is no JSON object"),
        ("{}", "it lacks progress, origin, world_size"),
        (json.dumps({**STATES, "progress": []}), "progress and origin are no JSON objects"),
        (json.dumps({**STATES, "progress": {"step": "2"}}), "step is '2'"),
        (json.dumps({**STATES, "progress": {"steps": 2}}), "steps is 2"),
        (json.dumps({**STATES, "world_size": None}), "world_size is None"),
        ("{", "Expecting property name"),
    ],
)
def test_running_states_of_another_form_are_refused(save_dir, text, reason):
    path = save_dir / "epoch-0_step-2"
    (path / "running_states.json").write_text(text)
    with pytest.raises(UserError, match=rf"running_states\.json cannot be read \({reason}"):
        find_checkpoint(str(path), save_dir)


def test_running_states_of_another_checkpoint_are_refused(save_dir):
    path = save_dir / "epoch-0_step-2"
    write_states(path, {**STATES, "progress": asdict(Progress(step=3))})
    with pytest.raises(UserError, match=r"its running_states\.json is that of step 3"):
        find_checkpoint(str(path), save_dir)
    renamed = path.rename(save_dir / "kept")
    assert find_checkpoint(str(renamed), save_dir).progress.step == 3


def test_a_list_of_checksums_that_was_written_must_be_there(save_dir):
    path = save_dir / "epoch-0_step-2"
    write_states(path, {**STATES, "checksums": "checksums.json"})
    with pytest.raises(UserError, match=r"checksums\.json is missing"):
        find_checkpoint(str(path), save_dir)
    write_checksums(path, {})
    assert find_checkpoint(str(path), save_dir).path == path


def test_only_checkpoints_that_a_run_saved_are_its_own(save_dir):
    """`--keep_last` deletes these, and counts no others."""
    foreign = save_dir / "epoch-5_step-500"
    foreign.mkdir()
    (foreign / "running_states.json").write_text('{"epoch": 5, "step": 500, "sample_start_index": 0}')
    (save_dir / "epoch-6_step-600").symlink_to(save_dir / "epoch-0_step-2")
    steps = [int(path.name.rpartition("-")[2]) for path in own_checkpoints(save_dir)]
    assert steps == [2, *(step for step in DAMAGES if step not in (5, 99))]


def test_what_no_run_wrote_is_archived_where_a_run_writes(tmp_path):
    for name in ("epoch-0_step-2", "modelling", "modelling_merged"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").touch()
    write_checksums(tmp_path / "modelling_merged", {})
    (tmp_path / "linked").symlink_to(tmp_path / "modelling_merged")
    for name in ("epoch-0_step-2", "modelling", "modelling_merged", "absent"):
        make_way(tmp_path / name)
    assert (tmp_path / "modelling_merged" / "precious").exists(), "a run wrote it, and may replace it"
    for name in ("epoch-0_step-2", "modelling"):
        assert not (tmp_path / name).exists()
        assert (tmp_path / f"superseded-0-{name}" / "precious").exists()


def test_only_interrupted_writes_of_runs_are_cleaned_up(tmp_path):
    own = (".epoch-0_step-2.unfinished", ".modelling.removed", ".modelling_merged.unfinished")
    foreign = (".photos.unfinished", ".notes.replaced", ".epoch-0_step-3.unfinished", ".modelling.unfinished")
    for name in (*own, *foreign):
        (tmp_path / name).mkdir()
    for name in foreign:
        (tmp_path / name / "precious").touch()
    (tmp_path / own[0] / "modelling").mkdir()
    (tmp_path / own[0] / "modelling" / "rank-00000-00000.safetensors").touch()
    (tmp_path / own[1] / ".rank-00000-00000.safetensors.tmp-host-1").touch()
    (tmp_path / own[2] / "config.json").touch()
    (tmp_path / ".epoch-0_step-4.unfinished").symlink_to(tmp_path)
    archived = {path.name for path in archive_foreign_writes(tmp_path)}
    moved = {*foreign[2:], ".epoch-0_step-4.unfinished"}
    assert archived == {f"superseded-0-{name}" for name in moved}
    assert clean_up_interrupted_writes(tmp_path, is_name_of_a_run) == ["epoch-0_step-2", "modelling_merged"]
    assert {path.name for path in tmp_path.iterdir()} == {*foreign[:2], *archived}


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
