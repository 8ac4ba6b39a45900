"""evaluate.py as users run it: tables, records, refusals, a killed run, several processes."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.made_benchmarks import write_benchmarks, write_mmlu, write_own_questions
from tests.support.ranks import run_ranks, start_ranks
from tests.support.scripts import run_script

SCRIPT = "evaluate.py"
TASKS = ("mmlu", "cmmlu", "ceval", "agieval", "gaokao", "gsm8k")
KEYS = {"task", "subject", "index", "logits", "text", "prediction", "label", "correct", "prompt_hash"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"), questions=5)


@pytest.fixture(scope="module")
def models(random_model_directory, tmp_path_factory) -> list[Path]:
    """A run's model and the base, whose directories have the same name."""
    directory = tmp_path_factory.mktemp("models")
    base, tuned = directory / "base" / "modelling", directory / "sft" / "modelling"
    shutil.copytree(random_model_directory, base)
    shutil.copytree(random_model_directory, tuned)
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1).add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    model.save_pretrained(tuned)
    return [tuned, base]


def command_of(models, data_dir, out, *more: object) -> list[str]:
    words = ["--model_path", models[0], "--data_dir", data_dir, "--output_dir", out, "--max_length", 400]
    return [str(word) for word in (*words, "--device", "cpu", *more)]


@pytest.fixture(scope="module")
def evaluated(models, data_dir, tmp_path_factory, project_root) -> tuple[Path, subprocess.CompletedProcess]:
    out = tmp_path_factory.mktemp("evaluated") / "out"
    own = out.parent / "own.jsonl"
    write_own_questions(own)
    options = command_of(models, data_dir, out, "--compare", models[1], "--tasks", *TASKS, own)
    done = run_script(project_root, SCRIPT, *options)
    assert done.returncode == 0, done.stderr
    return out, done


def answers(out: Path, model: str) -> list[dict]:
    return [json.loads(line) for line in (out / model / "questions.jsonl").read_text("utf-8").splitlines()]


def test_every_question_has_a_line_in_the_order_of_the_files(evaluated):
    out, _ = evaluated
    for model in ("sft", "base"):
        lines = answers(out, model)
        assert all(line.keys() >= KEYS for line in lines)
        places = [(line["task"], line["subject"], line["index"]) for line in lines]
        assert len(set(places)) == len(places)
        counts = {task: sum(place[0] == task for place in places) for task in dict.fromkeys(p[0] for p in places)}
        assert counts == {"mmlu": 15, "cmmlu": 10, "ceval": 10, "agieval": 15, "gaokao": 10, "gsm8k": 5, "own": 6}
        assert [place[2] for place in places if place[1] == "astronomy_test"] == [0, 1, 2, 3, 4]
        for line in lines:
            if line["task"] in ("mmlu", "cmmlu", "ceval", "gaokao"):
                assert line["prediction"] == max(line["logits"], key=line["logits"].get)
                assert line["correct"] == (line["prediction"] == line["label"])
                assert line["text"] is None
            if line["task"] in ("agieval", "gsm8k"):
                assert isinstance(line["text"], str)


def test_scores_errors_and_paired_tests_are_those_of_the_lines(evaluated):
    out, done = evaluated
    table = json.loads((out / "table.json").read_text("utf-8"))
    assert list(table["models"]) == ["sft", "base"]
    tuned, base = ([line["correct"] for line in answers(out, model)] for model in ("sft", "base"))
    (row,) = [row for row in table["rows"] if row["level"] == "all"]
    assert row["questions"] == len(tuned) == 71
    assert row["scores"]["sft"]["score"] == sum(tuned) / 71
    test = row["tests"]["base"]
    assert test["only_model_right"] == sum(a and not b for a, b in zip(tuned, base, strict=True))
    assert test["only_other_right"] == sum(b and not a for a, b in zip(tuned, base, strict=True))
    tasks = [row for row in table["rows"] if row["level"] == "task"]
    assert [row["name"] for row in tasks][:2] == ["MMLU", "CMMLU"]
    assert [row["shots"] for row in tasks] == [5, 5, 5, 3, 0, 8, 0]
    assert [row["chance"] for row in tasks] == [0.25] * 5 + [None, 0.25]
    markdown = (out / "table.md").read_text("utf-8")
    for row in tasks:
        cell = row["scores"]["sft"]
        shown = f"{100 * cell['score']:.2f} ± {100 * cell['standard_error']:.2f}"
        assert f"| {row['name']} | {row['shots']} | {row['questions']} |" in markdown
        assert shown in markdown
        assert shown in done.stdout
    assert "44.47" not in markdown  # a published figure is nobody's result here
    assert (out / "table.png").read_bytes().startswith(b"\x89PNG")


