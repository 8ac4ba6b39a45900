"""GSM8K: worked examples of the train file, numbers, faults."""

import json
from pathlib import Path

import pytest

from colossal_llama.evaluation.answers import last_number
from colossal_llama.evaluation.tasks.registry import open_tasks
from colossal_llama.utils.errors import UserError

WORKED = "He has 2*3=<<2*3=6>>6 pens.\n\nThen 6+1,000=<<6+1000=1006>>1,006.\n#### 1,006"


def write(path: Path, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("folder", ["gsm8k", "GSM8K", "grade-school-math/grade_school_math/data"])
def test_questions_and_examples(tmp_path, folder):
    write(tmp_path / folder / "test.jsonl", [{"question": "How many?", "answer": WORKED}])
    write(tmp_path / folder / "train.jsonl", ["broken", *({"question": f"Q{n}?", "answer": WORKED} for n in range(9))])
    (subject,) = open_tasks(["gsm8k"], tmp_path)
    assert subject.name == "test"
    (question,) = subject.questions
    assert question.text == "Question: How many?\nLet's think step by step\n"
    assert question.label == "1006"
    assert len(subject.examples) == 8
    assert subject.examples[0].text == "Question: Q0?\nLet's think step by step\n"
    assert subject.examples[0].answer == "He has 2*3=6 pens.\nThen 6+1,000=1,006.\nThe answer is 1006"
    assert last_number(subject.examples[0].answer) == "1006"
    assert subject.notes == (f"the examples are the first 8 of {tmp_path / folder}/train.jsonl: lines 2 to 9",)
    assert subject.stop_texts == ("\n\n", "Question:")
    assert subject.max_new_tokens == 256


def test_faults(tmp_path):
    rows = [
        {"question": "a", "answer": "#### -3"},
        {"question": "b", "answer": "no mark 4"},
        {"question": None, "answer": "#### 3"},
        {"question": "c"},
        "{",
        {"question": "d", "answer": "#### $2.50"},
    ]
    write(tmp_path / "gsm8k/test.jsonl", rows)
    (subject,) = open_tasks(["gsm8k"], tmp_path, shots=0)
    assert [question.label for question in subject.questions] == ["-3", "", "", "", "", "2.50"]
    assert [question.is_scored for question in subject.questions] == [True, False, False, False, False, True]
    assert subject.questions[1].fault == "its answer has no number behind ####"
    assert subject.questions[2].fault == '"question" is no text'
    assert [question.place for question in subject.questions] == [f"line {number}" for number in range(1, 7)]


def test_without_the_train_file_there_are_no_examples(tmp_path):
    write(tmp_path / "gsm8k/test.jsonl", [{"question": "a", "answer": "#### 3"}])
    with pytest.raises(UserError, match=r"train\.jsonl does not exist"):
        open_tasks(["gsm8k"], tmp_path)


def test_the_real_files(shared_data):
    (subject,) = open_tasks(["gsm8k"], shared_data / "eval")
    assert len(subject.questions) == 1319
    assert all(question.fault is None for question in subject.questions)
    assert all("<<" not in example.answer and "####" not in example.answer for example in subject.examples)
    assert all(last_number(example.answer) for example in subject.examples)
