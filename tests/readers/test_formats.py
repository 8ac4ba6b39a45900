"""Formats by the endings of names, in any case."""

import pytest

from colossal_llama.readers.formats import Format, ending_of, format_of


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jsonl", Format(".jsonl")),
        ("A.JSONL.GZ", Format(".jsonl", ".gz")),
        ("part.0001.Parquet", Format(".parquet")),
        ("a.ndjson.zst", Format(".jsonl", ".zst")),
        ("shard-000.tgz", Format(".tar", ".gz")),
        ("shard-000.tar.XZ", Format(".tar", ".xz")),
        ("a.csv.bz2", Format(".csv", ".bz2")),
        ("a.gz", None),
        ("ajsonl", None),
        ("a.jsonl.zip", None),
        ("a.jsonl.gz.part", None),
        ("a.jsonl~", None),
    ],
)
def test_the_ending_decides_in_any_case(name, expected):
    assert format_of(name) == expected
    assert bool(ending_of(name)) is (expected is not None)
    assert name.endswith(ending_of(name))