def test_the_record_names_what_was_run(evaluated):
    out, _ = evaluated
    record = json.loads((out / "sft" / "evaluation.json").read_text("utf-8"))
    assert record["is_complete"]
    assert record["packages"]["torch"]
    assert record["settings"]["dtype"] == "fp32"
    assert record["arguments"]["max_length"] == 400
    assert {task["task"]: task["scored"] for task in record["tasks"]}["mmlu"] == 15
    assert "mmlu astronomy_test" in record["settings"]["subjects"]
    assert record["sessions"][0]["questions_per_second"] > 0


def test_a_finished_evaluation_is_not_computed_again(evaluated, models, data_dir, project_root):
    out, first = evaluated
    written = (out / "sft" / "questions.jsonl").stat().st_mtime_ns
    left = [out / "sft" / "questions.partial-0.jsonl", out / "sft" / ".evaluation.json.tmp-host-7"]
    left.append(out / ".table.png.tmp-host-7")
    for path in left:  # by runs that were killed in their last moments
        path.touch()
    options = command_of(models, data_dir, out, "--compare", models[1], "--tasks", *TASKS, out.parent / "own.jsonl")
    done = run_script(project_root, SCRIPT, *options)
    assert done.returncode == 0, done.stderr
    assert "sft: all is answered in" in done.stdout
    assert (out / "sft" / "questions.jsonl").stat().st_mtime_ns == written
    assert first.stdout.split("\n\n")[-2] in done.stdout
    assert not any(path.exists() for path in left)


def test_other_settings_in_the_same_directory_are_refused(evaluated, models, data_dir, project_root):
    out, _ = evaluated
    own = out.parent / "own.jsonl"
    options = command_of(models, data_dir, out, "--tasks", *TASKS, own, "--limit", 2, "--protocol", "likelihood")
    done = run_script(project_root, SCRIPT, *options)
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert f"{out / 'sft'} holds answers of another run (--protocol published there, likelihood now;" in done.stderr
    assert "--limit is not given there, 2 now" in done.stderr


def test_all_that_is_wrong_is_said_at_once_before_a_model_is_opened(data_dir, tmp_path, project_root):
    done = run_script(
        project_root,
        SCRIPT,
        *("--model_path", tmp_path / "none", "--compare", f"{tmp_path}/a,{tmp_path}/b", "--limit", 0),
        *("--data_dir", data_dir, "--tasks", "mlmu,cmmlu", "gsmk8", "--output_dir", tmp_path / "out", "--stride", 4),
    )
    assert done.returncode == 2
    for problem in (
        f"--model_path: {tmp_path}/none does not exist",
        f"--compare: {tmp_path}/a does not exist",
        "--limit: 0 is less than 1",
        "'mmlu'",
        "'gsm8k'",
        "--stride has no effect without --texts",
    ):
        assert problem in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def test_nothing_to_do_is_refused(models, tmp_path, project_root):
    done = run_script(project_root, SCRIPT, "--model_path", models[0])
    assert done.returncode == 2
    assert "error: --output_dir is missing" in done.stderr
    assert "error: nothing is asked for: give --tasks" in done.stderr


def test_a_prompt_longer_than_the_model_has_positions_is_refused_at_first(models, data_dir, tmp_path, project_root):
    options = command_of(models, data_dir, tmp_path / "out", "--tasks", "mmlu", "--max_length", 2048)
    done = run_script(project_root, SCRIPT, *options)
    assert done.returncode == 2
    assert "has 400 positions: give --max_length 400, or less" in done.stderr


def test_files_of_other_programs_are_not_replaced(models, data_dir, tmp_path, project_root):
    (tmp_path / "table.md").write_text("# Mine\n")
    done = run_script(project_root, SCRIPT, *command_of(models, data_dir, tmp_path, "--tasks", "mmlu"))
    assert done.returncode == 2
    assert f"{tmp_path / 'table.md'} exists already, and no run of this command wrote it" in done.stderr
    assert (tmp_path / "table.md").read_text() == "# Mine\n"


@pytest.fixture(scope="module")
def many_questions(models, tmp_path_factory, project_root) -> tuple[Path, Path]:
    """Files of 600 questions, and their evaluation without interruption."""
    directory = tmp_path_factory.mktemp("many")
    write_mmlu(directory / "data" / "mmlu", questions=300, subjects=("astronomy", "virology"))
    options = command_of(models, directory / "data", directory / "out", "--tasks", "mmlu")
    done = run_script(project_root, SCRIPT, *options)
    assert done.returncode == 0, done.stderr
    return directory / "data", directory / "out"


