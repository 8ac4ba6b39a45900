"""Large .json files and tables are divided: the parts are those of whole files, for any workers."""

import json
import random
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from colossal_llama.dataset.prepare import input_files, pipeline
from colossal_llama.dataset.prepare.input_files import plan_chunks
from colossal_llama.dataset.prepare.pipeline import prepare
from colossal_llama.dataset.prepare.verification import verify
from colossal_llama.utils.checked_json import CHECKSUM, with_checksum
from colossal_llama.utils.errors import UserError
from tests.support.data_files import arrow_file, arrow_stream, json_array, json_lines
from tests.support.preparations import content, preparation


def parquet_of_groups(records: list[dict]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(records), sink, row_group_size=7, compression="none")
    return sink.getvalue().to_pybytes()


def compact_array(records: list[dict]) -> bytes:
    return json.dumps(records).encode()


FORMS = {
    "array.json": json_array,
    "compact.json": compact_array,
    "lines.json": json_lines,
    "table.parquet": parquet_of_groups,
    "stream.arrow": arrow_stream,
    "file.arrow": arrow_file,
}


@pytest.fixture(scope="module")
def records() -> list[dict]:
    """300 documents of several lengths, with quotes, backslashes and brackets."""
    words = random.Random(3)
    texts = ["a plain text. ", 'he said "yes"\n', "C:\\dir\\", "f(x[0]) { return; }", "\\\\\\"]
    return [
        {
            "source": "",
            "target": f"{n} " + "".join(words.choices(texts, k=words.randint(1, 30))),
            "category": f"c{n % 3}",
        }
        for n in range(300)
    ]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of which each form of the records has several."""
    monkeypatch.setattr(input_files, "CHUNK_BYTES", 8_000)
    monkeypatch.setattr(input_files, "MIN_GROUPS", 20)


@pytest.fixture(params=FORMS)
def source(request, tmp_path, records) -> Path:
    """A directory of one file of a form, and a small file after it."""
    directory = tmp_path / "in"
    directory.mkdir()
    (directory / request.param).write_bytes(FORMS[request.param](records))
    (directory / "zz.jsonl").write_bytes(json_lines(records[:2]))
    return directory


def prepared(source, output, opened, tokenizer_dir, **changes):
    basic = {"max_length": 128, "num_spliced_dataset_bins": 3, "keep_cache": True, **changes}
    return prepare(preparation("pretrain", (source,), tokenizer_dir, output, **basic), opened)


def as_earlier_versions_did(monkeypatch) -> None:
    monkeypatch.setattr(
        pipeline, "plan_chunks", lambda files, limit, *_: plan_chunks(files, limit, grouped=True, divided=False)
    )


def chunks_of(output: Path) -> int:
    return len(list((output / "cache" / "chunks").glob("*.json")))


def results(output: Path) -> dict[str, bytes]:
    """All but the record of the files' times."""
    return {name: data for name, data in content(output).items() if name != "cache/run.json"}


def rows_of(output: Path) -> dict[str, bytes]:
    return {name: data for name, data in content(output).items() if name.endswith((".arrow", "part-00000.jsonl"))}


def test_the_rows_are_those_of_the_whole_file_for_any_number_of_workers(
    tmp_path, source, opened, tokenizer_dir, monkeypatch
):
    manifest = prepared(source, tmp_path / "one", opened, tokenizer_dir)
    assert manifest["divided_files"] is True
    assert chunks_of(tmp_path / "one") > 4
    prepared(source, tmp_path / "two", opened, tokenizer_dir, num_workers=2)
    assert results(tmp_path / "one") == results(tmp_path / "two")
    as_earlier_versions_did(monkeypatch)
    whole = prepared(source, tmp_path / "whole", opened, tokenizer_dir)
    assert "divided_files" not in whole
    assert chunks_of(tmp_path / "whole") <= 2
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "whole")
    assert whole["totals"] == manifest["totals"]
    assert [entry["rows"] for entry in whole["input_files"]] == [entry["rows"] for entry in manifest["input_files"]]


