"""Files that a user may not have meant: they are read, and said."""

import gzip
from pathlib import Path

import pytest

from colossal_llama.readers.input_doubts import doubts_about
from colossal_llama.readers.listing import find_input_files


def _doubts(directory: Path, *names: str) -> str:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(b"{}\n") if name.endswith(".gz") else b"{}\n")
    return doubts_about(find_input_files([directory])[0])


def test_files_of_one_kind_leave_no_doubt(tmp_path):
    assert _doubts(tmp_path / "texts", "a.txt", "b.md", "deep/tests.txt", "trains.md") == ""
    assert _doubts(tmp_path / "records", "train-0.jsonl", "train-1.jsonl", "x/a.jsonl", "y/a.jsonl.gz") == ""
    assert _doubts(tmp_path / "tests", "test/a.jsonl", "dev/b.jsonl") == ""


def test_texts_next_to_records_are_counted_and_named(tmp_path):
    message = _doubts(tmp_path / "mixed", "a.jsonl", "b.jsonl", "README.md", "notes.md", "more/README.md")
    assert (
        message
        == "files that are read: .jsonl 2, .md 2; each text is one document: mixed/more/README.md, mixed/notes.md"
    )


@pytest.mark.parametrize("ending", [".jsonl", "-00000-of-00002.jsonl", "_1.csv.gz", "/part.jsonl"])
def test_splits_that_are_all_read_are_named_and_the_given_pattern_reads_one(tmp_path, ending):
    message = _doubts(tmp_path / "hub", f"data/test{ending}", f"data/train{ending}")
    directory = tmp_path / "hub" / "data"
    assert f"{directory} holds files of the splits test (1), train (1), and all are read" in message
    pattern = message.rsplit("'", 2)[1]
    found = [Path(path) for path in sorted(directory.glob(pattern.removeprefix(f"{directory}/")))]
    assert [path.relative_to(directory).as_posix() for path in found] == [f"train{ending}".split("/")[0]]
    assert doubts_about(find_input_files(found)[0]) == ""


def test_copies_that_differ_in_their_compression_are_named(tmp_path):
    message = _doubts(tmp_path / "in", "a.jsonl", "a.jsonl.gz", "b/a.jsonl")
    assert (
        message
        == "files that differ in their compression, and are all read: in/a.jsonl and in/a.jsonl.gz; are they copies?"
    )
