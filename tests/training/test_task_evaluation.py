"""Benchmark questions during training: the answers of evaluate.py, and nothing else changes."""

import csv
import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

from colossal_llama.evaluation.prompts import PromptEncoder, prompt_ids
from colossal_llama.evaluation.published import predictions
from colossal_llama.evaluation.scoring import Scorer
from colossal_llama.evaluation.tasks.registry import open_tasks
from colossal_llama.model.weights.generation_config import save_model
from colossal_llama.tokenizer.loading import load_tokenizer, tokenizer_fingerprint
from tests.support.training_runs import Runner, Toy, copy_with_config, make_toy, ranks_of
from tests.support.versions import possible, run_names

pytestmark = pytest.mark.slow  # the runs that all tests of the file share

BATCH = ("--micro_batch_size", "2", "--accumulation_steps", "2")
PLUGINS = {
    "zero2": (),
    "ddp": ("--plugin", "ddp"),
    "zero2_cpu": ("--mixed_precision", "bf16", "--plugin", "zero2_cpu"),
    "3d": ("--plugin", "3d", "--zero", "0"),
    "tp2": ("--plugin", "3d", "--zero", "0", "--tp", "2", "--micro_batch_size", "4"),
    "sp2": ("--plugin", "3d", "--zero", "0", "--sp", "2", "--sp_mode", "all_to_all", "--micro_batch_size", "4"),
    "sp_tp": ("--plugin", "3d", "--zero", "0", "--tp", "2", "--sp", "2", "--micro_batch_size", "4"),
    "pp2": ("--plugin", "3d", "--zero", "0", "--pp", "2", "--micro_batch_size", "4", "--microbatch_size", "2"),
    "lora": ("--lora_rank", "4"),
}
WORDS = ("A", "B", "C", "D", "E", "Question", "Answer", ":", ".", "答案", "：")


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Toy:
    """The tiny model, whose tokenizer knows letters; it looks further back than one token."""
    made = make_toy(tmp_path_factory.mktemp("task_toy"))
    file = made.model / "tokenizer.json"
    words = {f'"w{number}"': f'"{word}"' for number, word in enumerate(WORDS, start=50)}
    text = file.read_text(encoding="utf-8")
    for old, new in words.items():
        text = text.replace(old, new)
    file.write_text(text, encoding="utf-8")
    model = AutoModelForCausalLM.from_pretrained(made.model)
    with torch.no_grad():
        for layer in model.model.layers:
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                getattr(layer.self_attn, name).weight.mul_(10)
    model.config.max_position_embeddings = 512
    save_model(model, made.model)
    fingerprint = tokenizer_fingerprint(load_tokenizer(made.model))
    for part in (*made.parts, *made.sft_parts):
        note = json.loads((part / "part.json").read_text())
        (part / "part.json").write_text(json.dumps({**note, "tokenizer_fingerprint": fingerprint}))
    return made