def test_an_interrupted_run_goes_on_and_changed_content_is_named(tmp_path, source, opened, tokenizer_dir):
    output = tmp_path / "out"
    prepared(source, output, opened, tokenizer_dir, num_shards=2, shard_index=1)
    half = chunks_of(output)
    (large, _) = sorted(source.iterdir())
    large.touch()  # its content is compared
    prepared(source, output, opened, tokenizer_dir)
    assert 2 * half <= chunks_of(output) <= 2 * half + 1
    prepared(source, tmp_path / "undisturbed", opened, tokenizer_dir)
    assert results(output) == results(tmp_path / "undisturbed")
    assert verify(output)
    data = large.read_bytes()
    middle = data.index(b"plain", len(data) // 2)
    large.write_bytes(data[:middle] + b"PLAIN" + data[middle + 5 :])
    with pytest.raises(UserError, match=f"input file in/{large.name}: its content has changed"):
        prepared(source, output, opened, tokenizer_dir)


def test_what_an_earlier_version_began_keeps_its_chunks(tmp_path, source, opened, tokenizer_dir, monkeypatch):
    output = tmp_path / "out"
    with monkeypatch.context() as earlier:
        as_earlier_versions_did(earlier)
        prepared(source, output, opened, tokenizer_dir, num_shards=2, shard_index=0)
        prepared(source, tmp_path / "undisturbed", opened, tokenizer_dir)
    record = output / "cache" / "run.json"
    facts = json.loads(record.read_bytes())
    del facts[CHECKSUM], facts["divided_files"]
    record.write_bytes(orjson.dumps(with_checksum(facts), option=orjson.OPT_INDENT_2))
    (finished,) = (output / "cache" / "chunks").glob("*.json")
    modified = finished.stat().st_mtime_ns
    sorted(source.iterdir())[0].touch()
    prepared(source, output, opened, tokenizer_dir)
    assert finished.stat().st_mtime_ns == modified, "nothing is done twice"
    assert results(output) == results(tmp_path / "undisturbed")
    next((output / "jsonl").iterdir()).unlink()  # what is complete is mended
    prepared(source, output, opened, tokenizer_dir)
    assert results(output) == results(tmp_path / "undisturbed")


@pytest.mark.parametrize("on_bad_record", ["stop", "skip"])
def test_bad_records_have_the_places_that_they_have_in_the_whole_file(
    tmp_path, records, opened, tokenizer_dir, monkeypatch, on_bad_record
):
    bad = [{**record, "target": None} if number in (5, 180, 299) else record for number, record in enumerate(records)]

    def outcomes(output: Path) -> list:
        found = []
        for name, write in FORMS.items():
            source = tmp_path / name.replace(".", "_")
            source.mkdir(exist_ok=True)
            (source / name).write_bytes(write(bad))
            try:
                prepared(source, output / name, opened, tokenizer_dir, on_bad_record=on_bad_record)
                found.append((output / name / "rejected.jsonl").read_bytes())
            except UserError as error:
                found.append(error.problems)
        return found

    divided = outcomes(tmp_path / "divided")
    as_earlier_versions_did(monkeypatch)
    assert divided == outcomes(tmp_path / "whole")
    assert all(len(found) == 4 for found in divided) or on_bad_record == "skip"


@pytest.mark.parametrize(
    "text",
    [b"[" + b'{"text": "a"}, ' * 2_000, b'{"text": "a"} {"text": "b"}' * 700, b'[{"text": "a"}, ' * 900 + b"]"],
    ids=["truncated", "objects", "nested"],
)
def test_other_json_is_read_as_a_whole(tmp_path, opened, tokenizer_dir, monkeypatch, text):
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.json").write_bytes(b'{"text": "first"}' * text.startswith(b"{") + text)

    def outcome(output: Path) -> object:
        try:
            return prepared(source, output, opened, tokenizer_dir, on_bad_record="skip")["totals"]
        except UserError as error:
            return error.problems

    divided = outcome(tmp_path / "divided")
    as_earlier_versions_did(monkeypatch)
    assert divided == outcome(tmp_path / "whole")


def test_one_damaged_row_group_leaves_the_others(tmp_path, records, opened, tokenizer_dir):
    source = tmp_path / "in"
    source.mkdir()
    data = bytearray(parquet_of_groups(records))
    group = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata.row_group(20).column(1)
    start = group.dictionary_page_offset or group.data_page_offset
    data[start : start + 8] = b"\xff" * 8
    (source / "a.parquet").write_bytes(data)
    manifest = prepared(source, tmp_path / "out", opened, tokenizer_dir, on_bad_record="skip")
    assert manifest["totals"]["rejected_records"] == {"damaged_file": 1}
    assert manifest["totals"]["documents"] > 250
    assert "a part of the file is damaged" in (tmp_path / "out" / "rejected.jsonl").read_text()
