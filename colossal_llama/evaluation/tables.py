"""Tables of scores: for the terminal, as Markdown and as JSON, with the paired tests.

OUT/table.md    by task, by group, by subject; each model's score ± standard error
OUT/table.json  the same numbers, unrounded
OUT/table.png   the figure (figure.py)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from colossal_llama.evaluation.faults import fault_records
from colossal_llama.evaluation.markdown_table import markdown_table
from colossal_llama.evaluation.questions import LETTER_OR_FIRST_TOKEN, Subject
from colossal_llama.evaluation.records import Key
from colossal_llama.evaluation.statistics import PairedTest, Score, paired_test
from colossal_llama.evaluation.tasks.registry import TASKS
from colossal_llama.utils.atomic_io import write_json, write_text
from colossal_llama.utils.console import table
from colossal_llama.utils.output_file import output_file_problem

TABLE_MD, TABLE_JSON, TABLE_PNG = "table.md", "table.json", "table.png"
TASK, GROUP, SUBJECT, ALL = "task", "group", "subject", "all"
_FORMAT = "colossal_llama.evaluation_table.1"
_MD_BEGINNING, _JSON_BEGINNING = b"# Evaluation\n", f'{{\n  "format": "{_FORMAT}"'.encode()
_MOST_SUBJECTS_IN_TERMINAL = 12

Answers = Mapping[Key, Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        level: TASK, GROUP, SUBJECT, or ALL tasks together.
        task: name of the task; "" for ALL.
        group: of a group or subject; "" for the others.
        name: that is shown: the task's title, the group's or the subject's name.
        shots: most examples before a question.
        questions: that are scored.
        chance: score of guessing among the choices, from 0 to 1; None where answers are generated.
        scores: by model.
        tests: of the first model against each other one, by its name.
    """

    level: str
    task: str
    group: str
    name: str
    shots: int
    questions: int
    chance: float | None
    scores: dict[str, Score]
    tests: dict[str, PairedTest]


def make_rows(subjects: Sequence[Subject], answers: Mapping[str, Answers]) -> list[Row]:
    """Makes the rows of all tasks: each task, its groups, its subjects; at last all tasks.

    Args:
        subjects: neighbours are of one task.
        answers: by model, the first of which is compared with the others.
    """
    rows, titles = [], []
    for task, members in groupby(subjects, lambda subject: subject.task):
        of_task = list(members)
        titles.append(TASKS[task].title if task in TASKS else task)
        rows.append(_row(TASK, titles[-1], of_task, answers))
        for group in _groups(of_task):
            members_of_group = [subject for subject in of_task if group in (subject.group, subject.second_group)]
            rows.append(_row(GROUP, group, members_of_group, answers))
        rows += [_row(SUBJECT, subject.name, [subject], answers) for subject in of_task]
    if len(titles) > 1:
        rows.append(_row(ALL, "all tasks", subjects, answers))
    return rows


def _groups(subjects: Sequence[Subject]) -> list[str]:
    """Groups by name, `Other` behind them, and at last those that overlap with them."""
    first = {subject.group for subject in subjects if subject.group}
    second = {subject.second_group for subject in subjects if subject.second_group} - first
    return [*sorted(first, key=lambda group: (group == "Other", group)), *sorted(second)]


def _row(level: str, name: str, subjects: Sequence[Subject], answers: Mapping[str, Answers]) -> Row:
    scored = [(subject, question) for subject in subjects for question in subject.questions if question.is_scored]
    keys = [(subject.task, subject.name, question.index) for subject, question in scored]
    correct = {model: [bool(of_model[key]["correct"]) for key in keys] for model, of_model in answers.items()}
    first, *others = answers
    choices = [len(question.choices) for _, question in scored]
    return Row(
        level,
        "" if level == ALL else subjects[0].task,
        name if level == GROUP else subjects[0].group if level == SUBJECT else "",
        name,
        max(len(subject.examples) for subject in subjects),
        len(keys),
        sum(1 / count for count in choices) / len(choices) if choices and all(choices) else None,
        {model: Score(sum(right), len(right)) for model, right in correct.items() if right},
        {other: paired_test(zip(correct[first], correct[other], strict=True)) for other in others if keys},
    )


def output_problems(directory: Path) -> Iterator[str]:
    """Problems of the tables' files: what another program has written is not replaced."""
    if not directory.is_dir():
        return
    for name, beginning in ((TABLE_MD, _MD_BEGINNING), (TABLE_JSON, _JSON_BEGINNING)):
        if problem := output_file_problem(directory / name, beginning):
            yield problem


def terminal_table(rows: Sequence[Row], models: Sequence[str]) -> str:
    """Formats tasks and groups for the terminal, and subjects where they are few."""
    subjects = sum(row.level == SUBJECT for row in rows)
    tasks = sum(row.level == TASK for row in rows)
    levels = {TASK, GROUP, ALL, *([SUBJECT] if tasks < subjects <= _MOST_SUBJECTS_IN_TERMINAL else [])}
    shown = [row for row in rows if row.level in levels and not (row.level == ALL and len(models) == 1)]
    indents = {GROUP: "  ", SUBJECT: "    "}
    lines = [[indents.get(row.level, "") + row.name, *_cells(row, models)] for row in shown]
    return table(["task", *_header(models)], lines)


