"""Files of one's own questions: every format, answers of all forms, templates, faults."""

import json
from pathlib import Path

import pytest

from colossal_llama.evaluation.questions import FIRST_TOKEN, TARGET
from colossal_llama.evaluation.tasks.registry import open_tasks
from colossal_llama.utils.errors import UserError


def write(path: Path, rows: list) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def asked(choices, answer, **fields) -> dict:
    return {"question": "Which?", "choices": choices, "answer": answer, **fields}


@pytest.mark.parametrize(
    ("choices", "answer", "label"),
    [
        (["red", "blue"], "B", "B"),
        (["red", "blue"], "b", "B"),
        (["red", "blue"], 1, "B"),
        (["red", "blue"], "1", "B"),
        (["red", "blue"], " blue ", "B"),
        ([3, 5, 7], 2, "C"),
        ([3, 5, 7], "7", "C"),
        (["1", "2", "3", "4"], "2", "B"),
        (list("uvwxyz"), "F", "F"),
        ({"A": "red", "B": "blue"}, "B", "B"),
        ({"b": "blue", "a": "red"}, "b", "B"),
        ({"а": "красный", "б": "синий"}, "б", "B"),
        ({"1": "x", "2": "y"}, "2", "B"),
        ({"text": ["red", "blue"], "label": ["A", "B"]}, "B", "B"),
    ],
)
def test_an_answer_is_a_letter_a_place_or_a_text(tmp_path, choices, answer, label):
    (subject,) = open_tasks([write(tmp_path / "q.jsonl", [asked(choices, answer)])], None)
    (question,) = subject.questions
    assert (question.label, question.fault) == (label, None)
    assert question.choices == tuple("ABCDEFGH"[: len(question.options)])
    assert (subject.task, subject.name, subject.scored_by) == ("q", "q", FIRST_TOKEN)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (asked(["B", "A"], "A"), "\"answer\" 'A' could mean A or B: give the letter"),
        (asked(["1", "2", "3"], 1), '"answer" 1 could mean A or B: give the letter'),
        (asked(["x", "x"], "x"), "\"answer\" 'x' could mean A or B: give the letter"),
        (asked({"1": "2", "2": "1"}, "2"), "\"answer\" '2' could mean A or B: give the letter"),
        (asked(["x", "y"], "C"), "\"answer\" 'C' is no letter, place from 0 or text of a choice"),
        (asked(["x", "y"], 2), '"answer" 2 is no letter, place from 0 or text of a choice'),
        (asked(["x", "y"], -1), '"answer" -1 is no letter, place from 0 or text of a choice'),
        (asked(["x", "y"], None), '"answer" is null'),
        (asked(["x", "y"], True), '"answer" is true or false'),
        (asked(["x"], 0), '"choices" has 1 entries: 2 to 26 are needed'),
        (asked(["x", None], 0), "option B is null, a text is needed"),
        (asked("x", 0), '"choices" is a string: a list of texts is needed, or an object by letter'),
        (
            {"question": "Which?", "answer": 0},
            '"choices" is missing: a list of texts is needed, or an object by letter',
        ),
        ({"choices": ["x", "y"], "answer": 0}, '"question" is missing'),
        ("{", "not valid JSON"),
    ],
)
def test_a_fault_is_named_by_line(tmp_path, row, fault):
    (subject,) = open_tasks([write(tmp_path / "q.jsonl", [asked(["x", "y"], 0), "", row])], None)
    question = subject.questions[1]
    assert question.place == "line 3"
    assert not question.is_scored
    assert question.fault is not None
    assert question.fault.startswith(fault)


def test_an_empty_option_is_a_fault_and_scored(tmp_path):
    (subject,) = open_tasks([write(tmp_path / "q.jsonl", [asked(["x", " "], 0)])], None)
    assert (subject.questions[0].fault, subject.questions[0].is_scored) == ("option B is empty", True)


