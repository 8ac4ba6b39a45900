"""Tasks by name: folders, subjects, all problems at once."""

from dataclasses import replace

import pytest

from colossal_llama.evaluation.records import subject_fingerprint
from colossal_llama.evaluation.tasks.registry import TASKS, open_found, open_tasks
from colossal_llama.utils.errors import UserError
from tests.evaluation.test_four_choices import HEADERLESS, INDEXED, mmlu, write
from tests.support.made_benchmarks import write_benchmarks


def test_all_problems_are_named_at_once(tmp_path):
    mmlu(tmp_path / "mmlu", ["astronomy", "virology"])
    write(tmp_path / "mmlu/test/astronomy_test.csv", "x\n")
    write(tmp_path / "mmlu/test/virology_test.csv", "")
    (tmp_path / "ceval").mkdir()
    with pytest.raises(UserError) as error:
        open_tasks(["mmlu", "cmmlu", "ceval", "mlmu", "a/b.jsonl", str(tmp_path)], tmp_path)
    assert [problem.replace(f"{tmp_path}", "DIR") for problem in error.value.problems] == [
        "--data_dir DIR has no folder cmmlu, with test/SUBJECT.csv and dev/SUBJECT.csv, also below data/",
        "DIR/ceval holds no file of C-Eval: val/SUBJECT_val.csv and dev/SUBJECT_dev.csv are looked for",
        "--tasks mlmu is not known: did you mean 'mmlu'?: known are mmlu, cmmlu, ceval, agieval, gaokao, gsm8k, and "
        "files of your own questions",
        "--tasks a/b.jsonl does not exist",
        "--tasks DIR is a directory: give its files",
        "DIR/mmlu/test/astronomy_test.csv:1 is no csv of questions with four choices: a row is the question, its "
        "options A to D and the letter of the answer, or the header names question, A to D (or choice0 to choice3) and "
        "answer",
        "DIR/mmlu/test/virology_test.csv is empty: copy it again",
    ]


@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("astronomy", ["cmmlu", "mmlu"]),
        ("Astronomy", ["cmmlu", "mmlu"]),
        ("astronomy.csv", ["cmmlu", "mmlu"]),
        ("astronomy_test", ["mmlu"]),
        ("astronomy_test.csv", ["mmlu"]),
    ],
)
def test_a_subject_is_named_with_or_without_its_split(tmp_path, name, tasks):
    mmlu(tmp_path / "mmlu")
    for split in ("dev", "test"):
        write(tmp_path / "cmmlu" / split / "astronomy.csv", INDEXED)
        write(tmp_path / "cmmlu" / split / "virology.csv", INDEXED)
    assert [subject.task for subject in open_tasks(["cmmlu", "mmlu"], tmp_path, [name])] == tasks


def test_an_unknown_subject_is_refused(tmp_path):
    mmlu(tmp_path / "mmlu")
    with pytest.raises(UserError, match="--subjects astronmy is no file of these tasks: did you mean 'astronomy_test'"):
        open_tasks(["mmlu"], tmp_path, ["astronmy"])


def test_a_benchmark_is_read_once_and_fewer_examples_are_said(tmp_path):
    mmlu(tmp_path / "mmlu")
    subjects = open_tasks(["mmlu", "MMLU"], tmp_path, shots=3)
    assert [subject.notes for subject in subjects] == [("--shots 3: 3 of 3 subjects have fewer examples",), (), ()]


def test_the_directory_may_be_that_of_the_task(tmp_path):
    mmlu(tmp_path / "mmlu")
    assert len(open_tasks(["mmlu"], tmp_path / "mmlu")) == 3


@pytest.mark.parametrize(("data_dir", "words"), [(None, "needs --data_dir"), ("absent", "is no directory")])
def test_a_directory_is_needed(tmp_path, data_dir, words):
    with pytest.raises(UserError, match=words):
        open_tasks(["gsm8k"], data_dir and tmp_path / data_dir)


def test_own_files_need_names_of_their_own(tmp_path):
    line = '{"question": "q", "choices": ["x", "y"], "answer": 0}\n'
    paths = [str(write(tmp_path / name, line)) for name in ("a/q.jsonl", "b/q.jsonl", "mmlu.jsonl")]
    with pytest.raises(UserError) as error:
        open_tasks(paths, None)
    assert "2 files are named q" in str(error.value)
    assert "mmlu is a benchmark" in str(error.value)
    with pytest.raises(UserError, match="--template has no effect"):
        open_tasks(["gsm8k"], tmp_path, template=write(tmp_path / "t.txt", "{question}"))


