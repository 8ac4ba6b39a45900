"""MMLU, CMMLU and C-Eval from files of the authors' layouts, and what is wrong in them."""

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.evaluation.tasks.four_choices import read_questions
from colossal_llama.evaluation.tasks.registry import open_tasks
from colossal_llama.utils.errors import UserError

HEADERLESS = 'Which is red?,sky,"blood, fresh",grass,snow,B\n"Two\nlines?",1,2,3,4,D\n'
NUMBERED = "question,choice0,choice1,choice2,choice3,answer\n"
NUMBERED += 'Which is red?,sky,"blood, fresh",grass,snow,1\n"Two\nlines?",1,2,3,4,3\n'
RENAMED = NUMBERED.replace("question", "input").replace("answer", "target")
INDEXED = ',Question,A,B,C,D,Answer\n0,Which is red?,sky,"blood, fresh",grass,snow,B\n1,"Two\nlines?",1,2,3,4,D\n'
INDEX_HEADERLESS = '0,Which is red?,sky,"blood, fresh",grass,snow,B\n1,"Two\nlines?",1,2,3,4,D\n'
EXPLAINED = (
    'id,question,A,B,C,D,answer,explanation\n0,Which is red?,sky,"blood, fresh",grass,snow,B,iron\n'
    '1,"Two\nlines?",1,2,3,4,D,\n'
)


def joined(question, options):
    return "|".join([question, *options])


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("content", [HEADERLESS, NUMBERED, RENAMED, INDEXED, INDEX_HEADERLESS, EXPLAINED])
@pytest.mark.parametrize("change", [str.encode, lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()])
def test_all_forms_of_a_file_are_the_same_questions(tmp_path, content, change):
    questions = read_questions(write(tmp_path / "x.csv", change(content)), joined)
    assert [question.text.replace("\r", "") for question in questions] == [
        "Which is red?|sky|blood, fresh|grass|snow",
        "Two\nlines?|1|2|3|4",
    ]
    assert [question.label for question in questions] == ["B", "D"]
    assert [question.index for question in questions] == [0, 1]
    assert [question.fault for question in questions] == [None, None]
    assert questions[0].options == ("sky", "blood, fresh", "grass", "snow")


CELLS = st.text(st.sampled_from('ab,;"\n é答 \u2028\x85'), min_size=1, max_size=6).filter(str.strip)


@given(st.lists(st.tuples(CELLS, CELLS, CELLS, CELLS, CELLS, st.sampled_from("ABCD")), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    questions = read_questions(path, joined)
    assert [question.text for question in questions] == ["|".join(row[:5]) for row in rows]
    assert [question.label for question in questions] == [row[5] for row in rows]


def test_faults_are_named_by_line_and_usable_labels_stay_scored(tmp_path):
    content = (
        ",Question,A,B,C,D,Answer\n0,q,1,2,3,4,A\n1,q,1,,3,4,B\n2,q,1,2,3,4,\n3,,1,2,3,4,c\n4,q,1,2,3,4,E\n5,q,1,2\n"
        "6,q,1,2,3,4,D\n"
    )
    questions = read_questions(write(tmp_path / "x.csv", content), joined)
    assert [(question.place, question.fault, question.is_scored) for question in questions] == [
        ("line 2", None, True),
        ("line 3", "option B is empty", True),
        ("line 4", "it has no answer", False),
        ("line 5", "the question is empty", True),
        ("line 6", "the answer is 'E', no letter of A to D", False),
        ("line 7", "4 cells, 7 are needed: is a quote or a comma missing?", False),
        ("line 8", None, True),
    ]
    assert questions[3].label == "C"
    assert questions[1].text == "q|1||3|4"


def test_a_row_that_is_no_strict_csv_is_read_as_python_reads_it(tmp_path):
    content = 'q,1,2,3,4,A\n"q" x,1,2,3,4,B\n' + "x" * 200_000 + ",1,2,3,4,C\nq,1,2,3,4,D\n"
    csv.field_size_limit(131_072)  # readers of other tests raise it
    questions = read_questions(write(tmp_path / "x.csv", content), joined)
    assert [(question.text[:3], question.label, question.is_scored) for question in questions] == [
        ("q|1", "A", True),
        ("q x", "B", True),
        ("", "", False),
        ("q|1", "D", True),
    ]
    assert questions[1].fault == "not valid csv: ',' expected after '\"'"
    assert questions[2].fault == "not valid csv: field larger than field limit (131072)"


def test_a_byte_in_another_encoding_is_a_fault_of_its_question(tmp_path):
    content = "q,1,2,3,4,A\né,1,2,3,4,B\n".encode() + "é,1,2,3,4,C\n".encode("latin-1") + "答,1,2,3,4,C\n".encode() * 2
    questions = read_questions(write(tmp_path / "x.csv", content), joined)
    assert [question.fault for question in questions] == [None, None, "a byte is not UTF-8", None, None]
    assert questions[2].text.startswith("\ufffd|")
    assert questions[2].is_scored


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("question,choice0,choice1,choice2,choice3,answer\n", "holds no question"),
        ("a,b,c\n1,2,3\n", "x.csv:1 is no csv of questions with four choices"),
        ("q,1,2,3,4,5\n", "x.csv:1 is no csv of questions with four choices"),
        ("question,A,B,C,D,E,answer\nq,1,2,3,4,5,E\n", "more than four choices"),
        ('q,1,2,3,4,A\n"q,1,2,3,4,B\nq,1,2,3,4,C\n', "the row that begins in line 2 has no end"),
        ("id,question,A,B,C,D\n0,q,1,2,3,4\n", "no column of answers"),
        ("id,question,A,B,C,D,answer\n0,q,1,2,3,4,\n", "no question that could be scored"),
        ("题目,一,二,三,四,A\n题,一,二,三,四,B\n".encode("gb18030"), "iconv -f GB18030"),
    ],
)
def test_a_file_of_another_shape_is_refused(tmp_path, content, words):
    with pytest.raises(UserError, match=r"x\.csv") as error:
        read_questions(write(tmp_path / "x.csv", content), joined)
    assert words in str(error.value)


