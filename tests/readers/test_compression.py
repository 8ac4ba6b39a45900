"""Compressions: several members are read, truncated and mislabelled files are named."""

import gzip
import lzma

import pytest

from tests.support.data_files import COMPRESSIONS, compressed, csv_table, json_array, json_lines
from tests.support.read_back import read_back, written

RECORDS = [{"text": f"Text {number}", "category": "c"} for number in range(200)]
CONTENT = {".jsonl": json_lines(RECORDS), ".json": json_array(RECORDS), ".csv": csv_table(RECORDS)}


@pytest.mark.parametrize("ending", COMPRESSIONS[1:])
@pytest.mark.parametrize("kind", CONTENT)
def test_truncated_files_are_named_with_the_place(tmp_path, kind, ending):
    content = compressed(CONTENT[kind], ending)
    records, refused = read_back(written(tmp_path, f"a{kind}{ending}", content[:-5]))
    assert records == RECORDS[: len(records)]
    (problem,) = refused
    assert problem.startswith(f"a{kind}{ending}")
    assert "damaged_file" in problem


@pytest.mark.parametrize("ending", COMPRESSIONS[1:])
def test_files_of_several_members_are_read_to_the_end(tmp_path, ending):
    lines, half = CONTENT[".jsonl"], len(CONTENT[".jsonl"]) // 2
    content = compressed(lines[:half], ending) + compressed(lines[half:], ending)
    assert read_back(written(tmp_path, f"a.jsonl{ending}", content)) == (RECORDS, [])


@pytest.mark.parametrize("ending", COMPRESSIONS[1:])
def test_what_is_not_compressed_as_its_name_says_is_named(tmp_path, ending):
    for content, reason in ((CONTENT[".jsonl"], "not compressed as its name says"), (b"", "it is empty")):
        records, (problem,) = read_back(written(tmp_path, f"a.jsonl{ending}", content))
        assert records == []
        assert reason in problem


@pytest.mark.parametrize("ending", COMPRESSIONS[1:])
def test_compressed_content_under_a_plain_name_is_named(tmp_path, ending):
    records, (problem,) = read_back(written(tmp_path, "a.jsonl", compressed(CONTENT[".jsonl"], ending)))
    assert records == []
    assert f"it is compressed ({ending})" in problem


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16LE"),
        ("utf-16-be", "UTF-16BE"),
        ("utf-32", "UTF-32"),
    ],
)
@pytest.mark.parametrize("file", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.jsonl.gz"])
def test_other_encodings_are_named(tmp_path, file, encoding, name):
    content = '{"text": "é"}\n'.encode(encoding)
    records, (problem,) = read_back(
        written(tmp_path, file, gzip.compress(content) if file.endswith(".gz") else content)
    )
    assert records == []
    assert f"it is in {name}, and only UTF-8 is read: convert it (iconv -f {name}" in problem


def test_damage_behind_the_content_is_not_passed_over(tmp_path):
    lines = CONTENT[".jsonl"]
    for name, content in (
        ("a.jsonl.gz", gzip.compress(lines) + b"rubbish"),
        ("b.jsonl.gz", gzip.compress(lines)[:-8] + bytes(8)),
        ("c.jsonl.xz", lzma.compress(lines)[:-8] + bytes(8)),
    ):
        records, (problem,) = read_back(written(tmp_path, name, content))
        assert records == RECORDS[: len(records)]
        assert "damaged_file" in problem
    for ending in (".gz", ".bz2", ".xz"):
        padded = compressed(lines, ending) + bytes(512)
        assert read_back(written(tmp_path, f"padded.jsonl{ending}", padded)) == (RECORDS, [])


@pytest.mark.parametrize("ending", COMPRESSIONS[1:])
def test_a_damaged_second_stream_is_not_taken_for_the_end(tmp_path, ending):
    lines, half = CONTENT[".jsonl"], len(CONTENT[".jsonl"]) // 2
    second = compressed(lines[half:], ending)
    for damaged in (b"?" + second[1:], second[:3]):
        content = compressed(lines[:half], ending) + damaged
        records, problems = read_back(written(tmp_path, f"a.jsonl{ending}", content))
        assert records == RECORDS[: len(records)]
        assert "damaged_file" in problems[-1]


def test_a_zstd_window_beyond_the_bound_is_named_with_what_to_do(tmp_path):
    # A frame of raw blocks with a window of 1 GB: magic, descriptor, window, one last block "{}\n".
    frame = b"\x28\xb5\x2f\xfd" + b"\x00" + bytes((20 << 3,)) + (1 | 3 << 3).to_bytes(3, "little") + b"{}\n"
    _, (problem,) = read_back(written(tmp_path, "a.jsonl.zst", frame))
    assert "its zstd window is larger than 128 MB: decompress it with zstd -d --long=31" in problem
    small = frame[:5] + bytes((10 << 3,)) + frame[6:]
    assert read_back(written(tmp_path, "a.jsonl.zst", small)) == ([{}], [])


def test_chinese_in_another_encoding_is_named(tmp_path):
    chinese = '{"text": "这是一个中文文本。"}\n'.encode("gb18030")
    western = '{"text": "Größe ähnlich über Öl"}\n'.encode("cp1252")
    _, refused = read_back(written(tmp_path, "a.jsonl", chinese + western))
    assert ["iconv -f GB18030" in problem for problem in refused] == [True, False]
