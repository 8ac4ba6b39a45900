"""Files that no run has written are neither replaced nor renamed; the command is refused."""

import json
import shutil

import pytest

from colossal_llama.training.command_line import parse_arguments
from colossal_llama.utils.cli import InvalidArguments


@pytest.fixture
def problems(toy, tmp_path):
    """Problems of a command line whose outputs lie in the temporary directory."""

    def problems(*options):
        words = ["--pretrained", toy.model, "--dataset", toy.parts[0], "--plugin", "zero2", "--mixed_precision", "fp32"]
        words += ["--save_dir", tmp_path / "save", "--tensorboard_dir", tmp_path / "logs"]
        if "--config_file" not in options:
            words += ["--config_file", tmp_path / "run.json"]
        try:
            parse_arguments(list(map(str, [*words, *options])), has_gpu=False)
        except InvalidArguments as error:
            return error.problems
        return []

    return problems


def test_a_config_file_that_is_no_record_is_refused(problems, toy, tmp_path):
    model = shutil.copytree(toy.model, tmp_path / "model")
    before = {path: path.read_bytes() for path in model.iterdir()}
    for file in model.iterdir():
        (problem,) = problems("--config_file", file)
        assert f"{file} exists and is no record of a run: name another" in problem
    assert {path: path.read_bytes() for path in model.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


@pytest.mark.parametrize("content", ["", "[]", "notes", '{"arguments": {}}'])
def test_whatever_is_no_record_counts_as_foreign(problems, tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    (tmp_path / "run.json.dry_run.json").write_text(content)
    assert "no record of a run" in problems()[0]
    assert "no record of a dry run" in problems("--dry_run")[0]


def test_links_and_devices_are_not_replaced(problems, tmp_path):
    (tmp_path / "record").write_text(json.dumps({"command": [], "arguments": {}, "world_size": 1}))
    assert problems("--config_file", tmp_path / "record") == []
    (tmp_path / "run.json").symlink_to(tmp_path / "record")
    assert "no record of a run" in problems()[0]
    assert "no record of a run" in problems("--config_file", "/dev/null")[0]


def test_names_of_other_records_are_refused(problems, tmp_path):
    for file in ("logs/metrics.jsonl", "logs/run.json", "save/bad_steps.jsonl"):
        assert "is the name of another record" in problems("--config_file", tmp_path / file)[0]


def test_a_config_file_among_the_inputs_is_refused(problems, toy):
    for directory in (toy.model, toy.parts[0]):
        assert f"lies in {directory}" in problems("--config_file", directory / "tokenizer_of_mine.json")[0]


@pytest.mark.parametrize(
    ("file", "foreign", "own"),
    [
        ("logs/metrics.jsonl", "accuracy: 0.9\n", '{"step": 1, "loss": 2.0}\n'),
        ("logs/benchmark.jsonl", '{"epoch": 1}\n', '{"step": 1}\n'),
        ("logs/run.json", '{"name": "mine"}', '{"save_dir": "/somewhere"}'),
        ("save/bad_steps.jsonl", "[1, 2]\n", '{"step": 3, "rows": []}\n'),
    ],
)
def test_records_of_others_in_the_directories(problems, tmp_path, file, foreign, own):
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text(foreign)
    (problem,) = problems()
    assert f"{tmp_path / file} exists, and no run wrote it" in problem
    (tmp_path / file).write_text(own)
    assert problems() == []


def test_events_of_another_program_are_not_moved(problems, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "events.out.tfevents.1.host").touch()
    assert "so no run wrote it" in problems()[0]
    (tmp_path / "logs" / "metrics.jsonl").touch()
    assert problems() == []
