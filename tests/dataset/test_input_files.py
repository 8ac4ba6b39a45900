"""Input files: their order and names, lines in chunks of any size, and what cannot be read."""

import gzip
import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.dataset.prepare import input_files
from colossal_llama.dataset.prepare.input_files import (
    Chunk,
    InputFile,
    find_input_files,
    plan_chunks,
    read_rows,
    rows_before,
)
from colossal_llama.dataset.records import BYTE_ORDER_MARK, parse_row
from colossal_llama.utils.errors import UserError


def _rows(chunk):
    return [row for _, row in read_rows(chunk, hashlib.sha256(), 1 << 20)]


@given(content=st.binary(max_size=60).map(lambda data: data.replace(b"\x00", b"\n")), size=st.integers(1, 20))
@settings(max_examples=200, deadline=None)
def test_chunks_of_any_size_give_every_line_once(tmp_path_factory, content, size):
    path = tmp_path_factory.mktemp("chunks") / "a.jsonl"
    path.write_bytes(content)
    file = InputFile(path, "a.jsonl", len(content), 0)
    chunks = [Chunk(0, file, start, min(start + size, len(content)), None) for start in range(0, len(content), size)]
    lines = content.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    expected = [line.rstrip(b"\r\n") for line in lines]
    if expected:
        expected[0] = lines[0].removeprefix(BYTE_ORDER_MARK).rstrip(b"\r\n")
    seen = []
    for chunk in chunks:
        rows = _rows(chunk)
        if rows:
            assert rows_before(chunk) == len(seen)
        seen += rows
    assert seen == expected


def test_compressed_and_parquet_files_give_the_same_records(tmp_path):
    import pyarrow.parquet as pq

    objects = [{"source": "", "target": f"text {number}", "category": "c"} for number in range(600)]
    lines = "".join(json.dumps(item) + "\n" for item in objects).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    half = len(lines) // 2
    frames = [pa.compress(part, codec="zstd", asbytes=True) for part in (lines[:half], lines[half:])]
    (tmp_path / "c.jsonl.zst").write_bytes(b"".join(frames))
    pq.write_table(pa.Table.from_pylist(objects), tmp_path / "d.parquet")
    files, _ = find_input_files([tmp_path], tmp_path / "out")
    assert [file.path.name for file in files] == ["a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet"]
    for chunk in plan_chunks(files, None):
        assert [parse_row(row) for row in _rows(chunk)] == objects


def test_order_does_not_depend_on_the_order_of_directories(tmp_path):
    for name in ("b/x.jsonl", "a/y.jsonl", "a/deep/z.jsonl", "a/.hidden.jsonl", "a/notes.txt", "a/out/w.jsonl"):
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
    names = input_files._names_of(files)
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


@given(count=st.integers(1, 5), limit=st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_a_limit_is_shared_evenly(tmp_path_factory, count, limit):
    files = [InputFile(tmp_path_factory.getbasetemp() / f"{n}.jsonl", f"{n}", 10, 0) for n in range(count)]
    shares = [chunk.record_limit for chunk in plan_chunks(files, limit)]
    assert sum(shares) == limit
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_that_has_vanished_or_cannot_be_read_is_named(tmp_path, name):
    path = tmp_path / name
    chunk = Chunk(0, InputFile(path, name, 10, 0), 0, None, None)
    with pytest.raises(UserError, match=f"{name} cannot be read: No such file .*it was there when the run began"):
        _rows(chunk)
    path.mkdir()
    with pytest.raises(UserError, match=f"{name} cannot be read: Is a directory"):
        _rows(chunk)


def test_a_chunk_inside_a_long_line_reads_no_further_than_its_end(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * 5000)
    monkeypatch.setattr(input_files, "READ_BYTES", 100)
    chunk = Chunk(0, InputFile(path, "a", 5000, 0), 1000, 2000, None)
    with path.open("rb") as file:
        assert 2000 <= input_files._skip_to_first_line(file, chunk) <= 2100
        assert file.tell() <= 2100
    assert _rows(chunk) == []
