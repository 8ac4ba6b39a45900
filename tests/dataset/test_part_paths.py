"""Paths of parts: directories are all of their parts or refused; what is left out is said."""

import json
import shutil
from pathlib import Path

import datasets
import pytest

from colossal_llama.dataset.part_paths import find_parts, left_out_notes
from colossal_llama.dataset.prepare import pipeline
from colossal_llama.utils.errors import UserError
from tests.support.preparations import preparation

PARTS = 12


@pytest.fixture(scope="module")
def finished(project_root, made_llama2, tmp_path_factory) -> Path:
    """A finished preparation of 12 parts."""
    output = tmp_path_factory.mktemp("prepared") / "data"
    examples = project_root / "examples" / "pretrain"
    pipeline.prepare(
        preparation("pretrain", [examples], made_llama2, output, max_length=128, num_spliced_dataset_bins=PARTS)
    )
    return output


@pytest.fixture
def prepared(finished, tmp_path) -> Path:
    """A copy of it that a test may change."""
    return shutil.copytree(finished, tmp_path / "data")


def names(paths) -> list[str]:
    return [path.name for path in paths]


def found(*paths) -> list[str]:
    return names(find_parts(paths, "--dataset").paths)


def refused(*paths) -> list[str]:
    with pytest.raises(UserError) as error:
        find_parts(paths, "--dataset")
    return error.value.problems


EVERY = [f"part-{number:05d}" for number in range(PARTS)]


def test_directories_are_all_of_their_parts_by_name_and_parts_keep_their_order(finished):
    arrow = finished / "arrow"
    assert found(finished) == found(arrow) == found(Path(f"{arrow}/")) == EVERY
    assert found(arrow / EVERY[11], arrow / EVERY[2]) == [EVERY[11], EVERY[2]]
    assert find_parts([finished], "--dataset").notes == ()


def test_a_link_to_a_directory_is_the_directory(finished, tmp_path):
    (tmp_path / "link").symlink_to(finished / "arrow")
    assert find_parts([tmp_path / "link"], "--dataset").notes == ()
    (said,) = refused(finished, tmp_path / "link" / EVERY[3])
    assert f"link/{EVERY[3]} is given twice, as {finished}/arrow/{EVERY[3]} too" in said


def test_parts_on_another_disk_belong_to_their_preparation(prepared, tmp_path):
    shutil.move(prepared / "arrow", tmp_path / "fast")
    (prepared / "arrow").symlink_to(tmp_path / "fast")
    assert find_parts([prepared], "--dataset").notes == ()
    (prepared / "arrow" / EVERY[5]).rename(tmp_path / "faster")
    assert "part-00005 is missing" in refused(prepared)[0]
    (prepared / "arrow" / EVERY[5]).symlink_to(tmp_path / "faster")
    assert find_parts([prepared], "--dataset").notes == ()
    assert left_out_notes({"--dataset": find_parts([prepared], "--dataset").paths}) == []
    (said,) = left_out_notes({"--dataset": [prepared / "arrow" / EVERY[5]]})
    assert "12 parts prepared, 1 given: part-00000" in said


def test_what_is_left_out_of_a_preparation_is_said(finished):
    arrow = finished / "arrow"
    (said,) = left_out_notes({"--dataset": [arrow / name for name in EVERY[:10]], "--eval_dataset": []})
    assert said == f"{finished}: 12 parts prepared, 10 given: part-00010, part-00011 are left out"
    parts = [arrow / name for name in EVERY]
    (said,) = left_out_notes({"--dataset": parts[:10], "--eval_dataset": parts[11:]})
    assert said.endswith("11 given (10 as --dataset, 1 as --eval_dataset): part-00010 is left out")
    assert left_out_notes({"--dataset": parts[:11], "--eval_dataset": parts[11:]}) == []