def markdown(rows: Sequence[Row], models: Sequence[str], facts: Sequence[str]) -> str:
    """Formats all rows as a Markdown document.

    Args:
        rows: of the table.
        models: in their order; the first is compared with the others.
        facts: sentences on what was asked and how.
    """
    parts = ["# Evaluation", "", *(f"- {fact}" for fact in facts), ""]
    for level, title in ((TASK, "By task"), (GROUP, "By group"), (SUBJECT, "By subject")):
        shown = [row for row in rows if row.level == level or (level == TASK and row.level == ALL and len(models) > 1)]
        if not shown:
            continue
        header = [level] if level == TASK else ["task", level]
        lines = [
            [*([] if level == TASK else [row.task]), row.name, *(cell.strip() for cell in _cells(row, models))]
            for row in shown
        ]
        parts += [f"## {title}", "", markdown_table([*header, *_header(models)], lines), ""]
    return "\n".join(parts)


def facts_of(
    subjects: Sequence[Subject], rows: Sequence[Row], models: Sequence[str], settings: Mapping[str, Any]
) -> list[str]:
    """Sentences that a reader of the table needs."""
    shown = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    facts = [f"settings: {shown}", "scores in percent ± standard error (sample standard deviation / √questions)"]
    if any(row.chance is not None for row in rows):
        facts.append("chance: score of guessing among the choices")
    if any(subject.scored_by == LETTER_OR_FIRST_TOKEN for subject in subjects):
        facts.append(
            "AGIEval: right if the generated letter or the first-token answer is; two different guesses are right "
            "more often than chance"
        )
    if faults := fault_records(subjects):
        unscored = sum(not fault["is_scored"] for fault in faults)
        facts.append(f"questions with a fault in their file: {len(faults):,}, of which {unscored:,} are not scored")
    if len(models) > 1:
        facts += _facts_of_tests(rows, models)
    return facts


def _facts_of_tests(rows: Sequence[Row], models: Sequence[str]) -> list[str]:
    count = sum(len(row.tests) for row in rows if row.level in (TASK, GROUP))
    facts = [
        f"difference: {models[0]} less the other model; p: exact McNemar test on the questions where one alone is "
        "right (two-sided)"
    ]
    if count > 1:
        facts.append(
            f"{count} differences of tasks and groups are tested: one in 20 has p < 0.05 where no model is better; "
            f"over all of them, those with p < {0.05 / count:.2g} (0.05 / {count}, Bonferroni) are significant"
        )
    return facts


def json_content(rows: Sequence[Row], models: Mapping[str, str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of all rows as JSON values.

    Args:
        rows: of the table.
        models: path of each by name.
        settings: of the evaluation.
    """
    return {"format": _FORMAT, "models": dict(models), "settings": dict(settings), "rows": [_as_json(r) for r in rows]}


def write_tables(
    directory: Path, rows: Sequence[Row], models: Mapping[str, str], settings: Mapping[str, Any], facts: Sequence[str]
) -> None:
    """Writes table.md and table.json."""
    write_text(directory / TABLE_MD, markdown(rows, list(models), facts))
    write_json(directory / TABLE_JSON, json_content(rows, models, settings))


def _header(models: Sequence[str]) -> list[str]:
    differences = [cell for other in models[1:] for cell in (f"− {other}", "p")]
    return ["shots", "questions", "chance", *models, *differences]


def _cells(row: Row, models: Sequence[str]) -> list[str]:
    cells = [str(row.shots), f"{row.questions:,}", "" if row.chance is None else f"{100 * row.chance:.1f}"]
    cells += [_score_cell(row.scores.get(model)) for model in models]
    for other in models[1:]:
        test = row.tests.get(other)
        cells += [f"{100 * test.difference:+.2f}", p_cell(test.p_value)] if test else ["", ""]
    return cells


def _score_cell(score: Score | None) -> str:
    if score is None:
        return "none scored"
    error = score.standard_error
    return f"{100 * score.mean:.2f}" + ("" if error is None else f" ± {100 * error:.2f}")


def p_cell(p_value: float) -> str:
    """A p-value as a table shows it."""
    return "< 0.0001" if p_value < 1e-4 else f"{p_value:.2g}"


def _as_json(row: Row) -> dict[str, Any]:
    return {
        "level": row.level,
        "task": row.task,
        "group": row.group,
        "name": row.name,
        "shots": row.shots,
        "questions": row.questions,
        "chance": row.chance,
        "scores": {
            model: {"score": score.mean, "standard_error": score.standard_error, "correct": score.correct}
            for model, score in row.scores.items()
        },
        "tests": {
            other: {
                "difference": test.difference,
                "only_model_right": test.only_first,
                "only_other_right": test.only_second,
                "p_value": test.p_value,
            }
            for other, test in row.tests.items()
        },
    }
