"""Parquet and Arrow files: every type of column that holds texts, damage, and bounded memory."""

import io
import random

import pyarrow as pa
import pytest
from pyarrow import parquet

from colossal_llama.readers.table_rows import parquet_rows
from tests.support.data_files import arrow_file, arrow_stream, parquet_table
from tests.support.read_back import read_back, written

ROWS = [{"text": f"Text {number}", "category": "c"} for number in range(100)]
WRITERS = {"a.parquet": parquet_table, "stream.arrow": arrow_stream, "file.arrow": arrow_file}


def _of(name: str, table: pa.Table) -> bytes:
    sink = io.BytesIO()
    if name.endswith(".parquet"):
        parquet.write_table(table, sink)
    else:
        with (pa.ipc.new_stream if name.startswith("s") else pa.ipc.new_file)(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue()


@pytest.mark.parametrize("name", WRITERS)
def test_columns_of_every_type_are_read(tmp_path, name):
    table = pa.table(
        {
            "plain": ["a", None, "c"],
            "large": pa.array(["a", "b", "c"], pa.large_string()),
            "categorical": pa.array(["x", "y", "x"]).dictionary_encode(),
            "binary": pa.array([b"a", b"\xff", None]),
            "messages": [[{"role": "user", "content": "Hi"}], [], None],
            "struct": [{"value": {"inner": 1}}, None, {"value": None}],
        }
    )
    records, refused = read_back(written(tmp_path, name, _of(name, table)))
    assert refused == []
    assert records[0] == {
        "plain": "a",
        "large": "a",
        "categorical": "x",
        "binary": "a",
        "messages": [{"role": "user", "content": "Hi"}],
        "struct": {"value": {"inner": 1}},
    }
    assert [record["binary"] for record in records] == ["a", b"\xff", None]
    assert [record["categorical"] for record in records] == ["x", "y", "x"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_truncated_file_is_damaged_wherever_it_ends(tmp_path, name):
    content = WRITERS[name](ROWS)
    for size in (*range(0, len(content), max(1, len(content) // 40)), len(content) - 8, len(content) - 1):
        records, refused = read_back(written(tmp_path, name, content[:size]))
        assert records == ROWS[: len(records)]
        assert len(refused) == 1, size
        assert refused[0].startswith(f"{name}, row {len(records) + 1}: ")
    assert read_back(written(tmp_path, name, content)) == (ROWS, [])


@pytest.mark.parametrize("name", WRITERS)
def test_flipped_bytes_are_read_or_named_and_never_end_the_process(tmp_path, name):
    content = WRITERS[name](ROWS)
    for place in range(0, len(content), 7):
        damaged = content[:place] + bytes((content[place] ^ 0xFF,)) + content[place + 1 :]
        records, refused = read_back(written(tmp_path, name, damaged))
        assert len(records) <= len(ROWS) + 1
        assert all(" row " in problem for problem in refused)


@pytest.mark.parametrize("name", WRITERS)
def test_other_content_and_doubled_columns_are_named(tmp_path, name):
    _, (problem,) = read_back(written(tmp_path, name, b'{"text": "A"}\n'))
    assert "unusable_file: the file cannot be used: it does not begin as " in problem
    double = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    records, (problem,) = read_back(written(tmp_path, name, _of(name, double)))
    assert (records, "two columns are named 'text'" in problem) == ([], True)


@pytest.mark.parametrize("name", WRITERS)
def test_a_row_beyond_the_bound_is_named_and_the_others_are_read(tmp_path, name):
    rows = [*ROWS[:3], {"text": "x" * 9000, "category": "c"}, *ROWS[3:]]
    records, (problem,) = read_back(written(tmp_path, name, WRITERS[name](rows)), max_bytes=5000)
    assert records == ROWS
    assert problem.startswith(f"{name}, row 4: line_too_long: the row has")


def test_a_large_row_group_is_read_in_small_blocks(tmp_path):
    texts = [random.Random(number).randbytes(2_000).hex() for number in range(4_000)]
    parquet.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", compression="none", use_dictionary=False)
    assert parquet.read_metadata(tmp_path / "a.parquet").num_row_groups == 1

    class Observed(io.FileIO):
        longest_read_bytes = 0

        def read(self, size=-1):
            data = super().read(size)
            self.longest_read_bytes = max(self.longest_read_bytes, len(data))
            return data

    with Observed(tmp_path / "a.parquet") as file:
        assert [row["text"] for row in parquet_rows(file, 1 << 20)] == texts
        assert file.longest_read_bytes < 4 << 20, "measured: 2 MB, and 16 of the whole column"