@pytest.mark.parametrize("ending", [".json", ".jsonl.gz", ".csv", ".parquet", ".tsv"])
def test_other_formats(tmp_path, ending):
    import gzip

    rows = [asked(["red", "blue"], "B"), asked(["sun", "moon"], "A")]
    path = tmp_path / f"q{ending}"
    if ending == ".json":
        path.write_text(json.dumps(rows))
    elif ending == ".jsonl.gz":
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    elif ending == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        lines = [
            ["question", "A", "B", "C", "answer"],
            ["Which?", "red", "blue", "", "B"],
            ["Which?", "sun", "moon", "", "A"],
        ]
        path.write_text("\n".join(("," if ending == ".csv" else "\t").join(line) for line in lines) + "\n")
    (subject,) = open_tasks([str(path)], None)
    assert subject.name == "q"
    assert [question.options for question in subject.questions] == [("red", "blue"), ("sun", "moon")]
    assert [question.label for question in subject.questions] == ["B", "A"]


def test_prompts_with_targets(tmp_path):
    rows = [
        {"prompt": "2 + 2 =", "target": 4},
        {"prompt": "Capital of France:", "target": " Paris "},
        {"prompt": "x", "target": None},
        {"prompt": "x", "target": ["a"]},
        {"prompt": "x"},
        {"prompt": "x", "target": ""},
    ]
    (subject,) = open_tasks([write(tmp_path / "q.jsonl", rows)], None)
    assert subject.scored_by == TARGET
    assert [question.label for question in subject.questions] == ["4", "Paris", "", "", "", ""]
    assert subject.questions[0].text == "2 + 2 ="
    assert [question.fault for question in subject.questions[2:]] == [
        '"target" is null, a string is needed',
        '"target" is a list, a string is needed',
        '"target" is missing',
        '"target" is empty',
    ]
    assert 16 <= subject.max_new_tokens <= 256


def test_two_kinds_in_a_file_are_refused(tmp_path):
    rows = [asked(["x", "y"], 0), {"prompt": "x", "target": "y"}]
    with pytest.raises(UserError, match='line 2 is a "prompt" with a "target"'):
        open_tasks([write(tmp_path / "q.jsonl", rows)], None)


def test_subjects_and_categories_are_lines_of_the_table(tmp_path):
    fields = [
        {"subject": "sky", "category": "nature"},
        {"category": "law"},
        {},
        {"subject": "sky", "category": "nature"},
    ]
    path = write(tmp_path / "q.jsonl", [asked(["x", "y"], 0, **extra) for extra in fields])
    subjects = open_tasks([path], None)
    assert [(s.name, s.group, [q.index for q in s.questions]) for s in subjects] == [
        ("law", "", [1]),
        ("q", "", [2]),
        ("sky", "nature", [0, 3]),
    ]
    assert [s.name for s in open_tasks([path], None, subjects=["sky"])] == ["sky"]
    assert [len(s.questions) for s in open_tasks([path], None, limit=1)] == [1, 1, 1]


def test_examples_are_read_from_the_file_next_to_it(tmp_path):
    path = write(tmp_path / "q.jsonl", [asked(["x", "y"], 0)])
    assert open_tasks([path], None)[0].examples == ()
    assert "no examples" in open_tasks([path], None, shots=2)[0].notes[0]
    write(tmp_path / "q_dev.jsonl", [asked(["u", "v"], 1)] * 3)
    (subject,) = open_tasks([path], None, shots=2)
    assert [(example.text, example.answer) for example in subject.examples] == [
        ("Question: Which?\nA. u\nB. v\nAnswer: ", "B")
    ] * 2
    assert "the first 2 of" in subject.notes[0]
    write(tmp_path / "q_dev.jsonl", [asked(["u", "v"], "w")])
    with pytest.raises(UserError, match=r"q_dev\.jsonl, line 1"):
        open_tasks([path], None, shots=2)