def mmlu(directory: Path, subjects=("astronomy", "high_school_us_history", "us_foreign_policy")) -> Path:
    for subject in subjects:
        write(directory / "test" / f"{subject}_test.csv", HEADERLESS)
        write(directory / "dev" / f"{subject}_dev.csv", HEADERLESS)
    return directory


@pytest.mark.parametrize("folder", ["mmlu", "mmlu/data", "MMLU", "hendrycks_test/data"])
def test_mmlu(tmp_path, folder):
    mmlu(tmp_path / folder)
    subjects = open_tasks(["mmlu"], tmp_path)
    assert [(subject.name, subject.group) for subject in subjects] == [
        ("astronomy_test", "STEM"),
        ("high_school_us_history_test", "Humanities"),
        ("us_foreign_policy_test", "Social Sciences"),
    ]
    openings = [subject.opening.removeprefix("The following are multiple choice questions ") for subject in subjects]
    assert openings == [
        "(with answers) about Astronomy.",
        "(with answers) about High School US History.",
        "(with answers) about US Foreign Policy.",
    ]
    first = subjects[0]
    text = "Question: Which is red?\nA. sky\nB. blood, fresh\nC. grass\nD. snow\nAnswer: "
    assert (first.questions[0].text, first.questions[0].label) == (text, "B")
    assert [(example.text, example.answer) for example in first.examples] == [
        (question.text, question.label) for question in first.questions
    ]
    assert all(subject.notes == () for subject in subjects)
    assert open_tasks(["mmlu"], tmp_path, shots=1)[0].examples == first.examples[:1]
    assert open_tasks(["mmlu"], tmp_path, shots=0)[0].examples == ()
    assert [len(subject.questions) for subject in open_tasks(["mmlu"], tmp_path, limit=1)] == [1, 1, 1]


def test_a_subject_that_is_in_no_list_is_said(tmp_path):
    mmlu(tmp_path / "mmlu", ["us_knitting"])
    (subject,) = open_tasks(["mmlu"], tmp_path)
    assert subject.group == ""
    assert "about US Knitting." in subject.opening
    assert "us_knitting is not in MMLU's list" in subject.notes[0]


def test_a_missing_or_faulty_dev_file_is_named(tmp_path):
    mmlu(tmp_path / "mmlu", ["astronomy", "virology"])
    (tmp_path / "mmlu/dev/astronomy_dev.csv").unlink()
    write(tmp_path / "mmlu/dev/virology_dev.csv", "q,1,2,,4,A\nq,1,2,3,4,?\n")
    with pytest.raises(UserError) as error:
        open_tasks(["mmlu"], tmp_path)
    assert "astronomy_dev.csv does not exist" in error.value.problems[0]
    assert "virology_dev.csv, line 2: the answer is '?'" in error.value.problems[1]
    (subject,) = open_tasks(["mmlu"], tmp_path, ["virology"], shots=1)
    assert "virology_dev.csv, line 1: option C is empty" in subject.notes[0]


