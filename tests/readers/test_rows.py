"""Rows: the same records in every format, and what cannot be read is named."""

import gzip
import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.readers import rows
from colossal_llama.readers.formats import Format, format_of
from colossal_llama.readers.listing import InputFile, find_input_files
from colossal_llama.readers.record import parse_row
from colossal_llama.readers.rows import FileRange, read_rows
from colossal_llama.utils.errors import UserError
from tests.support import data_files
from tests.support.read_back import read_back


def _rows(file_range):
    return [row for _, row in read_rows(file_range, 1 << 20)]


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
    for file in files:
        assert [parse_row(row) for row in _rows(FileRange(file))] == objects


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_that_has_vanished_or_cannot_be_read_is_named(tmp_path, name):
    path = tmp_path / name
    file_range = FileRange(InputFile(path, name, 10, 0, format_of(name)))
    with pytest.raises(UserError, match=f"{name} cannot be read: No such file .*it was there when the run began"):
        _rows(file_range)
    path.mkdir()
    with pytest.raises(UserError, match=f"{name} cannot be read: Is a directory"):
        _rows(file_range)


def test_a_range_inside_a_long_line_reads_no_further_than_its_end(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * 5000)
    monkeypatch.setattr(rows, "READ_BYTES", 100)
    file_range = FileRange(InputFile(path, "a", 5000, 0, Format(".jsonl")), 1000, 2000)
    with path.open("rb") as file:
        assert 2000 <= rows._skip_to_first_line(file, file_range.start, file_range.end) <= 2100
        assert file.tell() <= 2100
    assert _rows(file_range) == []


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\r"), max_size=30)
RECORDS = st.lists(
    st.fixed_dictionaries({"source": TEXTS, "target": TEXTS.filter(str.strip), "category": TEXTS}),
    min_size=1,
    max_size=6,
)


@given(records=RECORDS, compression=st.sampled_from(data_files.COMPRESSIONS))
@settings(max_examples=30, deadline=None)
def test_every_format_and_compression_gives_the_same_records(tmp_path_factory, records, compression):
    for format in data_files.FORMATS:
        directory = tmp_path_factory.mktemp("records")
        if format.is_compressible:
            format.write(directory, records, compression.upper())
            expected = [{"text": record["target"]} for record in records] if format.is_text else records
            assert read_back(directory) == (expected, [])


def test_everything_that_is_read_is_observed(tmp_path):
    records = [{"source": "", "target": f"text {number}", "category": "c"} for number in range(600)]
    for format in data_files.FORMATS:
        if format.is_compressible:
            directory = tmp_path / format.name.replace("`", "")
            directory.mkdir()
            format.write(directory, records[:1] if "file" in format.name else records, "")
            for file in find_input_files([directory])[0]:
                seen = []
                assert list(read_rows(FileRange(file), 1 << 20, seen.append))
                assert b"".join(seen) == file.path.read_bytes(), format.name
