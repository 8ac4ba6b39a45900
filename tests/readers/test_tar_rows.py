"""Tar archives: members of every format, hidden and other ones, damage, samples of WebDataset."""

import gzip
import io
import json
import tarfile

import pytest

from colossal_llama.readers.listing import find_input_files
from colossal_llama.readers.rows import FileRange, read_rows
from tests.support.data_files import COMPRESSIONS, FORMATS, compressed, csv_table, json_lines, parquet_table, tar_of
from tests.support.read_back import read_back, written

ROWS = [{"text": f"Text {number}", "category": "c"} for number in range(20)]
LINES = json_lines(ROWS)


@pytest.mark.parametrize("ending", COMPRESSIONS)
def test_members_of_every_format_are_read_in_order(tmp_path, ending):
    members, expected = [], []
    for number, format in enumerate(FORMATS):
        folder = tmp_path / str(number)
        folder.mkdir()
        if format.is_compressible and ".tar" not in format.name:
            format.write(folder, [{**row, "target": row["text"]} for row in ROWS[:3]], ".gz")
            members += [(f"{number}/{path.name}", path.read_bytes()) for path in sorted(folder.iterdir())]
            expected += [
                {"text": row["text"]} if format.is_text else {**row, "target": row["text"]} for row in ROWS[:3]
            ]
    assert len(members) > 10
    assert read_back(written(tmp_path, f"a.tar{ending}", compressed(tar_of(members), ending))) == (expected, [])


def unread_of(path) -> list[str]:
    """Members of an archive that are not read."""
    names: list[str] = []
    (file,), _ = find_input_files([path])
    for _ in read_rows(FileRange(file), 1 << 20, on_unread=names.append):
        pass
    return names


def test_other_members_are_counted_archives_named_and_hidden_ones_left_out(tmp_path):
    members = [("x/._a.jsonl", b"\0junk"), ("x/a.jsonl", LINES), ("x/image.png", b"png"), ("b.tar", tar_of([]))]
    path = written(tmp_path, "a.tar", tar_of([("LICENSE", b"MIT"), *members, ("no_ending", b"x")]))
    records, (problem,) = read_back(path)
    assert records == ROWS
    assert problem.startswith("a.tar:b.tar: unread_member: b.tar in the archive is an archive itself")
    assert unread_of(path) == ["LICENSE", "x/image.png", "no_ending"]


@pytest.mark.parametrize("name", ["README.md", "d/LICENSE.txt", "readme-en.md.gz"])
def test_a_text_about_the_records_of_an_archive_is_not_read(tmp_path, name):
    about = (name, compressed(b"About the data.", ".gz") if name.endswith("gz") else b"About the data.")
    for members in (
        [about, ("a.jsonl", LINES)],
        [("a.jsonl", LINES), about],
        [about, about, ("i.png", b""), ("a.csv", csv_table(ROWS))],
    ):
        path = written(tmp_path, "a.tar", tar_of(members))
        assert read_back(path) == (ROWS, [])
        assert set(unread_of(path)) - {"i.png"} == {name}
    for members in ([about, ("b.txt", b"B")], [about]):
        path = written(tmp_path, "a.tar", tar_of(members))
        assert read_back(path)[0][0] == {"text": "About the data."}, "next to texts it is one"
        assert unread_of(path) == []
    many = [(f"{number}/README.md", f"Text {number}".encode()) for number in range(50)]
    records, _ = read_back(written(tmp_path, "a.tar", tar_of(many)))
    assert [record["text"] for record in records] == [f"Text {number}" for number in range(50)]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_are_named(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        content, link = tarfile.TarInfo("a.jsonl"), tarfile.TarInfo("b.jsonl")
        content.size, link.type, link.linkname = len(LINES), kind, "a.jsonl"
        archive.addfile(content, io.BytesIO(LINES))
        archive.addfile(link)
    records, (problem,) = read_back(tmp_path / "a.tar")
    assert records == ROWS
    assert problem.startswith("a.tar:b.jsonl: unread_member: b.jsonl in the archive is a link")


def test_a_damaged_member_is_named_and_the_others_are_read(tmp_path):
    members = [("a.jsonl.gz", gzip.compress(LINES)[:-9]), ("b.csv", csv_table(ROWS)), ("c.parquet", b"PAR1")]
    bad_line = ("d.jsonl", b'{"text": "A"}\n{"text":\n')
    records, refused = read_back(written(tmp_path, "a.tar", tar_of([*members, bad_line])))
    assert records[-21:] == [*ROWS, {"text": "A"}]
    assert [problem[: problem.index(": ")] for problem in refused] == [
        "a.tar:a.jsonl.gz",
        "a.tar:c.parquet",
        "a.tar:d.jsonl:2",
    ]


def test_a_truncated_archive_is_damaged_wherever_it_ends(tmp_path):
    content = tar_of([("a.jsonl", LINES), ("b.jsonl", LINES), ("c.parquet", parquet_table(ROWS))])
    end = len(content.rstrip(b"\0"))
    for size in range(0, end, 256):
        records, refused = read_back(written(tmp_path, "a.tar", content[:size]))
        assert records == (ROWS * 3)[: len(records)]
        assert any("damaged_file" in problem or "unusable_file" in problem for problem in refused), size


def test_a_text_and_the_object_about_it_are_one_document(tmp_path):
    members = []
    for number, row in enumerate(ROWS):
        about = {"category": row["category"], "url": "u"}
        members += [(f"d/{number:04d}.json", json.dumps(about).encode()), (f"d/{number:04d}.txt", row["text"].encode())]
    expected = [{"category": "c", "url": "u", "text": row["text"]} for row in ROWS]
    assert read_back(written(tmp_path, "a.tar", tar_of(members))) == (expected, [])
    alone = [
        ("1.txt", b"A"),
        ("2.json", b'{"text": "B"}'),
        ("3.json", b'{"text": "C"}'),
        ("3.md", b"D"),
        ("4.md", b"E"),
    ]
    records, _ = read_back(written(tmp_path, "b.tar", tar_of(alone)))
    assert [record["text"] for record in records] == list("ABCDE")