def test_a_killed_run_goes_on_where_it_was(many_questions, models, tmp_path, project_root):
    data, whole = many_questions
    command = [sys.executable, str(project_root / SCRIPT), *command_of(models, data, tmp_path / "out")]
    command += ["--tasks", "mmlu", "--tokens_per_batch", "1"]  # slow: a question at a time
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial = tmp_path / "out" / "sft" / "questions.partial-0.jsonl"
    wait_for_bytes(partial, 2_000, lambda: process.poll() is None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = partial.read_bytes().count(b"\n")
    assert 0 < kept < 600
    with partial.open("ab") as file:
        file.write(b'{"task": "mmlu", "subj')  # a line that a loss of power has cut off
    done = run_script(project_root, SCRIPT, *command_of(models, data, tmp_path / "out", "--tasks", "mmlu"))
    assert done.returncode == 0, done.stderr
    (session,) = json.loads((tmp_path / "out" / "sft" / "evaluation.json").read_text("utf-8"))["sessions"]
    assert (session["kept"], session["answered"]) == (kept, 600 - kept)
    assert_same_answers(tmp_path / "out", whole)
    assert not partial.exists()


@pytest.mark.parametrize(
    ("number", "sentence", "code"),
    [
        (signal.SIGTERM, "error: ended by SIGTERM; what it has answered is kept: run the same command again", 143),
        (signal.SIGINT, "what it has answered is kept: run the same command again to go on\ninterrupted", 130),
    ],
)
def test_a_signal_ends_a_run_with_a_sentence(many_questions, models, tmp_path, project_root, number, sentence, code):
    data, _ = many_questions
    command = [sys.executable, str(project_root / SCRIPT), *command_of(models, data, tmp_path / "out")]
    command += ["--tasks", "mmlu", "--tokens_per_batch", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for_bytes(tmp_path / "out" / "sft" / "questions.partial-0.jsonl", 2_000, lambda: process.poll() is None)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"\n{sentence}" in said
    assert "Traceback" not in said


@pytest.mark.distributed
def test_processes_that_a_launcher_ends_say_it_once_and_blame_none(many_questions, models, tmp_path, project_root):
    data, _ = many_questions
    command = command_of(models, data, tmp_path / "out", "--tasks", "mmlu", "--tokens_per_batch", 1)
    (tmp_path / "output").touch()
    started = start_ranks(SCRIPT, command, 3, project_root, str(tmp_path / "output"))
    wait_for_bytes(tmp_path / "out" / "sft" / "questions.partial-2.jsonl", 2_000, lambda: started[2].is_alive())
    for process in started:
        process.terminate()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [143] * 3
    said = (tmp_path / "output").read_text("utf-8")
    assert said.count("error: ") == said.count("error: ended by SIGTERM; what it has answered is kept") == 1, said


@pytest.mark.distributed
def test_processes_share_the_questions_and_give_the_same_answers(many_questions, models, tmp_path, project_root):
    data, whole = many_questions
    for ranks in (2, 3):
        out = tmp_path / str(ranks)
        done = run_ranks(SCRIPT, command_of(models, data, out, "--tasks", "mmlu"), ranks, project_root)
        assert done.returncode == 0, done.stdout
        assert_same_answers(out, whole)
        assert done.stdout.count("\nMMLU ") == 1


@pytest.mark.distributed
def test_an_error_of_one_process_ends_all_with_one_message(many_questions, models, tmp_path, project_root):
    data, _ = many_questions
    (tmp_path / "out" / "sft" / "questions.partial-1.jsonl").mkdir(parents=True)
    done = run_ranks(SCRIPT, command_of(models, data, tmp_path / "out", "--tasks", "mmlu"), 2, project_root)
    assert done.returncode == 2
    assert done.stdout.count("error: ") == 1, done.stdout
    assert "questions.partial-1.jsonl" in done.stdout


@pytest.mark.distributed
def test_a_process_that_was_killed_is_named_and_ends_the_others(many_questions, models, tmp_path, project_root):
    data, whole = many_questions
    command = command_of(models, data, tmp_path / "out", "--tasks", "mmlu")
    (tmp_path / "output").touch()
    started = start_ranks(SCRIPT, [*command, "--tokens_per_batch", "1"], 2, project_root, str(tmp_path / "output"))
    wait_for_bytes(tmp_path / "out" / "sft" / "questions.partial-1.jsonl", 2_000, lambda: started[1].is_alive())
    started[1].kill()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [2, -signal.SIGKILL]
    said = (tmp_path / "output").read_text("utf-8")
    assert re.search(rf"error: process 1 \(process id {started[1].pid} on \S+\) has ended, and so do the others", said)
    done = run_ranks(SCRIPT, command, 2, project_root)
    assert done.returncode == 0, done.stdout
    assert_same_answers(tmp_path / "out", whole)


def wait_for_bytes(path: Path, size: int, is_alive: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() or path.stat().st_size < size:
        assert is_alive(), "it has ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_same_answers(out: Path, whole: Path) -> None:
    first, second = (
        [orjson.loads(line) for line in (directory / "sft" / "questions.jsonl").read_bytes().splitlines()]
        for directory in (out, whole)
    )
    for one, other in zip(first, second, strict=True):
        assert {key: value for key, value in one.items() if key != "logits"} == {
            key: value for key, value in other.items() if key != "logits"
        }
        assert one["logits"] == pytest.approx(other["logits"], abs=1e-3)
