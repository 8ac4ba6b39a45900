"""Listing of input files: their order and names, and what is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.readers import listing
from colossal_llama.readers.listing import find_input_files
from colossal_llama.utils.errors import UserError


def test_order_does_not_depend_on_the_order_of_directories(tmp_path):
    for name in ("b/x.jsonl", "a/y.jsonl", "a/deep/z.jsonl", "a/.hidden.jsonl", "a/notes.doc", "a/out/w.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    one = find_input_files([tmp_path / "a", tmp_path / "b"], tmp_path / "a" / "out")
    other = find_input_files([tmp_path / "b", tmp_path / "a"], tmp_path / "a" / "out")
    assert one == other
    assert [file.name for file in one[0]] == ["a/deep/z.jsonl", "a/y.jsonl", "b/x.jsonl"]


def test_linked_directories_are_read_once_and_links_to_nothing_are_named(tmp_path):
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    for path in (
        corpus / "own" / "x.jsonl",
        elsewhere / "y.jsonl",
        corpus / ".ipynb_checkpoints" / "x-checkpoint.jsonl",
    ):
        path.parent.mkdir(parents=True)
        path.write_text("{}\n")
    (corpus / "linked").symlink_to(elsewhere)
    (corpus / "again").symlink_to(corpus / "own")
    (elsewhere / "round").symlink_to(corpus)
    files, _ = find_input_files([corpus], tmp_path / "out")
    assert [file.name for file in files] == ["corpus/linked/y.jsonl", "corpus/own/x.jsonl"]
    (corpus / "z.jsonl").symlink_to(tmp_path / "not_mounted" / "z.jsonl")
    with pytest.raises(UserError, match=r"z\.jsonl is a link to .*not_mounted/z\.jsonl, which does not exist"):
        find_input_files([corpus], tmp_path / "out")


def test_input_in_the_output_directory_alone_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="holds no file but those in the output directory"):
        find_input_files([tmp_path], tmp_path)


@given(st.lists(st.lists(st.sampled_from("ab"), min_size=2, max_size=5), min_size=2, max_size=6, unique_by=tuple))
def test_names_are_unique_and_no_longer_than_that_needs(parents):
    files = [(Path("/", *parent[:-1], "d", "f.jsonl"), Path("/", *parent[:-1], "d")) for parent in parents]
    files = [(path, directory) for path, directory in dict(files).items()]
    names = listing._names_of(files)
    assert len(set(names)) == len(files)
    for name, (path, _) in zip(names, files, strict=True):
        assert str(path).endswith(name)


def test_empty_and_overlapping_directories_are_named(tmp_path):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "deep" / "x.jsonl").write_text("{}\n")
    with pytest.raises(UserError) as raised:
        find_input_files([tmp_path / "a", tmp_path / "a" / "deep", tmp_path / "b"], tmp_path / "out")
    assert "reached twice" in str(raised.value)
    assert f"{tmp_path / 'b'} holds no file" in str(raised.value)


def test_what_is_about_records_is_unread_under_its_usual_names(tmp_path):
    about = ("README_zh.md", "readme-en.md", "AUTHORS.txt", "DATA_CARD.md", "dataset_card.md", "requirements.txt")
    meant = ("notices-of-1890.txt", "authors-of-rome.txt", "readmes.txt", "train.jsonl")
    for name in (*about, *meant):
        (tmp_path / name).write_text("{}\n")
    files, unread = find_input_files([tmp_path])
    assert {file.path.name for file in files} == set(meant)
    assert unread["count"] == len(about)
    (tmp_path / "train.jsonl").unlink()
    assert len(find_input_files([tmp_path])[0]) == len(about) + len(meant) - 1  # texts alone are documents


def test_hard_links_are_the_same_file(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    (tmp_path / "b.jsonl").hardlink_to(tmp_path / "a.jsonl")
    (tmp_path / "c.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"b\.jsonl is reached twice \(it is a hard link of .*a\.jsonl\), its"):
        find_input_files([tmp_path])
    (tmp_path / "b.jsonl").rename(tmp_path / "b.doc")
    assert len(find_input_files([tmp_path])[0]) == 2
