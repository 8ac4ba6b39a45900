"""Damaged or missing files of a preparation are made anew; earlier versions are read."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from colossal_llama.dataset.prepare import part_writer
from colossal_llama.dataset.prepare.open_tokenizer import OpenTokenizer
from colossal_llama.dataset.prepare.pipeline import prepare
from colossal_llama.dataset.prepare.verification import verify
from colossal_llama.utils.errors import UserError
from tests.support.preparations import preparation


@pytest.fixture(scope="module")
def run(tmp_path_factory, made_data):
    source, tokenizer_dir = tmp_path_factory.mktemp("in"), made_data / "tokenizers" / "llama2"
    opened = OpenTokenizer(tokenizer_dir)
    for name in "ab":
        rows = [{"source": "", "target": f"{name} {n} with words", "category": "c"} for n in range(30)]
        (source / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")

    def prepare_into(output, **changes):
        options = {"max_length": 64, "num_spliced_dataset_bins": 3, "on_bad_record": "skip", **changes}
        return prepare(preparation("pretrain", (source,), tokenizer_dir, output, **options), opened)

    return prepare_into


@pytest.fixture(scope="module")
def whole(tmp_path_factory, run):
    output = tmp_path_factory.mktemp("whole") / "out"
    run(output)
    return output


@pytest.fixture
def complete(tmp_path, whole):
    return Path(shutil.copytree(whole, tmp_path / "out"))


@pytest.fixture
def begun(tmp_path, run):
    """All chunks, the plan, and parts 0 and 2."""
    for index in (1, 0):
        run(tmp_path / "begun", num_shards=2, shard_index=index)
    return tmp_path / "begun"


def content(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "last_run.json" and not path.name.startswith(".lock")
    }


def flip(path, place=-20):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


PART_FILES = [
    *(f"arrow/part-00000/{name}" for name in part_writer.PART_FILES),
    "jsonl/part-00000.jsonl",
]


@pytest.mark.parametrize("damage", [flip, Path.unlink], ids=["flipped", "deleted"])
@pytest.mark.parametrize("name", [*PART_FILES, "rejected.jsonl"])
def test_what_is_damaged_in_a_complete_directory_is_made_anew(capsys, run, whole, complete, name, damage):
    damage(complete / name)
    with pytest.raises(UserError):
        verify(complete)
    run(complete)
    assert "made anew" in capsys.readouterr().out
    assert content(complete) == content(whole)
    run(complete)
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*PART_FILES, "cache/chunks/chunk-00000.tokens", "cache/chunks/chunk-00001.segments",
    "cache/chunks/chunk-00001.json", "cache/chunks/chunk-00000.rejected", "cache/plan/lengths.npy",
    "cache/plan/plan.json"])  # fmt: skip
def test_what_is_damaged_in_a_begun_directory_is_made_anew(capsys, run, whole, begun, name):
    flip(begun / name)
    run(begun)
    assert "made anew" in capsys.readouterr().out
    assert content(begun) == content(whole)


@pytest.mark.parametrize("name", ["arrow", "jsonl", "cache/chunks", "cache/plan"])
def test_a_directory_that_is_gone_is_made_anew(run, whole, begun, name):
    shutil.rmtree(begun / name)
    run(begun)
    assert content(begun) == content(whole)


def test_two_parts_in_each_others_place_are_noticed(run, whole, begun):
    for name in ("arrow/part-0000{}", "jsonl/part-0000{}.jsonl"):
        first, second, between = (begun / name.format(number) for number in (0, 2, 9))
        first.rename(between)
        second.rename(first)
        between.rename(second)
    run(begun)
    assert content(begun) == content(whole)


def test_a_plan_of_other_parts_replaces_the_parts_too(capsys, run, whole, begun):
    starts = np.load(begun / "cache" / "plan" / "part_starts.npy")
    np.save(begun / "cache" / "plan" / "part_starts.npy", starts[::-1])
    part = json.loads((begun / "arrow" / "part-00000" / "part.json").read_text())
    part = part_writer.with_checksum({**part, "plan_sha256": "another"})
    (begun / "arrow" / "part-00000" / "part.json").write_text(json.dumps(part))
    run(begun)
    assert "another plan" in capsys.readouterr().out
    assert content(begun) == content(whole)


def test_kept_intermediates_are_compared_before_they_repair_a_part(capsys, tmp_path, run, whole):
    output = tmp_path / "out"
    run(output, keep_cache=True)
    flip(output / "cache" / "chunks" / "chunk-00001.tokens")
    shutil.rmtree(output / "arrow" / "part-00001")
    run(output)
    assert "chunk-00001.tokens has changed" in capsys.readouterr().out
    assert content(output) == content(whole)


def test_a_further_part_in_a_complete_directory_is_named(capsys, run, complete):
    shutil.copytree(complete / "arrow" / "part-00001", complete / "arrow" / "part-00003")
    run(complete)
    assert "arrow/part-00003 is no part of this preparation" in capsys.readouterr().out


def test_flushes_do_not_grow_with_the_number_of_input_files(tmp_path, monkeypatch, made_data):
    """4,000 files took 32,484 flushes, a minute and a half on a disk of 3 ms each."""
    tokenizer_dir, flushes, flush = made_data / "tokenizers" / "llama2", [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (flushes.append(descriptor), flush(descriptor)))
    counts = []
    for number in (10, 100):
        source = tmp_path / f"in-{number}"
        source.mkdir()
        for name in range(number):
            (source / f"{name}.jsonl").write_text('{"source": "", "target": "a few words", "category": "c"}\n')
        options = {"max_length": 64, "num_spliced_dataset_bins": 2}
        flushes.clear()
        prepare(preparation("pretrain", (source,), tokenizer_dir, tmp_path / f"out-{number}", **options))
        counts.append(len(flushes))
    assert counts[0] == counts[1] < 50


def test_a_part_that_comes_out_otherwise_is_refused(monkeypatch, run, complete):
    shutil.rmtree(complete / "arrow" / "part-00001")
    monkeypatch.setattr(part_writer, "BATCH_TOKENS", 64)
    monkeypatch.setattr(part_writer, "shuffle_rows", lambda rows, seed: rows)
    for _ in range(2):
        with pytest.raises(UserError, match="part-00001 cannot be made anew as they were"):
            run(complete)
        assert not (complete / "arrow" / "part-00001").exists()
    assert (complete / "arrow" / "part-00000").exists()


@pytest.mark.parametrize("name", ["manifest.json", "cache/run.json"])
def test_a_damaged_record_of_the_run_is_refused_and_overwriting_helps(run, whole, complete, begun, name):
    output = complete if name == "manifest.json" else begun
    flip(output / name)
    with pytest.raises(UserError, match="--overwrite"):
        run(output)
    run(output, overwrite=True)
    assert content(output) == content(whole)


def test_a_manifest_without_a_checksum_that_lacks_a_part_is_refused(run, complete):
    manifest = json.loads((complete / "manifest.json").read_text())
    del manifest["parts"][-1], manifest["checksum"]
    (complete / "manifest.json").write_text(json.dumps(manifest, indent=2))
    with pytest.raises(UserError, match="lists 2 of 3 parts"):
        run(complete)


def test_last_run_json_is_written_anew_once_the_input_has_been_compared(capsys, run, complete):
    path = complete / "last_run.json"
    path.write_bytes(path.read_bytes()[:100])
    run(complete)
    assert "last_run.json cannot be read as JSON" in capsys.readouterr().out
    run(complete)
    assert "last_run.json" not in capsys.readouterr().out


def test_preparations_of_an_earlier_version_are_read_and_resumed(capsys, run, whole, complete, begun):
    added = ("checksum", "files_sha256", "metadata_sha256", "name", "plan_sha256", "rejected_sha256")
    for output in (complete, begun):
        for path in output.rglob("*.json"):
            if path.name not in ("state.json", "dataset_info.json"):
                former = {key: value for key, value in json.loads(path.read_bytes()).items() if key not in added}
                path.write_text(json.dumps(former, indent=2) + "\n")
        (output / "cache" / "plan" / "plan.json").unlink(missing_ok=True)
    assert "no checksum of manifest.json is recorded" in verify(complete)
    run(complete)
    assert capsys.readouterr().out.count("not all of their checksums are recorded") == 1
    run(begun)
    assert verify(begun)
    rows = {name: data for name, data in content(whole).items() if name.endswith((".arrow", ".jsonl"))}
    assert {name: data for name, data in content(begun).items() if name in rows} == rows
