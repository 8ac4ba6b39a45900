"""AGIEval: wording in both languages, examples out of the csv, faults."""

import csv
import json
from pathlib import Path

import pytest

from colossal_llama.evaluation.questions import LETTER_OR_FIRST_TOKEN
from colossal_llama.evaluation.tasks.registry import open_tasks
from colossal_llama.utils.errors import UserError

OPTIONS = ["(A)one", "(B)two", "(C)three", "(D)four"]


def record(**fields) -> dict:
    return {"passage": None, "question": "How many?", "options": OPTIONS, "label": "B", "answer": None, **fields}


def write_set(directory: Path, name: str, records: list) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    lines = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in records]
    (directory / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_examples(path: Path, columns: dict[str, list[dict | str]]) -> None:
    """Rows of samples and explanations; a text stands as it is."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["", *columns])
        for number in range(5):
            cells = [examples[number] if number < len(examples) else "" for examples in columns.values()]
            writer.writerow(
                [f"sample {number + 1}", *(cell if isinstance(cell, str) else repr(cell) for cell in cells)]
            )
            writer.writerow([f"explanation {number + 1}", *("because" for _ in columns)])


def agieval(tmp_path: Path, records: list, name: str = "sat-en", examples: list | None = None) -> Path:
    directory = tmp_path / "agieval"
    write_set(directory / "v1", name, records)
    column = name.removesuffix("-without-passage")
    write_examples(directory / "few_shot_prompts.csv", {"other": [], column: examples or [record(passage="It rains.")]})
    return tmp_path


def test_the_english_wording(tmp_path):
    examples = [record(passage="It rains.", label="D"), record(passage=""), record()]
    (subject,) = open_tasks(
        ["agieval"], agieval(tmp_path, [record(passage="Once."), record(passage="")], examples=examples)
    )
    assert subject.opening == "Here are the answers for the problems in the exam."
    asked = "Question: How many? Choose from the following options: (A)one (B)two (C)three (D)four\nAnswer: "
    assert [question.text for question in subject.questions] == ["Once.\n\n" + asked, asked]
    given = "How many?\nChoose from the following options: (A)one (B)two (C)three (D)four\nAnswer: "
    assert [example.text for example in subject.examples] == [
        "Question: It rains. " + given,
        "Question:  " + given,
        "Question:  " + given,
    ]
    assert [example.answer for example in subject.examples] == ["D", "B", "B"]
    assert (subject.name, subject.group, subject.scored_by) == ("sat-en", "English", LETTER_OR_FIRST_TOKEN)
    assert subject.max_new_tokens == 32
    assert subject.questions[0].options == ("one", "two", "three", "four")
    assert subject.questions[0].choices == ("A", "B", "C", "D")


def test_the_chinese_wording(tmp_path):
    data = agieval(tmp_path, [record(passage="从前。")], "gaokao-history")
    (subject,) = open_tasks(["agieval"], data)
    assert subject.opening == "以下是考试中各个问题的答案。"
    assert subject.questions[0].text == (
        "从前。\n\n问题：How many? 从以下选项中选择：(A)one (B)two (C)three (D)four\n答案："
    )
    assert subject.examples[0].text == (
        "问题：It rains. How many?\n从以下选项中选择：(A)one (B)two (C)three (D)four\n答案："
    )


def test_sat_en_without_passage_has_sat_ens_examples_without_passages(tmp_path):
    (subject,) = open_tasks(["agieval"], agieval(tmp_path, [record()], "sat-en-without-passage"))
    assert subject.examples[0].text.startswith("Question:  How many?")


def test_shots_and_the_authors_folders(tmp_path):
    data = tmp_path / "AGIEval" / "data"
    write_set(data / "v1", "sat-math", [record()])
    write_set(data / "v1_1", "sat-math", [record(label=None)])
    write_examples(data / "few_shot_prompts.csv", {"sat-math": [record(), record(), record()]})
    (subject,) = open_tasks(["agieval"], tmp_path)
    assert subject.file.endswith("data/v1/sat-math.jsonl")
    assert len(subject.examples) == 3
    assert len(open_tasks(["agieval"], tmp_path, shots=2)[0].examples) == 2
    (data / "few_shot_prompts.csv").unlink()
    assert open_tasks(["agieval"], tmp_path, shots=0)[0].examples == ()
    with pytest.raises(UserError, match=r"few_shot_prompts\.csv does not exist"):
        open_tasks(["agieval"], tmp_path)


@pytest.mark.parametrize(
    ("line", "fault", "is_scored"),
    [
        (record(options=OPTIONS[:3]), "option D is missing", True),
        (record(options=[*OPTIONS[:2], OPTIONS[3]]), "option C is missing", True),
        (record(options=[*OPTIONS[:3], "(D)"]), "option D is empty", True),
        (record(options=[*OPTIONS[:3], "(C)four"]), "option D is missing; 2 options are C", True),
        (record(options=[*OPTIONS, "(B)more", "(E)five"]), "2 options are B; there is an option E", True),
        (record(options=["one", "two"]), "2 options, 4 are needed", True),
        (record(options=None), "it has no options", True),
        (record(passage=["x"]), "the passage is no text, and left out", True),
        (record(question=" "), "the question is empty", True),
        (record(label=None), "it has no label", False),
        (record(label=[]), "it has no label", False),
        (record(label=["C"]), "the label is a list of one letter", True),
        (record(label=["A", "C"]), "its label is A, C, not one letter of A to D", False),
        (record(label="AD"), "its label is AD, not one letter of A to D", False),
        ({"options": OPTIONS, "label": "A"}, '"question" is no text', False),
        ('{"question": ', "not valid JSON: ", False),
        ("[1]", "a JSON object is needed, not a list", False),
    ],
)
def test_a_fault_is_named_and_a_usable_label_scored(tmp_path, line, fault, is_scored):
    data = agieval(tmp_path, [record(), line, record(label="C")])
    (subject,) = open_tasks(["agieval"], data)
    assert [question.index for question in subject.questions] == [0, 1, 2]
    question = subject.questions[1]
    assert question.place == "line 2"
    assert question.fault is not None
    assert question.fault.startswith(fault)
    assert question.is_scored == is_scored
    assert [other.fault for other in subject.questions[::2]] == [None, None]


@pytest.mark.parametrize("options", [["A．一", "B．二", "C．三", "D．四"], ["   A. 1", "(B)2", "D: 4", "C 3"]])
def test_other_marks_of_options_are_no_faults(tmp_path, options):
    (subject,) = open_tasks(["agieval"], agieval(tmp_path, [record(options=options)]))
    assert subject.questions[0].fault is None


@pytest.mark.parametrize(
    "cell",
    [
        "__import__('os').system('touch ran')",
        "[1, 2",
        "{'passage': None}",
        "(" * 500,
        "{'question': 'x'}",
        r"{'question': '\ud800', 'label': 'A'}",
    ],
)
def test_a_cell_that_is_no_literal_is_named_and_not_run(tmp_path, monkeypatch, cell):
    monkeypatch.chdir(tmp_path)
    data = agieval(tmp_path, [record()], examples=[record(), cell])
    with pytest.raises(UserError, match=r"few_shot_prompts.csv: the row that begins in line 4, column sat-en"):
        open_tasks(["agieval"], data)
    assert not (tmp_path / "ran").exists()


def test_sets_that_are_not_in_the_table_are_said_and_read_when_named(tmp_path):
    data = agieval(tmp_path, [record()])
    write_set(data / "agieval/v1", "lsat-ar", [record(options=[*OPTIONS, "(E)five"], label="E")])
    write_set(data / "agieval/v1", "math", [record(options=None, label=None, answer="4")])
    (subject,) = open_tasks(["agieval"], data)
    assert "left out, as they are not in the published table: lsat-ar, math" in subject.notes[0]
    (named,) = open_tasks(["agieval"], data, ["lsat-ar"], shots=0)
    assert (named.questions[0].choices, named.questions[0].label) == (("A", "B", "C", "D", "E"), "E")
    with pytest.raises(UserError, match=r"math\.jsonl is not multiple choice"):
        open_tasks(["agieval"], data, ["math"], shots=0)


def test_a_file_without_records_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"sat-en\.jsonl holds no JSON object a line: line 1"):
        open_tasks(["agieval"], agieval(tmp_path, ["question,answer", "1,2"]))


def test_the_faults_of_the_real_files(shared_data):
    subjects = open_tasks(["agieval"], shared_data / "eval")
    assert len(subjects) == 11
    assert sum(len(subject.questions) for subject in subjects) == 3337
    found = {(subject.name, question.index + 1): question for subject in subjects for question in subject.questions}
    faults = {key: question.fault for key, question in found.items() if question.fault}
    assert faults == {
        ("gaokao-chemistry", 75): "option D is empty",
        ("gaokao-chemistry", 78): "option D is empty",
        ("gaokao-chemistry", 108): "option 1 has no letter; option 2 has no letter",
        ("logiqa-en", 11): "option 1 has no letter; option 2 has no letter",
        ("logiqa-en", 16): "option 3 has no letter; option 4 has no letter",
        ("logiqa-en", 525): "option 1 has no letter; option 4 has no letter",
        ("logiqa-en", 545): "option 2 has no letter",
        ("gaokao-history", 79): "option D is missing; 2 options are C",
        ("gaokao-history", 81): "option D is missing; 2 options are C",
        ("gaokao-history", 84): "option B is missing; 2 options are C",
    }
    assert all(question.is_scored for question in found.values())
    (law,) = open_tasks(["agieval"], shared_data / "eval", ["jec-qa-kd"])
    assert (law.questions[211].fault, law.questions[211].is_scored) == ("it has no label", False)


def test_options_without_a_letter_among_others_are_faults(tmp_path):
    options = ["(A)one", "two", "C。three", "four"]
    (subject,) = open_tasks(["agieval"], agieval(tmp_path, [record(options=options)]))
    (question,) = subject.questions
    assert (question.fault, question.is_scored) == ("option 2 has no letter; option 4 has no letter", True)


def test_a_folder_without_scored_sets_is_read_when_named(tmp_path):
    agieval(tmp_path, [record()], "lsat-ar")
    with pytest.raises(UserError, match="v1 holds only files not in the published table: lsat-ar"):
        open_tasks(["agieval"], tmp_path)
    (subject,) = open_tasks(["agieval"], tmp_path, ["lsat-ar"])
    assert len(subject.questions) == 1


def test_a_second_version_is_said(tmp_path):
    agieval(tmp_path, [record()])
    write_set(tmp_path / "agieval/v1_1", "sat-en", [record(), record()])
    (subject,) = open_tasks(["agieval"], tmp_path)
    assert len(subject.questions) == 1
    assert subject.notes == (f"not read, as it holds AGIEval, too: {tmp_path}/agieval/v1_1",)