def write_task(folder: Path, subjects: dict[str, list[list[str]]]) -> None:
    """A benchmark as MMLU's and CMMLU's authors lay theirs out, without headers or with them."""
    for split in ("dev", "test"):
        (folder / split).mkdir(parents=True)
    for name, rows in subjects.items():
        for split, some in (("dev", rows[:5]), ("test", rows[5:])):
            ending = f"_{split}" if folder.name == "mmlu" else ""
            with (folder / split / f"{name}{ending}.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                if folder.name == "cmmlu":
                    writer.writerow(["", "Question", "A", "B", "C", "D", "Answer"])
                writer.writerows([number, *row] if folder.name == "cmmlu" else row for number, row in enumerate(some))


def made_rows(seed: int, count: int) -> list[list[str]]:
    """Questions of several lengths with four choices."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        question = " ".join(f"w{number}" for number in generator.integers(70, 200, generator.integers(2, 12)))
        options = [f"w{number}" for number in generator.integers(70, 200, 4)]
        rows.append([question, *options, "ABCD"[generator.integers(4)]])
    return rows


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory) -> Path:
    """37 scored questions of two subjects."""
    folder = tmp_path_factory.mktemp("benchmarks")
    write_task(folder / "mmlu", {"astronomy": made_rows(1, 25), "virology": made_rows(2, 22)})
    return folder


@pytest.fixture(scope="module")
def dropout(toy, tmp_path_factory) -> Path:
    """The model with attention dropout: a random number drawn more shows."""
    return copy_with_config(toy.model, tmp_path_factory.mktemp("task_dropout") / "model", attention_dropout=0.1)


@pytest.fixture(scope="module")
def few_positions(toy, tmp_path_factory) -> Path:
    return copy_with_config(toy.model, tmp_path_factory.mktemp("task_positions") / "model", max_position_embeddings=96)


@pytest.fixture(scope="module")
def answered(toy, tmp_path_factory) -> Path:
    """Benchmarks whose labels are the untrained model's own answers, by transformers alone (mmlu),
    and all other ones (cmmlu).
    """
    folder = tmp_path_factory.mktemp("answered")
    rows = {"mmlu": made_rows(3, 26), "cmmlu": made_rows(4, 26)}
    for task, shift in (("mmlu", 0), ("cmmlu", 1)):
        write_task(folder / "draft" / task, {"anatomy": rows[task]})
        given = [("ABCD".index(letter) + shift) % 4 for letter in own_answers(toy.model, task, folder / "draft")]
        assert len(set(given)) > 1
        answers = [*(row[-1] for row in rows[task][:5]), *("ABCD"[answer] for answer in given)]
        write_task(folder / task, {"anatomy": [[*row[:-1], a] for row, a in zip(rows[task], answers, strict=True)]})
    return folder


def own_answers(model_path: Path, task: str, folder: Path) -> list[str]:
    """The choices of the largest logit, prompt by prompt."""
    model = AutoModelForCausalLM.from_pretrained(model_path).eval()
    encoder, letters = PromptEncoder(load_tokenizer(model_path)), []
    for subject in open_tasks([task], folder):
        for question in subject.questions:
            with torch.no_grad():
                logits = model(torch.tensor([prompt_ids(subject, question, encoder, 2048)])).logits[0, -1]
            scores = [max(logits[token].item() for token in encoder.choice_token_ids(c)) for c in question.choices]
            letters.append(question.choices[scores.index(max(scores))])
    return letters


@pytest.fixture(scope="module")
def runs(project_root, toy, benchmarks, answered, dropout, few_positions, tmp_path_factory) -> Runner:
    """Each plugin with and without questions, on two ranks, in one launch."""
    tmp = tmp_path_factory.mktemp("task_runs")
    runner = Runner(project_root, toy, tmp)
    asked = ("--eval_tasks", "mmlu", "--eval_task_dir", str(benchmarks), "--eval_task_interval", "2")
    commands = []
    for name, options in possible(PLUGINS).items():
        commands.append(runner.command(f"{name}_plain", *BATCH, *options))
        commands.append(runner.command(f"{name}_asked", *BATCH, *options, *asked))
        if "bf16" not in options:
            still = ("--max_steps", "1", "--eval_tasks", "mmlu", "cmmlu", "--eval_task_dir", str(answered))
            commands.append(runner.command(f"{name}_still", *BATCH, *options, "--lr", "1e-30", *still))
    random = ("--use_neft", "--pretrained", str(dropout))
    commands.append(runner.command("random_plain", *BATCH, *random))
    commands.append(runner.command("random_asked", *BATCH, *random, *asked))
    few = (*BATCH, *asked, "--eval_task_limit", "7", "--save_interval", "2")
    commands.append(runner.command("resumed", *few))
    commands.append(runner.command("resumed", *few, "--load_checkpoint", str(tmp / "resumed/save/epoch-0_step-2")))
    commands.append(runner.command("planned", *BATCH, *asked, "--dry_run"))
    few_shots = ("--eval_task_subjects", "virology", "--eval_task_shots", "1", "--dry_run")
    commands.append(runner.command("planned_shots", *BATCH, *asked, *few_shots))
    short = ("--pretrained", str(few_positions), "--dry_run")
    commands.append(runner.command("planned_short", *BATCH, *asked, *short, pretrained=False))
    (tmp / "printed.txt").write_text(runner.run(commands, ranks=2))
    return runner


def files_below(directory: Path) -> dict[Path, bytes]:
    """Contents of checkpoints and of the final model."""
    return {path.relative_to(directory): path.read_bytes() for path in directory.glob("*/**/*") if path.is_file()}


@pytest.mark.parametrize("name", [*run_names(PLUGINS), "random"])
def test_questions_change_nothing(runs, name):
    """Bit for bit: losses, weights, optimizer states, and what else a checkpoint has."""
    plain, asked = runs.metrics(f"{name}_plain"), runs.metrics(f"{name}_asked")
    for key in ("loss", "gradient_norm", "learning_rate", "loss_by_category"):
        assert [entry[key] for entry in asked] == [entry[key] for entry in plain]
    saved, expected = (files_below(runs.workspace / f"{name}_{which}" / "save") for which in ("asked", "plain"))
    assert any(file.parts[0].startswith("epoch-") and file.parts[1] == "optimizer" for file in expected)
    assert saved.keys() == expected.keys()
    assert [file for file, content in expected.items() if saved[file] != content] == []


@pytest.mark.parametrize(
    "name", run_names({name: options for name, options in PLUGINS.items() if "bf16" not in options})
)
def test_every_answer_is_that_of_transformers(runs, name):
    (entry,) = runs.metrics(f"{name}_still")
    assert entry["eval_task_correct"] == {"mmlu": 21, "cmmlu": 0}
    assert entry["eval_task_questions"] == {"mmlu": 21, "cmmlu": 21}
    assert entry["eval_task_accuracy"] == {"mmlu": 1.0, "cmmlu": 0.0}


@pytest.mark.parametrize("name", run_names(PLUGINS))
def test_asked_at_intervals_and_at_the_end(runs, name):
    steps = [entry["step"] for entry in runs.metrics(f"{name}_asked") if "eval_task_accuracy" in entry]
    assert steps == [2, 4, 5]


@pytest.mark.parametrize("name", ["zero2", "ddp", "3d"])
def test_the_last_accuracy_is_that_of_evaluate_on_the_saved_model(runs, benchmarks, name):
    path = runs.workspace / f"{name}_asked" / "save" / "modelling"
    scorer = Scorer(AutoModelForCausalLM.from_pretrained(path).eval())
    encoder = PromptEncoder(load_tokenizer(path))
    found = [p for subject in open_tasks(["mmlu"], benchmarks) for p in predictions(subject, scorer, encoder, 512)]
    last = runs.metrics(f"{name}_asked")[-1]
    assert last["eval_task_correct"] == {"mmlu": sum(prediction.correct for prediction in found)}
    assert last["eval_task_questions"] == {"mmlu": len(found)}


def test_a_resumed_run_asks_after_the_same_steps_and_never_twice(runs):
    steps = [entry["step"] for entry in runs.metrics("resumed") if "eval_task_accuracy" in entry]
    assert steps == [2, 4, 5]
    printed = (runs.workspace / "printed.txt").read_text()
    assert [len(re.findall(rf"step {step}: right answers: mmlu .* of 14;", printed)) for step in (2, 4, 5)] == [1, 2, 2]
    assert all(entry["eval_task_questions"] == {"mmlu": 14} for entry in runs.metrics("resumed")[1::2])


def test_the_plan_counts_the_questions(runs):
    plan = json.loads((runs.workspace / "planned" / "config.json.dry_run.json").read_text())
    assert plan["task_questions"] == 37
    assert plan["task_tokens"] > 37 * 20
    printed = (runs.workspace / "printed.txt").read_text()
    assert f"37 questions, {plan['task_tokens']:,} tokens (mmlu 37), every 2 steps and at the end" in printed


def test_subjects_and_shots_are_chosen(runs):
    whole, chosen = (
        json.loads((runs.workspace / name / "config.json.dry_run.json").read_text())
        for name in ("planned", "planned_shots")
    )
    assert chosen["task_questions"] == 17
    assert chosen["task_tokens"] / 17 < 0.5 * whole["task_tokens"] / 37


def test_prompts_have_no_more_tokens_than_the_model_has_positions(runs):
    plan = json.loads((runs.workspace / "planned_short" / "config.json.dry_run.json").read_text())
    assert 0 < plan["task_tokens"] <= 37 * 96


def test_tensorboard_shows_the_accuracy(runs):
    shown = EventAccumulator(str(runs.workspace / "zero2_asked" / "logs")).Reload()
    recorded = {e["step"]: e["eval_task_accuracy"]["mmlu"] for e in runs.metrics("zero2_asked") if "eval_task_s" in e}
    found = {event.step: event.value for event in shown.Scalars("eval_task_accuracy/mmlu")}
    assert found == pytest.approx(recorded)


def test_a_signal_ends_the_questions_and_the_resumed_run_makes_up_for_them(runs, tmp_path):
    """There are so many of them that they would take minutes."""
    write_task(tmp_path / "mmlu", {"astronomy": made_rows(5, 20_000)})
    asked = ("--eval_tasks", "mmlu", "--eval_task_dir", str(tmp_path), "--eval_task_interval", "1")
    process = runs.start(runs.command("signalled", *BATCH, *asked))
    shown = ""
    while "benchmark questions:" not in shown:
        shown += process.stdout.read(200)
        assert process.poll() is None, shown
    for rank in ranks_of(process).values():
        rank.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=60)
    assert "step 1: the benchmark questions are left, since the run is to end" in rest
    assert "everything is saved" in rest
    assert not any("eval_task_accuracy" in entry for entry in runs.metrics("signalled"))
    stopped_at = runs.metrics("signalled")[-1]["step"]
    runs.run(
        [runs.command("signalled", *BATCH, *asked, "--eval_task_limit", "9", "--load_checkpoint", "auto")], ranks=2
    )
    answered = [entry["step"] for entry in runs.metrics("signalled") if "eval_task_accuracy" in entry]
    assert answered == list(range(stopped_at, 6))
