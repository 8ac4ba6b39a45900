"""Outputs replace what earlier runs wrote, and nothing else."""

import json

import pytest

from colossal_llama.utils.output_file import output_file_problem
from tests.support.scripts import run_script

SCALE_MODEL, PLOT = "colossal_llama/training/memory/scale_model.py", "colossal_llama/training/plot_training.py"


def test_the_directory_and_what_is_there_decide(tmp_path):
    ours, others = tmp_path / "ours.json", tmp_path / "others.json"
    ours.write_text('{\n  "rate": 1}')
    others.write_text('{"rate": 1}')
    (tmp_path / "link").symlink_to(ours)
    beginning = b'{\n  "rate": '
    assert output_file_problem(tmp_path / "new.json", beginning) is None
    assert output_file_problem(ours, beginning) is None
    assert output_file_problem(ours) == f"{ours} exists already: give a new name"
    for path, said in {
        others: "no run of this command wrote it",
        tmp_path / "link": "no file of its own",
        tmp_path: "is a directory",
        tmp_path / "absent" / "new.json": f"the directory {tmp_path / 'absent'} does not exist",
        ours / "below.json": "does not exist",
    }.items():
        assert said in (output_file_problem(path, beginning) or "")


@pytest.mark.parametrize("name", ["record.json", "loss.png", "loss.svg", "loss.pdf"])
def test_a_script_writes_its_output_again_and_leaves_another_file_alone(project_root, tmp_path, name):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "tokens_seen": 9, "loss": 2.5}\n')
    words = (SCALE_MODEL, "--gpus", 8, "--record") if name == "record.json" else (PLOT, metrics, "--output")
    for _ in range(2):
        done = run_script(project_root, *words, tmp_path / name)
        assert done.returncode == 0, done.stderr
    other = tmp_path / f"other_{name}"
    other.write_text("of somebody else")
    done = run_script(project_root, *words, other)
    assert done.returncode == 2
    assert f"{other} exists already" in done.stderr
    assert other.read_text() == "of somebody else"


def test_names_beside_the_answers_are_kept(project_root, tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps({"source": "?"}))
    (tmp_path / "out.report.json").write_text("of somebody else")
    files = ("--input_file", tmp_path / "in.jsonl", "--output_file", tmp_path / "out.jsonl")
    done = run_script(project_root, "inference_example.py", "--model_path", tmp_path, *files)
    assert done.returncode == 2
    assert f"{tmp_path / 'out.report.json'} exists already" in done.stderr