def test_other_files_are_no_subjects_and_a_link_to_nowhere_is_named(tmp_path):
    mmlu(tmp_path / "mmlu", ["astronomy"])
    write(tmp_path / "mmlu/test/readme.txt", "x")
    write(tmp_path / "mmlu/test/._astronomy_test.csv", HEADERLESS)
    write(tmp_path / "mmlu/__MACOSX/test/._astronomy_test.csv", HEADERLESS)
    assert [subject.name for subject in open_tasks(["mmlu"], tmp_path)] == ["astronomy_test"]
    (tmp_path / "mmlu/test/absent_test.csv").symlink_to("nowhere")
    (tmp_path / "mmlu/test/folder_test.csv").mkdir()
    with pytest.raises(UserError) as error:
        open_tasks(["mmlu"], tmp_path, shots=0)
    assert [problem.removeprefix(f"{tmp_path}/mmlu/test/") for problem in error.value.problems] == [
        "absent_test.csv cannot be read: No such file or directory",
        "folder_test.csv is a directory, a file is needed",
    ]


def test_the_tasks_are_those_of_the_published_table():
    assert list(TASKS) == ["mmlu", "cmmlu", "ceval", "agieval", "gaokao", "gsm8k"]
    assert {name: task.shots for name, task in TASKS.items()} == {
        "mmlu": 5,
        "cmmlu": 5,
        "ceval": 5,
        "agieval": 5,
        "gaokao": 0,
        "gsm8k": 8,
    }


@pytest.mark.parametrize("data_dir", [".", "data"])
def test_the_folder_of_mmlus_archive_is_found_where_there_is_no_other(tmp_path, data_dir):
    mmlu(tmp_path / "data", ["virology"])
    write(tmp_path / "data/ceval/test/virology_test.csv", INDEXED)
    assert [subject.name for subject in open_tasks(["mmlu"], tmp_path / data_dir)] == ["virology_test"]
    mmlu(tmp_path / "data/mmlu", ["anatomy"])
    mmlu(tmp_path / "mmlu", ["anatomy"])
    assert [subject.name for subject in open_tasks(["mmlu"], tmp_path / data_dir)] == ["anatomy_test"]


def test_another_folder_named_data_is_not_mmlus(tmp_path):
    for split in ("dev", "test"):
        write(tmp_path / "data/cmmlu" / split / "virology.csv", INDEXED)
        write(tmp_path / "data" / split / "one.csv", INDEXED)
    with pytest.raises(UserError, match="data holds no file of MMLU"):
        open_tasks(["mmlu"], tmp_path)
    with pytest.raises(UserError, match="has no folder mmlu"):
        open_tasks(["mmlu"], tmp_path / "data")


def test_a_second_copy_is_said_and_not_read(tmp_path):
    mmlu(tmp_path / "mmlu", ["virology"])
    mmlu(tmp_path / "hendrycks_test/data", ["anatomy"])
    (subject,) = open_tasks(["mmlu"], tmp_path)
    assert subject.name == "virology_test"
    assert subject.notes == (f"not read, as it holds MMLU, too: {tmp_path}/hendrycks_test/data/test",)


def test_found_benchmarks_are_read_whole_with_the_questions_apart_from_their_wording(tmp_path):
    data = write_benchmarks(tmp_path)
    subjects, refused = open_found(data)
    assert {subject.task for subject in subjects} == set(TASKS)
    assert {task for task, _, _ in refused} == {"ceval"}  # the test split has no answers
    assert all(reason for _, _, reason in refused)
    for subject in subjects:
        for question in subject.questions:
            assert question.stem
            assert all(line in question.text for line in question.stem.splitlines())
            assert not question.stem.startswith(("Question", "题目", "问题"))
            assert not any(f"A. {option}" in question.stem for option in question.options)


def test_each_folder_of_a_benchmark_is_searched_for_questions(tmp_path):
    """To evaluate, one is taken; documents must hold the questions of none."""
    mmlu(tmp_path / "mmlu", ["astronomy"])
    mmlu(tmp_path / "MMLU-main", ["virology"])
    assert len(open_tasks(["mmlu"], tmp_path, shots=0)) == 1
    subjects, refused = open_found(tmp_path)
    assert sorted(subject.name for subject in subjects) == ["astronomy_test", "virology_test"]
    assert not refused


def test_the_fingerprint_of_a_subject_is_that_of_earlier_records(tmp_path):
    subjects = open_tasks(["gsm8k"], write_benchmarks(tmp_path), shots=0)
    [subject] = subjects
    unknown_before = replace(subject, questions=tuple(replace(each, stem="") for each in subject.questions))
    assert subject_fingerprint(subject) == subject_fingerprint(unknown_before)
