"""Many small files, which share chunks: the rows, names and counts of one chunk for each."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

from colossal_llama.dataset.prepare import input_files, pipeline
from colossal_llama.dataset.prepare.input_files import plan_chunks
from colossal_llama.dataset.prepare.manifest import summary
from colossal_llama.dataset.prepare.pipeline import prepare
from colossal_llama.dataset.prepare.verification import verify
from colossal_llama.utils.checked_json import CHECKSUM, with_checksum
from colossal_llama.utils.errors import UserError
from tests.support.data_files import tar_of
from tests.support.preparations import content, preparation


@pytest.fixture(scope="module")
def input_dir(tmp_path_factory):
    """40 files, each of 0 to 9 documents; the sixth has no line feed at its end."""
    directory = tmp_path_factory.mktemp("input")
    for number in range(40):
        rows = [
            {
                "source": "",
                "target": f"document {n} of {number} " + "words " * (n * number % 37),
                "category": f"c{n % 3}",
            }
            for n in range(number % 10)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"{number:02d}.jsonl").write_text(text.rstrip("\n") if number == 6 else text)
    return directory


@pytest.fixture(autouse=True)
def few_groups(monkeypatch):
    """Three or four chunks for the 40 files."""
    monkeypatch.setattr(input_files, "MIN_GROUPS", 3)


def prepared(input_dir, output, opened, tokenizer_dir, **changes):
    basic = {"max_length": 128, "num_spliced_dataset_bins": 5, "keep_cache": True, **changes}
    return prepare(preparation("pretrain", (input_dir,), tokenizer_dir, output, **basic), opened)


def results(output: Path) -> dict[str, bytes]:
    return {name: data for name, data in content(output).items() if not name.startswith("cache/")}


def rows_of_parts(output: Path) -> dict[str, bytes]:
    return {name: data for name, data in results(output).items() if name.endswith((".arrow", ".jsonl"))}


def in_chunks_of_their_own(monkeypatch):
    monkeypatch.setattr(pipeline, "plan_chunks", lambda files, limit, *_: plan_chunks(files, limit, grouped=False))


@pytest.mark.parametrize("changes", [{}, {"limit": 95}, {"num_workers": 2}], ids=["all", "limit", "two_workers"])
def test_shared_chunks_give_the_bytes_of_chunks_of_their_own(
    tmp_path, input_dir, opened, tokenizer_dir, monkeypatch, changes
):
    prepared(input_dir, tmp_path / "shared", opened, tokenizer_dir, **changes)
    assert 3 <= len(list((tmp_path / "shared" / "cache" / "chunks").glob("*.json"))) <= 4
    in_chunks_of_their_own(monkeypatch)
    prepared(input_dir, tmp_path / "own", opened, tokenizer_dir, **changes)
    assert len(list((tmp_path / "own" / "cache" / "chunks").glob("*.json"))) == 40
    assert rows_of_parts(tmp_path / "shared") == rows_of_parts(tmp_path / "own")
    shared, own = (json.loads((tmp_path / name / "manifest.json").read_bytes()) for name in ("shared", "own"))
    assert shared.pop("grouped_chunks") is True
    assert {**shared, CHECKSUM: ""} == {**own, CHECKSUM: ""}


def test_bad_records_of_shared_chunks_are_named_by_file_and_line(tmp_path, opened, tokenizer_dir):
    source = tmp_path / "in"
    source.mkdir()
    good = json.dumps({"source": "", "target": "a text", "category": "c"}) + "\n"
    for number in range(30):
        (source / f"{number:02d}.jsonl").write_text(good * number + ("[]\n" if number in (3, 17) else "") + good)
    (source / "29.jsonl.gz").write_bytes(b"\x1f\x8b\x08nothing")
    with pytest.raises(UserError) as raised:
        prepared(source, tmp_path / "out", opened, tokenizer_dir)
    assert [line.split(":")[:2] for line in raised.value.problems[:3]] == [
        [f"{source}/03.jsonl", "4"],
        [f"{source}/17.jsonl", "18"],
        [f"{source}/29.jsonl.gz", "1"],
    ]
    manifest = prepared(source, tmp_path / "out", opened, tokenizer_dir, on_bad_record="skip")
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(entry["file"], entry["line"]) for entry in rejected] == [
        ("in/03.jsonl", 4),
        ("in/17.jsonl", 18),
        ("in/29.jsonl.gz", 1),
    ]
    assert [set(entry) for entry in rejected] == [{"file", "line", "reason", "message", "record"}] * 3
    rows = {entry["name"]: entry["rows"] for entry in manifest["input_files"]}
    assert (rows["in/03.jsonl"], rows["in/28.jsonl"], rows["in/29.jsonl.gz"]) == (5, 29, 0)


@pytest.mark.parametrize("state", ["complete", "begun"])
def test_changed_content_of_a_file_in_a_shared_chunk_is_named(tmp_path, input_dir, opened, tokenizer_dir, state):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for path in input_dir.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    shard = {} if state == "complete" else {"num_shards": 2, "shard_index": 0}
    prepared(source, output, opened, tokenizer_dir, **shard)
    changed = source / "02.jsonl"
    text = changed.read_text()
    changed.write_text(text.replace("document 1", "document X"))
    with pytest.raises(UserError, match=r"input file in/02\.jsonl: its content has changed") as raised:
        prepared(source, output, opened, tokenizer_dir, **shard)
    assert len(raised.value.problems) == 2
    changed.write_text(text)
    prepared(source, output, opened, tokenizer_dir)


def written_by_an_earlier_version(output: Path) -> None:
    """Makes of the cache what versions wrote whose chunks had one range."""

    def rewritten(path: Path, change) -> None:
        facts = json.loads(path.read_bytes())
        del facts[CHECKSUM]
        change(facts)
        path.write_bytes(orjson.dumps(with_checksum(facts), option=orjson.OPT_INDENT_2))

    for path in (output / "cache" / "chunks").glob("*.json"):
        rewritten(path, lambda facts: facts.update(sha256=facts.pop("pieces")[0][1]))
    rewritten(output / "cache" / "run.json", lambda record: record.pop("grouped_chunks"))


def test_a_run_that_an_earlier_version_began_keeps_its_chunks(tmp_path, input_dir, opened, tokenizer_dir, monkeypatch):
    output = tmp_path / "out"
    with monkeypatch.context() as earlier:
        in_chunks_of_their_own(earlier)
        prepared(input_dir, output, opened, tokenizer_dir, num_shards=2, shard_index=1)
    written_by_an_earlier_version(output)
    assert "grouped_chunks" not in (output / "cache" / "run.json").read_text()
    finished = {path: path.stat().st_mtime_ns for path in (output / "cache" / "chunks").glob("*.json")}
    assert len(finished) == 20
    (input_dir / "11.jsonl").touch()  # its content is compared
    prepared(input_dir, output, opened, tokenizer_dir)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    in_chunks_of_their_own(monkeypatch)
    prepared(input_dir, tmp_path / "anew", opened, tokenizer_dir)
    assert results(output) == results(tmp_path / "anew")
    assert verify(output)


def test_a_complete_preparation_of_an_earlier_version_is_mended(
    tmp_path, input_dir, opened, tokenizer_dir, monkeypatch
):
    output = tmp_path / "out"
    with monkeypatch.context() as earlier:
        in_chunks_of_their_own(earlier)
        prepared(input_dir, output, opened, tokenizer_dir, keep_cache=False)
    before = results(output)
    (output / "jsonl" / "part-00002.jsonl").unlink()
    prepared(input_dir, output, opened, tokenizer_dir)
    assert results(output) == before


def test_a_chunk_of_other_ranges_is_made_anew(tmp_path, input_dir, opened, tokenizer_dir, capsys):
    output = tmp_path / "out"
    prepared(input_dir, output, opened, tokenizer_dir, num_shards=2, shard_index=0)
    path = output / "cache" / "chunks" / "chunk-00000.json"
    facts = json.loads(path.read_bytes())
    path.write_bytes(orjson.dumps(with_checksum({**facts, "pieces": facts["pieces"][1:]})))
    prepared(input_dir, output, opened, tokenizer_dir)
    assert "chunk-00000.json is that of other ranges of the input (input: " in capsys.readouterr().out
    prepared(input_dir, tmp_path / "anew", opened, tokenizer_dir)
    assert results(output) == results(tmp_path / "anew")


def test_a_run_over_small_files_is_killed_and_ends_up_as_if_it_had_not_been(tmp_path, project_root, tokenizer_dir):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for number in range(2000):
        row = {"source": "", "target": f"text {number} " * (number % 50 + 1), "category": f"c{number % 3}"}
        (source / f"{number:04d}.jsonl").write_text(json.dumps(row) + "\n")
    call = [sys.executable, project_root / "prepare_pretrain_dataset.py", "--data_input_dirs", source,
            "--tokenizer_dir", tokenizer_dir, "--num_workers", 2, "--data_output_dirs"]  # fmt: skip
    chance, chunks = random.Random(time.time_ns()), output / "cache" / "chunks"
    for _ in range(2):
        process = subprocess.Popen([*map(str, call), output], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = len(list(chunks.glob("*"))) + chance.randint(1, 60)
        while process.poll() is None and len(list(chunks.glob("*"))) < wanted:
            time.sleep(0.005)
        process.kill()
        process.wait()
    for directory in (output, tmp_path / "undisturbed"):
        done = subprocess.run([*map(str, call), directory], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert results(output) == results(tmp_path / "undisturbed")


def test_members_of_archives_that_are_not_read_are_in_the_summary_and_the_manifest(tmp_path, opened, tokenizer_dir):
    source = tmp_path / "in"
    source.mkdir()
    rows = b'{"text": "a text"}\n'
    pictures = [(f"{number}.png", b"png") for number in range(30)]
    (source / "a.tar").write_bytes(tar_of([("LICENSE", b"MIT"), ("README.md", b"About."), ("a.jsonl", rows)]))
    (source / "b.tar").write_bytes(tar_of([("a.jsonl", rows), *pictures]))
    manifest = prepared(source, tmp_path / "out", opened, tokenizer_dir)
    assert manifest["totals"]["documents"] == 2
    unread = manifest["unread_members"]
    assert (unread["count"], unread["by_ending"]) == (32, {".md": 1, ".png": 30, "LICENSE": 1})
    assert unread["first"][:3] == ["in/a.tar:LICENSE", "in/a.tar:README.md", "in/b.tar:0.png"]
    said = (
        "members of archives that are not read: 32 (.md 1, .png 30, LICENSE 1): in/a.tar:LICENSE, in/a.tar:README.md, "
    )
    assert said in summary(manifest)
    assert "and 12 more" in summary(manifest)


def test_a_bad_record_is_shown_on_one_line(tmp_path, opened, tokenizer_dir):
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.txt").write_bytes("First\tline\r\n\u4e2d\u2028\x1b[31m \0".encode())
    with pytest.raises(UserError) as raised:
        prepared(source, tmp_path / "out", opened, tokenizer_dir)
    assert raised.value.problems[0].endswith(
        r" | First\tline\r\n\u4e2d\u2028\x1b[31m \x00".replace(r"\u4e2d", "\u4e2d")
    )
