"""GAOKAO-Bench: old and new names, letters of the first question, answers as lists."""

import json
from pathlib import Path

import pytest

from colossal_llama.evaluation.tasks.registry import open_tasks
from colossal_llama.utils.errors import UserError


def record(question="1. 哪个？\nA. 一 B. 二\nC．三 D．四\n", answer=("B",)) -> dict:
    return {"year": "2010", "question": question, "answer": list(answer) if isinstance(answer, tuple) else answer}


def write(path: Path, records: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"keywords": "x", "example": records}, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "name",
    [
        "gaokao_bench/Objective_Questions/2010-2022_Math_II_MCQs.json",
        "GAOKAO-Bench/Data/Objective_Questions/2010-2022_Political_Science_MCQs.json",
        "GAOKAO-Bench-main/data/Multiple-choice_Questions/2010-2013_English_MCQs.json",
        "gaokao/data/2010-2022全国卷选择题/2010_2022历史全国卷选择题.json",
        "gaokao/Bench/2016-2022全国卷一二三全科题目/2016-2022年理数全国卷选择题.json",
    ],
)
def test_the_authors_names(tmp_path, name):
    write(tmp_path / name, [record()])
    (subject,) = open_tasks(["gaokao"], tmp_path)
    assert subject.name == Path(name).stem
    assert (subject.opening, subject.examples, subject.max_new_tokens) == ("", (), 0)
    (question,) = subject.questions
    assert question.text == "1. 哪个？\nA. 一 B. 二\nC．三 D．四\n答案："
    assert (question.choices, question.label, question.fault) == (("A", "B", "C", "D"), "B", None)


@pytest.mark.parametrize(
    ("first", "choices"),
    [
        ("A. x B. y C. z", "ABC"),
        ("A．x B．y C．z D．u E．v", "ABCDE"),
        ("A. x B. y D. z", "AB"),
        ("J. Smith: A. x B. y C. z D. u", "ABCD"),
        ("no mark", "ABCD"),
    ],
)
def test_the_choices_are_those_of_the_first_question(tmp_path, first, choices):
    write(tmp_path / "gaokao/2010-2022_Biology_MCQs.json", [record(first, ("A",)), record()])
    (subject,) = open_tasks(["gaokao"], tmp_path)
    assert all(question.choices == tuple(choices) for question in subject.questions)


@pytest.mark.parametrize(
    ("faulty", "fault", "is_scored"),
    [
        (record("A. x B. y D. z"), "option C is missing", True),
        (record(answer=("A", "B")), "it has 2 answers, one letter is needed", False),
        (record(answer=("BC",)), "its answer is BC, not one letter of A to D", False),
        (record(answer=None), "it has no answer", False),
        (record(answer=()), "it has no answer", False),
        (record(answer="c"), None, True),
        (record(question=None), "it has no question", False),
        ("text", "it has no question", False),
    ],
)
def test_faults_are_named_by_index(tmp_path, faulty, fault, is_scored):
    write(tmp_path / "gaokao/2010-2022_Chemistry_MCQs.json", [record(), faulty, record()])
    (subject,) = open_tasks(["gaokao"], tmp_path)
    question = subject.questions[1]
    assert (question.place, question.fault, question.is_scored) == ("index 1", fault, is_scored)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"example": []}', b'{"other": 1}', b'{"example": [', b'{"a": "\xff"}']
)
def test_a_file_of_another_shape_is_refused(tmp_path, content):
    path = write(tmp_path / "gaokao/2010-2022_Chemistry_MCQs.json", [])
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"2010-2022_Chemistry_MCQs\.json"):
        open_tasks(["gaokao"], tmp_path)


def test_files_that_are_not_in_the_table_are_said_and_read_when_named(tmp_path):
    folder = tmp_path / "gaokao_bench/Objective_Questions"
    write(folder / "2010-2022_History_MCQs.json", [record()])
    write(folder / "2010-2022_Geography_MCQs.json", [record(answer=("A", "B")), record()])
    (subject,) = open_tasks(["gaokao"], tmp_path)
    assert "2010-2022_Geography_MCQs" in subject.notes[0]
    (named,) = open_tasks(["gaokao"], tmp_path, ["2010-2022_Geography_MCQs"])
    assert [question.is_scored for question in named.questions] == [False, True]


def test_the_real_files(shared_data):
    subjects = open_tasks(["gaokao"], shared_data / "eval")
    assert {subject.name: len(subject.questions) for subject in subjects} == {
        "2010-2013_English_MCQs": 105,
        "2010-2022_Biology_MCQs": 150,
        "2010-2022_Chemistry_MCQs": 124,
        "2010-2022_History_MCQs": 287,
        "2010-2022_Math_II_MCQs": 218,
        "2010-2022_Math_I_MCQs": 214,
        "2010-2022_Political_Science_MCQs": 320,
    }
    assert [question.fault for subject in subjects for question in subject.questions if question.fault] == []


def test_a_blank_before_the_dot_marks_no_choice_of_the_first_question(tmp_path):
    first = record("A. x B. y C. z D. u, vitamin E .")
    write(tmp_path / "gaokao/2010-2022_Biology_MCQs.json", [first, record("A . x B. y C. z D . u")])
    (subject,) = open_tasks(["gaokao"], tmp_path)
    assert [(question.choices, question.fault) for question in subject.questions] == [(tuple("ABCD"), None)] * 2


def test_a_folder_without_the_seven_is_read_when_named(tmp_path):
    write(tmp_path / "gaokao/Data/2010-2022_Geography_MCQs.json", [record()])
    with pytest.raises(UserError, match="holds only files not in the published table: 2010-2022_Geography_MCQs"):
        open_tasks(["gaokao"], tmp_path)
    (subject,) = open_tasks(["gaokao"], tmp_path, ["2010-2022_Geography_MCQs"])
    assert len(subject.questions) == 1
