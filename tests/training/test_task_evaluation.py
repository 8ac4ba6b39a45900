"""Benchmark questions during training: the answers of evaluate.py, and nothing else changes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from colossal_llama.evaluation.prompts import PromptEncoder, prompt_ids
from colossal_llama.evaluation.tasks.registry import open_tasks
from colossal_llama.tokenizer.loading import load_tokenizer, tokenizer_fingerprint
from tests.support.training_runs import Runner, Toy, make_toy
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
    """The tiny model, whose tokenizer knows letters."""
    made = make_toy(tmp_path_factory.mktemp("task_toy"))
    file = made.model / "tokenizer.json"
    words = {f'"w{number}"': f'"{word}"' for number, word in enumerate(WORDS, start=50)}
    text = file.read_text(encoding="utf-8")
    for old, new in words.items():
        text = text.replace(old, new)
    file.write_text(text, encoding="utf-8")
    fingerprint = tokenizer_fingerprint(load_tokenizer(made.model))
    for part in (*made.parts, *made.sft_parts):
        note = json.loads((part / "part.json").read_text())
        (part / "part.json").write_text(json.dumps({**note, "tokenizer_fingerprint": fingerprint}))
    return made


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    """37 questions of several lengths and numbers of choices."""
    generator = np.random.default_rng(3)
    file = tmp_path_factory.mktemp("questions") / "own.jsonl"
    lines = []
    for _ in range(37):
        words = [f"w{number}" for number in generator.integers(70, 200, generator.integers(2, 40))]
        choices = [f"w{number}" for number in generator.integers(70, 200, generator.integers(2, 6))]
        answer = int(generator.integers(len(choices)))
        lines.append({"question": " ".join(words), "choices": choices, "answer": answer})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def dropout(toy, tmp_path_factory) -> Path:
    """The model with attention dropout: a random number drawn more shows."""
    path = tmp_path_factory.mktemp("task_dropout") / "model"
    shutil.copytree(toy.model, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.1}))
    return path


@pytest.fixture(scope="module")
def answered(toy, questions) -> tuple[Path, Path]:
    """The questions with the untrained model's own answers, by transformers alone, as labels; and
    with other ones.
    """
    model, tokenizer = AutoModelForCausalLM.from_pretrained(toy.model).eval(), load_tokenizer(toy.model)
    (subject,) = open_tasks([str(questions)], None)
    encoder = PromptEncoder(tokenizer)
    lines = [json.loads(line) for line in questions.read_text().splitlines()]
    for line, question in zip(lines, subject.questions, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt_ids(subject, question, encoder, 2048)])).logits[0, -1]
        scores = [max(logits[token].item() for token in encoder.choice_token_ids(c)) for c in question.choices]
        line["answer"] = scores.index(max(scores))
    assert len({line["answer"] for line in lines}) > 1
    right, wrong = questions.with_name("right.jsonl"), questions.with_name("wrong.jsonl")
    right.write_text("".join(json.dumps(line) + "\n" for line in lines))
    others = [{**line, "answer": (line["answer"] + 1) % len(line["choices"])} for line in lines]
    wrong.write_text("".join(json.dumps(line) + "\n" for line in others))
    return right, wrong


@pytest.fixture(scope="module")
def runs(project_root, toy, questions, answered, dropout, tmp_path_factory) -> Runner:
    """Each plugin with and without questions, on two ranks, in one launch."""
    runner = Runner(project_root, toy, tmp_path_factory.mktemp("task_runs"))
    asked = ("--eval_tasks", str(questions), "--eval_task_interval", "2")
    commands = []
    for name, options in possible(PLUGINS).items():
        commands.append(runner.command(f"{name}_plain", *BATCH, *options))
        commands.append(runner.command(f"{name}_asked", *BATCH, *options, *asked))
        if "bf16" not in options:
            still = ("--max_steps", "1", "--eval_tasks", *map(str, answered))
            commands.append(runner.command(f"{name}_still", *BATCH, *options, "--lr", "1e-30", *still))
    random = ("--use_neft", "--pretrained", str(dropout))
    commands.append(runner.command("random_plain", *BATCH, *random))
    commands.append(runner.command("random_asked", *BATCH, *random, *asked))
    runner.run(commands, ranks=2)
    return runner


@pytest.mark.parametrize("name", [*run_names(PLUGINS), "random"])
def test_questions_change_nothing(runs, name):
    """Bit for bit."""
    plain, asked = runs.metrics(f"{name}_plain"), runs.metrics(f"{name}_asked")
    for key in ("loss", "gradient_norm", "learning_rate", "loss_by_category"):
        assert [entry[key] for entry in asked] == [entry[key] for entry in plain]
    expected = runs.weights(f"{name}_plain")
    assert all(torch.equal(tensor, expected[key]) for key, tensor in runs.weights(f"{name}_asked").items())


@pytest.mark.parametrize(
    "name", run_names({name: options for name, options in PLUGINS.items() if "bf16" not in options})
)
def test_every_answer_is_that_of_transformers(runs, name):
    (entry,) = runs.metrics(f"{name}_still")
    assert entry["eval_task_correct"] == {"right": 37, "wrong": 0}
    assert entry["eval_task_questions"] == {"right": 37, "wrong": 37}
    assert entry["eval_task_accuracy"] == {"right": 1.0, "wrong": 0.0}


@pytest.mark.parametrize("name", run_names(PLUGINS))
def test_asked_at_intervals_and_at_the_end(runs, name):
    steps = [entry["step"] for entry in runs.metrics(f"{name}_asked") if "eval_task_accuracy" in entry]
    assert steps == [2, 4, 5]