def test_a_part_that_was_replaced_is_named(prepared):
    arrow = prepared / "arrow"
    shutil.rmtree(arrow / EVERY[4])
    shutil.copytree(arrow / EVERY[5], arrow / EVERY[4])
    (said,) = left_out_notes({"--dataset": [arrow / name for name in EVERY]})
    assert said.startswith(f"warning: {arrow}/part-00004 is not the part that {prepared}/manifest.json records")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: shutil.rmtree(data / "arrow" / EVERY[3]), "12 parts prepared, 11 found: part-00003 is missing"),
        (lambda data: shutil.copytree(data / "arrow" / EVERY[3], data / "arrow" / "part-00012"), "12 is not in"),
        (lambda data: (data / "arrow" / EVERY[3] / "part.json").unlink(), "and part-00003 without part.json"),
        (lambda data: (data / "arrow" / "part-00012").symlink_to("nowhere"), "and part-00012 without part.json"),
        (lambda data: (data / "manifest.json").write_text('{\n  "manifest_version": 1, '), "cannot be read as JSON"),
        (lambda data: _unfinish(data), "the preparation is not finished"),
        (lambda data: (data / "manifest.json").unlink() or shutil.rmtree(data / "arrow" / EVERY[3]), "part-00003 is"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("given", ["data", "data/arrow"])
def test_a_preparation_that_is_not_whole_is_refused_as_a_directory(prepared, damage, said, given, monkeypatch):
    monkeypatch.chdir(prepared.parent)
    damage(prepared)
    assert any(said in problem and problem.startswith("--dataset: ") for problem in refused(Path(given)))


def _unfinish(data: Path) -> None:
    (data / "manifest.json").unlink()
    (data / "cache").mkdir(exist_ok=True)
    (data / "cache" / "run.json").write_text("{}")


def test_parts_of_an_unfinished_preparation_are_taken_one_by_one_and_that_is_said(prepared):
    _unfinish(prepared)
    parts = [prepared / "arrow" / name for name in EVERY[:2]]
    assert found(*parts) == EVERY[:2]
    (said,) = left_out_notes({"--dataset": parts})
    assert said == f"warning: the preparation in {prepared} is not finished: 2 of its parts are given"
    (prepared / "manifest.json").write_text('{\n  "manifest_version": 1, ')
    (said,) = left_out_notes({"--dataset": parts})
    assert said.startswith("warning: whether all prepared parts are given is not known")


def test_parts_that_were_copied_without_their_manifest_are_all_taken_and_that_is_said(prepared, tmp_path):
    (prepared / "arrow").rename(tmp_path / "copied")
    (tmp_path / "copied" / "notes.txt").write_text("mine")
    (tmp_path / "copied" / ".DS_Store").write_text("")
    parts = find_parts([tmp_path / "copied"], "--dataset")
    assert names(parts.paths) == EVERY
    assert parts.notes == (
        f"--dataset: not read in {tmp_path}/copied, as they are no parts: notes.txt",
        f"--dataset: {tmp_path}/copied has no manifest.json next to it: whether these 12 parts are all is not recorded",
    )


def test_other_directories_and_files_are_refused_with_what_to_give(prepared, tmp_path):
    arrow = prepared / "arrow"
    rows = datasets.Dataset.from_dict({"input_ids": [[1, 2]]})
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(str(tmp_path / "splits"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "parquet").mkdir()
    rows.to_parquet(str(tmp_path / "parquet" / "0.parquet"))
    problems = refused(
        prepared / "jsonl",
        arrow / EVERY[0] / "state.json",
        *(tmp_path / name for name in ("splits", "empty", "parquet", "nothing")),
        arrow / EVERY[0],
        arrow / EVERY[0],
    )
    expected = [
        f"give {arrow}",
        f"is a file, not a directory: give its directory, {arrow}/part-00000",
        f"holds the splits train, test: give one of them, for instance {tmp_path}/splits/train",
        "holds no prepared part (no part.json) and is no data set saved by save_to_disk: give what prepare_pretrain",
        "rows of token ids are opened with datasets.load_dataset and saved with save_to_disk",
        "nothing does not exist",
        "part-00000 is given twice: leave one out",
    ]
    assert len(problems) == len(expected)
    assert all(text in problem for text, problem in zip(expected, problems, strict=True))
    assert found(tmp_path / "splits" / "train", arrow / EVERY[0]) == ["train", EVERY[0]]
    shutil.rmtree(arrow)
    (said,) = refused(prepared)
    assert said.endswith("holds manifest.json, and no directory arrow with the parts: copy it too")


def test_a_directory_of_data_sets_of_other_programs_is_all_of_them(tmp_path):
    for name in ("b", "a"):
        datasets.Dataset.from_dict({"input_ids": [[1, 2]]}).save_to_disk(str(tmp_path / "sets" / name))
    assert found(tmp_path / "sets") == ["a", "b"]


def test_the_manifest_of_a_preparation_names_its_parts(finished):
    """What the messages above are made from."""
    assert names(Path(part["name"]) for part in json.loads((finished / "manifest.json").read_text())["parts"]) == EVERY


def test_a_part_is_taken_twice_only_where_a_run_may_have_begun_so(finished):
    part = finished / "arrow" / EVERY[0]
    assert "is given twice" in refused(part, part)[0]
    assert names(find_parts([part, part], "--dataset", may_repeat=True).paths) == [EVERY[0]] * 2
