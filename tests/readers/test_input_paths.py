"""Input paths: commas, several words, patterns and URLs mean the same in every script."""

import os
from pathlib import Path

import pytest

from colossal_llama.readers.input_paths import GatherPaths, input_paths, local_paths, split_paths
from colossal_llama.utils.cli import CollectingArgumentParser, InvalidArguments


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    for name in ("zh/a.jsonl", "zh/b.parquet", "en/a.jsonl", "one, two/c.jsonl", "x,y.jsonl", "[draft].txt", "e.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parsed(*words, type=input_paths, default=None):
    parser = CollectingArgumentParser()
    parser.add_argument("--inputs", nargs="+", type=type, action=GatherPaths, default=default)
    namespace = parser.parse_args(["--inputs", *words])
    parser.finish()
    return [str(path) for path in namespace.inputs]


@pytest.mark.parametrize(
    ("words", "paths"),
    [
        (["zh,en"], ["zh", "en"]),
        (["zh", "en"], ["zh", "en"]),
        (["zh", "--inputs", "en,e.md", "--inputs=x,y.jsonl"], ["zh", "en", "e.md", "x,y.jsonl"]),
        ([" zh , en ,,"], ["zh", "en"]),
        (["en,zh"], ["en", "zh"]),  # the order stays
        (["x,y.jsonl"], ["x,y.jsonl"]),
        (["one, two"], ["one, two"]),
        (["zh,x,y.jsonl,one, two,en"], ["zh", "x,y.jsonl", "one, two", "en"]),
        (["*/a.jsonl"], ["en/a.jsonl", "zh/a.jsonl"]),
        (["zh/*,e.??"], ["zh/a.jsonl", "zh/b.parquet", "e.md"]),
        (["zh/**"], ["zh"]),  # not the directory and its files again
        (["**/*.jsonl"], ["en/a.jsonl", "one, two/c.jsonl", "x,y.jsonl", "zh/a.jsonl"]),
        (["[draft].txt"], ["[draft].txt"]),  # it exists, so it is no pattern
        (["memory://bucket/a,zh,file:///", "hf://c"], ["memory://bucket/a", "zh", "/", "hf://c"]),
        (["./zh/"], ["zh"]),
    ],
)  # fmt: skip
def test_words_are_paths(corpus, words, paths):
    assert parsed(*words) == paths


def test_a_home_directory_that_the_shell_left_is_found(corpus, monkeypatch):
    monkeypatch.setenv("HOME", str(corpus))
    assert parsed("~/zh,~/en/*") == [f"{corpus}/zh", f"{corpus}/en/a.jsonl"]


def test_all_missing_paths_are_named_at_once_with_what_is_close(corpus, capsys):
    with pytest.raises(InvalidArguments) as raised:
        parsed("zh,zhh,En2/a.jsonl", "nothing/like/it", "*.foo", "")
    problems = "\n".join(raised.value.problems)
    assert "zhh does not exist (is zh meant?)" in problems
    assert "En2/a.jsonl does not exist (is en/a.jsonl meant?)" in problems
    assert "nothing/like/it does not exist" in problems
    assert "nothing matches *.foo" in problems
    assert "the name is empty" in problems
    assert "zh does not" not in problems


@pytest.mark.parametrize(
    "word", [",", " ", "x" * 300, "zh/a.jsonl/b", "/dev/null", "a\udcffb", "pipe", "loop", "broken"]
)
def test_what_is_no_file_is_refused(corpus, word):
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    Path("broken").symlink_to("gone")
    with pytest.raises(InvalidArguments) as raised:
        parsed(word)
    assert len(raised.value.problems) == 1


def test_parts_need_not_exist_yet_and_are_on_this_host(corpus):
    assert parsed("later,zh", "*/a.jsonl", type=local_paths, default=()) == ["later", "zh", "en/a.jsonl", "zh/a.jsonl"]
    with pytest.raises(InvalidArguments):
        parsed("s3://bucket/part-00000", type=local_paths, default=())


def test_very_many_commas_are_split_at_once(corpus):
    assert len(parsed(",".join(["zh"] * 5_000))) == 5_000


def test_patterns_in_file_urls_are_expanded(tmp_path):
    for name in ("train-0.jsonl", "train-1.jsonl", "test-0.jsonl"):
        (tmp_path / name).write_text("{}\n")
    assert split_paths(f"file://{tmp_path}/train*") == [tmp_path / "train-0.jsonl", tmp_path / "train-1.jsonl"]