def test_a_template_words_questions_in_any_script(tmp_path):
    path = write(tmp_path / "q.jsonl", [asked(["붉다 {x}", "푸르다"], 1, subject="하늘", passage="글")])
    template = tmp_path / "template.txt"
    template.write_text("{subject}에 관한 문제\n---\n{passage}\n문제: {question}\n{choices}\n({letters}) {{정답}}: \n")
    (subject,) = open_tasks([path], None, template=template)
    assert subject.opening == "하늘에 관한 문제"
    assert subject.questions[0].text == "글\n문제: Which?\nA. 붉다 {x}\nB. 푸르다\n(A, B) {정답}: "
    prompts = write(tmp_path / "p.jsonl", [{"prompt": "x", "target": "y"}])
    template.write_bytes(b"\r\n>{prompt}<")
    assert open_tasks([prompts], None, template=template)[0].questions[0].text == "\n>x<"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{question} {chioces}", "{chioces} is no field of the questions: did you mean 'choices'?"),
        (b"{choices}", "shows no question"),
        (b"{question", "a brace itself"),
        (b"{question} }", "a brace itself"),
        (b"{question.__class__}", "{question.__class__} is no name"),
        (b"{question!r}", "{question!r} is no name"),
        (b"{question:>9}", "{question:>9} is no name"),
        (b"{} {question}", "{} is no name"),
        (b"{question} \xff", "is not UTF-8"),
        (b"", "shows no question"),
    ],
)
def test_a_bad_template_is_named(tmp_path, content, words):
    path = write(tmp_path / "q.jsonl", [asked(["x", "y"], 0)])
    template = tmp_path / "template.txt"
    template.write_bytes(content)
    with pytest.raises(UserError) as error:
        open_tasks([path], None, template=template)
    assert words in str(error.value)
    assert "template.txt" in str(error.value)


def test_a_field_that_only_some_questions_have_is_their_fault(tmp_path):
    path = write(tmp_path / "q.jsonl", [asked(["x", "y"], 0, passage="p"), asked(["x", "y"], 0)])
    template = tmp_path / "template.txt"
    template.write_text("{passage} {question}")
    (subject,) = open_tasks([path], None, template=template)
    assert [question.fault for question in subject.questions] == [
        None,
        '"passage" is missing, which the template names',
    ]


def test_a_template_that_shows_the_answer_is_refused(tmp_path):
    wording = tmp_path / "t.txt"
    wording.write_text("{question}\n{choices}\n정답: {answer}")
    with pytest.raises(UserError, match=r"shows \{answer\}, so that the prompt would give the answer away"):
        open_tasks([write(tmp_path / "q.jsonl", [asked(["x", "y"], 0)])], None, template=wording)
    wording.write_text("{prompt} {target}")
    with pytest.raises(UserError, match=r"shows \{target\}"):
        open_tasks([write(tmp_path / "p.jsonl", [{"prompt": "p", "target": "t"}])], None, template=wording)


def test_a_template_without_choices_is_said(tmp_path):
    wording = tmp_path / "t.txt"
    wording.write_text("{question}")
    (subject,) = open_tasks([write(tmp_path / "q.jsonl", [asked(["x", "y"], 0)])], None, template=wording)
    assert "does not show {choices}" in subject.notes[-1]


def test_an_opening_that_differs_within_a_subject_is_refused(tmp_path):
    wording = tmp_path / "t.txt"
    wording.write_text("On {topic}.\n---\n{question}\n{choices}")
    rows = [asked(["x", "y"], 0, topic="a"), asked(["x", "y"], 0, topic="b")]
    with pytest.raises(UserError, match=r"'On a\.' for line 1 and 'On b\.' for line 2, which are one subject"):
        open_tasks([write(tmp_path / "q.jsonl", rows)], None, template=wording)
    rows = [{**row, "subject": row["topic"]} for row in rows]
    subjects = open_tasks([write(tmp_path / "q.jsonl", rows)], None, template=wording)
    assert [subject.opening for subject in subjects] == ["On a.", "On b."]


def test_an_empty_prompt_is_a_fault_and_not_scored(tmp_path):
    rows = [{"prompt": "", "target": "a"}, {"prompt": "p", "target": "a"}]
    (subject,) = open_tasks([write(tmp_path / "p.jsonl", rows)], None)
    assert [(question.fault, question.is_scored) for question in subject.questions] == [
        ("the prompt is empty", False),
        (None, True),
    ]
    wording = tmp_path / "t.txt"
    wording.write_text("{question}")
    rows = [{**asked(["x", "y"], 0), "question": " "}, asked(["x", "y"], 0)]
    (subject,) = open_tasks([write(tmp_path / "q.jsonl", rows)], None, template=wording)
    assert [question.is_scored for question in subject.questions] == [False, True]
