"""Questions of `--eval_tasks`: what cannot be asked in training is refused, faults are named."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
from transformers import LlamaConfig, PreTrainedTokenizerFast

from colossal_llama.training.arguments import TaskArguments
from colossal_llama.training.task_questions import PromptedQuestion, describe_questions, open_questions
from colossal_llama.utils.errors import UserError
from tests.support.made_benchmarks import write_benchmarks


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture
def one_process(tmp_path) -> Iterator[None]:
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def tokenizer(toy) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(toy.model)


def questions_of(tokenizer, *tasks: object, **options: object) -> tuple[PromptedQuestion, ...]:
    named = {f"eval_task_{name}": value for name, value in options.items()}
    arguments = TaskArguments(eval_tasks=tuple(map(str, tasks)), **named)
    return open_questions(arguments, tokenizer, LlamaConfig(max_position_embeddings=2048))


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_all_tasks_of_one_token(one_process, tokenizer, benchmarks, capsys):
    tasks = ("mmlu", "cmmlu", "ceval", "agieval", "gaokao")
    questions = questions_of(tokenizer, *tasks, dir=benchmarks, limit=3)
    assert list(dict.fromkeys(question.task for question in questions)) == list(tasks)
    assert all(question.right in range(len(question.choices)) for question in questions)
    assert "--eval_tasks agieval: answered by the first token alone" in capsys.readouterr().out
    assert describe_questions(questions).startswith(f"{len(questions)} questions, ")


@pytest.mark.parametrize(
    ("tasks", "complaint"),
    [
        (("mmlu", "gsm8k", "asked.jsonl"), "the answers of asked, gsm8k are generated word by word"),
        (("mmlux",), "--eval_tasks mmlux is not known: did you mean 'mmlu'"),
        (("absent.jsonl",), "--eval_tasks absent.jsonl does not exist"),
    ],
)
def test_what_training_cannot_ask_is_refused(
    one_process, tokenizer, benchmarks, tmp_path, monkeypatch, tasks, complaint
):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "asked.jsonl", {"prompt": "w5 w6", "target": "w7"})
    with pytest.raises(UserError) as refused:
        questions_of(tokenizer, *tasks, dir=benchmarks)
    assert complaint in "; ".join(refused.value.problems)


def test_a_benchmark_without_its_directory_is_refused(one_process, tokenizer):
    with pytest.raises(UserError, match="--eval_tasks cmmlu needs --eval_task_dir"):
        questions_of(tokenizer, "cmmlu")


def test_more_tokens_than_positions_are_refused(one_process, tokenizer, benchmarks):
    with pytest.raises(UserError, match="--eval_task_max_length 4096 is more than the model's 2,048 positions"):
        questions_of(tokenizer, "mmlu", dir=benchmarks, max_length=4096)


def test_faults_are_named_and_counted_once(one_process, tokenizer, tmp_path, capsys):
    good = {"question": "w5 w6", "choices": ["w7", "w8"], "answer": "B"}
    file = write_lines(tmp_path / "own.jsonl", {**good, "answer": None}, good, "{no json\n", good)
    (first, second) = questions_of(tokenizer, file)
    assert (first.task, first.right, second.right) == ("own", 1, 1)
    printed = capsys.readouterr().out
    assert "questions with a fault in their file: 2, of which 2 cannot be scored" in printed
    assert f"{file}, line 1 (index 0)" in printed
    with pytest.raises(UserError, match="no question that could be scored is left"):
        questions_of(tokenizer, file, limit=1)