def test_cmmlu(tmp_path):
    for split in ("dev", "test"):
        write(tmp_path / "CMMLU/data" / split / "ancient_chinese.csv", INDEXED)
        write(tmp_path / "CMMLU/data" / split / "own_topic.csv", INDEXED)
    known, unknown = open_tasks(["cmmlu"], tmp_path)
    assert (known.second_group, unknown.second_group) == ("China specific", "")
    assert (known.opening, known.group) == (
        "以下是关于古汉语的单项选择题，请直接给出正确答案的选项。",
        "Social Science",
    )
    assert known.questions[0].text == "题目：Which is red?\nA. sky\nB. blood, fresh\nC. grass\nD. snow\n答案："
    assert (unknown.opening[:14], unknown.group) == ("以下是关于own topic", "")
    assert unknown.notes


def test_ceval_scores_val(tmp_path):
    write(tmp_path / "ceval-exam/dev/accountant_dev.csv", EXPLAINED)
    write(
        tmp_path / "ceval-exam/val/accountant_val.csv",
        EXPLAINED.replace(",explanation", "").replace(",iron", "").replace("D,\n", "D\n"),
    )
    write(tmp_path / "ceval-exam/test/accountant_test.csv", "id,question,A,B,C,D\n0,q,1,2,3,4\n")
    (subject,) = open_tasks(["ceval"], tmp_path, ["accountant"])
    with pytest.raises(
        UserError, match="--subjects accountant_test is no file of these tasks: did you mean 'accountant_val'"
    ):
        open_tasks(["ceval"], tmp_path, ["accountant_test"])
    assert (subject.name, subject.group) == ("accountant_val", "Other")
    assert subject.opening == "以下是中国关于注册会计师考试的单项选择题，请选出其中的正确答案。"
    assert len(subject.examples) == 2
    assert subject.questions[0].text.endswith("D. snow\n答案：")


@pytest.mark.parametrize(
    "content", ["id,question,A,B,C,D\n0,q,1,2,3,4\n", "id,question,A,B,C,D,answer\n0,q,1,2,3,4,\n"]
)
def test_cevals_test_split_without_answers_is_refused(tmp_path, content):
    write(tmp_path / "ceval/dev/accountant_dev.csv", EXPLAINED)
    write(tmp_path / "ceval/test/accountant_test.csv", content)
    with pytest.raises(UserError, match="use val"):
        open_tasks(["ceval"], tmp_path)


def test_the_real_files_have_no_fault(shared_data):
    subjects = open_tasks(["mmlu", "cmmlu"], shared_data / "eval")
    counts = {task: sum(len(s.questions) for s in subjects if s.task == task) for task in ("mmlu", "cmmlu")}
    assert counts == {"mmlu": 14042, "cmmlu": 11582}
    assert len(subjects) == 57 + 67
    assert all(len(subject.examples) == 5 and subject.group and not subject.notes for subject in subjects)
    assert [question.fault for subject in subjects for question in subject.questions if question.fault] == []
    assert sum(subject.second_group == "China specific" for subject in subjects) == 15


def test_a_row_of_commas_is_counted(tmp_path):
    content = "q,1,2,3,4,A\n,,,,,\n\nq,1,2,3,4,B\n"
    questions = read_questions(write(tmp_path / "x.csv", content), joined)
    assert [(question.index, question.place, question.is_scored) for question in questions] == [
        (0, "line 1", True),
        (1, "line 2", False),
        (2, "line 4", True),
    ]
    assert (questions[1].fault or "").endswith("it has no answer")


def test_letters_may_be_small_without_a_header(tmp_path):
    (question,) = read_questions(write(tmp_path / "x.csv", "q,1,2,3,4,b\n"), joined)
    assert question.label == "B"


def test_a_file_in_utf_16_is_refused_by_name(tmp_path):
    path = write(tmp_path / "x.csv", NUMBERED.encode("utf-16"))
    with pytest.raises(UserError, match="is in UTF-16, and only UTF-8 is read"):
        read_questions(path, joined)
