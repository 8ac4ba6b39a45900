"""Counts of parts are those of their rows, whatever the batches, the categories and the lengths."""

from collections import Counter

import datasets
import numpy as np
import pyarrow as pa
import pytest

from colossal_llama.dataset.count_tables import counts_as_record, counts_as_tables
from colossal_llama.dataset.part_counts import NO_CATEGORY, count_parts
from colossal_llama.utils.errors import UserError
from tests.support.written_parts import FILE, write_part


def random_rows(rng: np.random.Generator, rows: int, categories: int, max_length: int) -> list[list[tuple[int, int]]]:
    """Rows that segments of random lengths fill more or less."""
    found = []
    for _ in range(rows):
        row, left = [], int(rng.integers(1, max_length + 1))
        while left:
            length = int(rng.integers(1, left + 1))
            row.append((length, int(rng.integers(categories))))
            left -= length
        found.append(row)
    return found


@pytest.mark.parametrize(("max_length", "rows_per_batch"), [(8, 1), (64, 3), (1000, 1000), (5000, 7)])
def test_every_segment_is_counted_once(max_length, rows_per_batch, tmp_path):
    rng = np.random.default_rng(max_length)
    names = [["a", "b", "c"], ["c", "d"], ["a"]]
    parts = [random_rows(rng, count, len(names[number]), max_length) for number, count in enumerate((20, 0, 9))]
    paths = [
        write_part(tmp_path, number, rows, names[number], max_length, rows_per_batch)
        for number, rows in enumerate(parts)
    ]
    counts = count_parts(paths)
    assert counts.categories == ["a", "b", "c", "d"]
    named = [[(length, names[n][category]) for row in rows for length, category in row] for n, rows in enumerate(parts)]
    for number, segments in enumerate(named):
        for column, name in enumerate(counts.categories):
            of_name = [length for length, category in segments if category == name]
            assert counts.segments[number, column] == len(of_name)
            assert counts.tokens[number, column] == sum(of_name)
    lengths = [length for segments in named for length, _ in segments]
    assert dict(Counter(lengths)) == {length: count for length, count in enumerate(counts.lengths) if count}
    for edges, histogram in ((counts.log_edges, counts.log_lengths), (counts.linear_edges, counts.linear_lengths)):
        expected, _ = np.histogram(lengths, edges)
        assert histogram.sum(axis=0).tolist() == expected.tolist()
        assert expected.sum() == len(lengths)
    ordered = sorted(lengths)
    assert counts.length_quantile(0.5) == ordered[(len(ordered) - 1) // 2]
    assert counts.length_quantile(1) == ordered[-1]
    assert counts.fill.sum() == counts.rows.sum() == 29
    assert counts.fill_of() == pytest.approx(sum(lengths) / (29 * max_length))


def test_tables_and_record_have_all_numbers(tmp_path):
    names = [f"category {number}" for number in range(60)]
    paths = [write_part(tmp_path, part, [[(part + 3, part)]], names, 64) for part in range(50)]
    counts = count_parts(paths)
    tables = counts_as_tables(counts)
    assert "and 41 others" in tables
    assert "and 31 more" in tables
    total = sum(range(3, 53))
    assert [line.split()[1:3] for line in tables.splitlines() if line.startswith("total")] == [["50", f"{total:,}"]]
    record = counts_as_record(counts)
    assert record["tokens"] == total == sum(entry["tokens"] for entry in record["categories"].values())
    assert [sum(part["tokens"]) for part in record["parts"]] == list(range(3, 53))
    assert list(record["categories"]) == names


def test_parts_without_rows_are_counted(tmp_path):
    counts = count_parts([write_part(tmp_path, 0, [], ["a"], 32)])
    assert counts_as_record(counts)["tokens"] == counts.length_quantile(1) == 0
    assert "all parts" in counts_as_tables(counts)


@pytest.mark.parametrize("damage", ["category", "length", "cut off", "beyond max_length"])
def test_damage_is_named(damage, tmp_path):
    rows = [[(9, 5 if damage == "category" else 0)]]
    part = write_part(tmp_path, 0, rows, ["a"], 8 if damage == "beyond max_length" else 32)
    if damage == "length":
        with pa.OSFile(str(part / FILE), "rb") as file:
            table = pa.ipc.open_stream(file).read_all()
        changed = table.set_column(2, "document_lengths", pa.array([[8]], pa.list_(pa.int32())))
        with (part / FILE).open("wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(changed)
    if damage == "cut off":
        (part / FILE).write_bytes((part / FILE).read_bytes()[:-100])
    with pytest.raises(UserError, match=r"part-00000.* damaged"):
        count_parts([part])


def test_a_data_set_of_another_program_is_counted(tmp_path):
    ids = [[1, 2, 3], [4, 5, 6, 7, 8]]
    rows = datasets.Dataset.from_dict({"input_ids": ids, "labels": ids, "document_lengths": [[1, 2], [5]]})
    rows.save_to_disk(str(tmp_path / "saved"))
    part = write_part(tmp_path, 0, [[(9, 0)]], ["a"], 10)
    counts = count_parts([tmp_path / "saved", part])
    assert counts.categories == [NO_CATEGORY, "a"]
    assert counts.segments.tolist() == [[3, 0], [0, 1]]
    assert counts.tokens.tolist() == [[8, 0], [0, 9]]
    assert count_parts([tmp_path / "saved"]).max_length == 5
