"""Tables and the figure of scores: levels, chance, paired tests, names that are no words."""

import json
from dataclasses import replace

import pytest

from colossal_llama.evaluation.figure import draw_scores
from colossal_llama.evaluation.questions import FIRST_TOKEN, NUMBER, Question, Subject
from colossal_llama.evaluation.statistics import PairedTest
from colossal_llama.evaluation.tables import (
    GROUP,
    SUBJECT,
    TASK,
    facts_of,
    make_rows,
    markdown,
    output_problems,
    terminal_table,
    write_tables,
)


def subject_of(task: str, name: str, group: str, questions: int, choices: str = "ABCD", unscored: int = 0) -> Subject:
    asked = tuple(
        Question(index, "", "A", tuple(choices), fault="x" if index < unscored else None, is_scored=index >= unscored)
        for index in range(questions)
    )
    scored_by = FIRST_TOKEN if choices else NUMBER
    return Subject(task, name, group, f"{name}.csv", "", (), asked, scored_by)


def answers_of(subjects: list[Subject], right: dict[str, int]) -> dict:
    """The first answers of each subject are right."""
    return {
        (subject.task, subject.name, question.index): {"correct": place < right[subject.name]}
        for subject in subjects
        for place, question in enumerate(question for question in subject.questions if question.is_scored)
    }


@pytest.fixture
def subjects() -> list[Subject]:
    return [
        subject_of("mmlu", "a_test", "Other", 4),
        subject_of("mmlu", "b_test", "STEM", 6, unscored=1),
        subject_of("mmlu", "c_test", "STEM", 2, choices="ABCDEFGH"),
        subject_of("gsm8k", "test", "", 3, choices=""),
    ]


def test_tasks_groups_and_subjects_are_means_over_their_questions(subjects):
    answers = answers_of(subjects, {"a_test": 1, "b_test": 4, "c_test": 0, "test": 2})
    rows = make_rows(subjects, {"m": answers})
    found = {(row.level, row.name): (row.scores["m"].correct, row.questions) for row in rows}
    assert found == {
        (TASK, "MMLU"): (5, 11),
        (GROUP, "STEM"): (4, 7),
        (GROUP, "Other"): (1, 4),
        (SUBJECT, "a_test"): (1, 4),
        (SUBJECT, "b_test"): (4, 5),
        (SUBJECT, "c_test"): (0, 2),
        (TASK, "GSM8K"): (2, 3),
        (SUBJECT, "test"): (2, 3),
        ("all", "all tasks"): (7, 14),
    }
    assert [row.name for row in rows if row.level == GROUP] == ["STEM", "Other"]
    chances = {row.name: row.chance for row in rows}
    assert chances["MMLU"] == pytest.approx((9 / 4 + 2 / 8) / 11)
    assert chances["GSM8K"] is None
    assert not any(row.tests for row in rows)


def test_two_models_are_compared_on_each_level(subjects):
    first = answers_of(subjects, {"a_test": 4, "b_test": 5, "c_test": 2, "test": 0})
    second = answers_of(subjects, {"a_test": 0, "b_test": 0, "c_test": 0, "test": 1})
    rows = make_rows(subjects, {"new": first, "base": second})
    by_name = {row.name: row.tests["base"] for row in rows}
    assert by_name["MMLU"] == PairedTest(11, 11, 0)
    assert by_name["all tasks"] == PairedTest(14, 11, 1)
    facts = facts_of(subjects, rows, ["new", "base"], {"protocol": "published", "limit": None})
    assert "settings: protocol published" in facts
    assert "questions with a fault in their file: 1, of which 1 are not scored" in facts
    assert any("4 differences of tasks and groups are tested" in fact and "p < 0.013" in fact for fact in facts)
    shown = terminal_table(rows, ["new", "base"])
    assert "MMLU" in shown
    assert "100.00 ± 0.00" in shown
    assert "+100.00" in shown
    assert "0.00098" in shown  # 2 / 2**11


def test_names_stay_in_their_cells(subjects, tmp_path):
    rows = make_rows(subjects, {"a|b": answers_of(subjects, dict.fromkeys(("a_test", "b_test", "c_test", "test"), 1))})
    for line in markdown(rows, ["a|b"], []).splitlines():
        if line.startswith("|"):
            assert len(line.replace("\\|", "").strip("|").split("|")) in (5, 6)
    write_tables(tmp_path, rows, {"a|b": "/m"}, {}, [])
    assert json.loads((tmp_path / "table.json").read_text("utf-8"))["models"] == {"a|b": "/m"}
    assert list(output_problems(tmp_path)) == []  # its own tables are replaced
    (tmp_path / "table.json").write_text("{}")
    assert len(list(output_problems(tmp_path))) == 1


def test_the_figure_has_the_names_that_fonts_can_draw(subjects, tmp_path):
    answers = answers_of(subjects, dict.fromkeys(("a_test", "b_test", "c_test", "test"), 1))
    rows = make_rows(subjects, {"m": answers, "\ue000": answers})  # of the private use area
    assert draw_scores(rows, ["m", "\ue000"], tmp_path / "table.png") == {"\ue000": "#1"}
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_group_overlaps_with_the_others():
    given = [("a", "STEM", "China specific"), ("b", "STEM", ""), ("c", "Other", "China specific")]
    subjects = [replace(subject_of("cmmlu", name, group, 2), second_group=second) for name, group, second in given]
    rows = make_rows(subjects, {"m": answers_of(subjects, {"a": 2, "b": 0, "c": 1})})
    assert [(row.name, row.group, row.scores["m"].correct, row.questions) for row in rows if row.level == GROUP] == [
        ("STEM", "STEM", 2, 4),
        ("Other", "Other", 1, 2),
        ("China specific", "China specific", 3, 4),
    ]
