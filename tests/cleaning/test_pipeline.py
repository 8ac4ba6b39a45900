"""A cleaning from files to a corpus: the same bytes however it is run, all input accounted for."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from colossal_llama.cleaning import first_pass, pipeline, second_pass, signatures
from colossal_llama.cleaning.pipeline import clean
from colossal_llama.cleaning.verification import verify
from colossal_llama.dataset.prepare import input_files
from colossal_llama.utils.errors import UserError
from tests.support.cleanings import (
    chinese,
    cleaning,
    command_line,
    content,
    document,
    dropped,
    english,
    kept,
    read_records,
    write_records,
)
from tests.support.data_files import FORMATS
from tests.support.small_disk import run_before_and_after_it_grows

FOOTER = "All rights reserved by the keepers of the river garden library."
CLEAN = {"English": english, "Chinese": chinese}


@pytest.fixture(scope="module")
def input_dir(tmp_path_factory) -> Path:
    """Documents of two categories, with duplicates, a footer, short ones, and a broken line."""
    directory = tmp_path_factory.mktemp("raw")
    web = [document(f"{english(seed)}\n{FOOTER}", "web") for seed in range(120)]
    web += [web[3], document(web[5]["target"].replace("river", "lake", 1), "web"), document("too short", "web")]
    write_records(directory / "a.jsonl", web)
    write_records(directory / "b.jsonl", [document(chinese(seed), "书") for seed in range(60)] + [web[7]])
    with (directory / "b.jsonl").open("a") as file:
        file.write('{"target": broken\n\n')
    return directory


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks, blocks and parts as small as the made input."""
    monkeypatch.setattr(input_files, "CHUNK_BYTES", 20_000)
    monkeypatch.setattr(input_files, "GROUP_BYTES", 10_000)
    monkeypatch.setattr(first_pass, "BATCH_CHARACTERS", 5_000)
    monkeypatch.setattr(second_pass, "SMALLEST_PART_BYTES", 30_000)


def test_everything_that_comes_in_is_kept_dropped_or_rejected(input_dir, tmp_path):
    output = tmp_path / "out"
    report = clean(cleaning([input_dir], output))
    assert "all as in the report" in verify(output)
    totals = report["totals"]
    assert (totals["records"], totals["empty_lines"], totals["rejected"]) == (185, 1, {"broken_json": 1})
    assert totals["incoming"]["documents"] == 184 == len(kept(output)) + totals["dropped"]["documents"]
    assert {reason: amount["documents"] for reason, amount in report["reasons"].items()} == {
        "exact_duplicates": 2,
        "near_duplicates": 1,
        "length": 1,
    }
    assert all(FOOTER not in record["target"] for record in kept(output))
    assert {record["category"] for record in kept(output)} == {"web", "书"}
    (rejected,) = read_records(output / "rejected.jsonl")
    assert (rejected["file"].split("/")[-1], rejected["line"]) == ("b.jsonl", 62)
    assert not (output / "work").exists()


def test_a_dropped_document_is_as_it_came_in_and_says_where_and_why(input_dir, tmp_path):
    output = tmp_path / "out"
    clean(cleaning([input_dir], output))
    (short,) = dropped(output, "length")
    assert short | {"file": ""} == {
        "reason": "length",
        "figure": 2.0,
        "limit": "min_words 20",
        "file": "",
        "position": 123,
        **document("too short", "web"),
    }
    source = read_records(input_dir / "a.jsonl")
    near, *_ = dropped(output, "near_duplicates")
    assert near["target"] == source[near["position"] - 1]["target"]
    assert {near["position"], near["kept_position"]} == {6, 122}
    assert near["figure"] > 0.8
    assert [(record["position"], record["kept_position"]) for record in dropped(output, "exact_duplicates")] == [
        (121, 4),
        (61, 8),
    ]


def test_records_of_the_other_kind_are_rejected_with_the_preset_that_takes_them(tmp_path):
    conversation = {"messages": [{"from": "human", "content": "hi"}, {"from": "assistant", "content": english(1)}]}
    write_records(tmp_path / "raw" / "a.jsonl", [conversation, document(english(2), url="https://www.example.com/a")])
    report = clean(cleaning([tmp_path / "raw"], tmp_path / "out"))
    (rejected,) = read_records(tmp_path / "out" / "rejected.jsonl")
    assert rejected["message"].endswith("--preset conversations cleans them")
    assert report["run"]["notes"] == {}, "the url is read: it decides the group of lines"


@pytest.mark.parametrize("workers", [1, 3])
def test_chunks_of_any_size_and_workers_give_the_same_documents(
    input_dir, tmp_path, small_chunks, monkeypatch, workers
):
    if workers > 1:  # whose processes know nothing of the changed sizes: the plan is made here
        monkeypatch.setattr(first_pass, "BATCH_CHARACTERS", 1 << 20)
    output, whole = tmp_path / "out", tmp_path / "whole"
    clean(cleaning([input_dir], output, workers=workers))
    assert len(list((output / "documents").iterdir())) > 2
    monkeypatch.undo()
    clean(cleaning([input_dir], whole))
    assert kept(output) == kept(whole)
    for reason in ("length", "exact_duplicates", "near_duplicates"):
        assert dropped(output, reason) == dropped(whole, reason)


def test_blocks_of_a_chunk_are_compared_with_each_other(input_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(signatures, "BLOCK_CHARACTERS", 3_000)
    monkeypatch.setattr(first_pass, "BATCH_CHARACTERS", 3_000)
    output, whole = tmp_path / "out", tmp_path / "whole"
    clean(cleaning([input_dir], output, "--keep_work"))
    facts = json.loads((output / "work" / "chunks" / "chunk-00000.json").read_text())
    assert len(facts["blocks"]) > 3
    monkeypatch.undo()
    clean(cleaning([input_dir], whole))
    assert kept(output) == kept(whole)


@pytest.mark.parametrize("memory_mb", [64, 4096])
def test_the_memory_of_the_merge_decides_nothing(input_dir, tmp_path, memory_mb):
    output = tmp_path / "out"
    clean(cleaning([input_dir], output, "--memory_mb", str(memory_mb)))
    clean(cleaning([input_dir], tmp_path / "other"))
    assert content(output) == content(tmp_path / "other")


def files_below(directory: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(directory))


def test_a_run_killed_at_any_moment_ends_up_as_if_it_had_not_been(tmp_path, input_dir, project_root):
    for number in range(40):  # many chunks
        write_records(tmp_path / "raw" / f"{number:02d}.jsonl", [document(english(number * 50 + i)) for i in range(50)])
    shutil.copytree(input_dir, tmp_path / "raw" / "more")
    given, output = [tmp_path / "raw"], tmp_path / "out"
    call = [sys.executable, *command_line(given, output, "--num_workers", "2")]
    chance = random.Random(time.time_ns())
    killed = []
    for _ in range(5):
        limit = files_below(output) + chance.randint(1, 150)
        process = subprocess.Popen(call, cwd=project_root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and files_below(output) < limit:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed.append(limit)
    done = subprocess.run(call, cwd=project_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (killed, done.stderr)
    clean(cleaning(given, tmp_path / "undisturbed"))
    assert content(output) == content(tmp_path / "undisturbed"), killed


@pytest.mark.parametrize(
    "stage", ["merge", "plan_parts", "gather_dropped", "write_rejected", "with_checksum", "write_report"]
)
def test_a_run_that_ends_in_any_stage_is_resumed_to_the_same_bytes(
    input_dir, tmp_path, small_chunks, monkeypatch, stage
):
    class Ended(BaseException):
        """As a signal ends it: no error that the code could handle."""

    def end(*_, **__):
        raise Ended

    output = tmp_path / "out"
    with monkeypatch.context() as ending:
        ending.setattr(pipeline, stage, end)
        with pytest.raises(Ended):
            clean(cleaning([input_dir], output))
    assert not (output / "cleaning.json").exists()
    clean(cleaning([input_dir], output))
    clean(cleaning([input_dir], tmp_path / "whole"))
    assert content(output) == content(tmp_path / "whole")


def test_what_killed_runs_left_of_files_is_removed(input_dir, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    for name in ("cleaning.png", "rejected.jsonl", "last_run.json"):
        (output / f".{name}.tmp-{socket.gethostname()}-12345").write_bytes(b"half")
    (output / ".mine.tmp-notes").write_text("of the user")
    clean(cleaning([input_dir], output))
    assert [path.name for path in output.glob(".*.tmp-*")] == [".mine.tmp-notes"]


def test_shards_in_any_order_give_what_one_run_gives(input_dir, tmp_path, small_chunks):
    output = tmp_path / "out"
    for index in (2, 0, 1):
        assert clean(cleaning([input_dir], output, "--num_shards", "3", "--shard_index", str(index))) is None
    assert not (output / "documents").exists()
    clean(cleaning([input_dir], output))
    clean(cleaning([input_dir], tmp_path / "whole"))
    assert content(output) == content(tmp_path / "whole")


def test_a_finished_cleaning_is_left_as_it_is(input_dir, tmp_path, capsys):
    output = tmp_path / "out"
    clean(cleaning([input_dir], output))
    before = content(output)
    assert clean(cleaning([input_dir], output)) is None
    assert "complete already: nothing to do" in capsys.readouterr().out
    assert content(output) == before


def test_other_rules_or_input_are_refused_and_overwriting_starts_afresh(input_dir, tmp_path):
    output = tmp_path / "out"
    clean(cleaning([input_dir], output))
    with pytest.raises(UserError, match=r"cleaned with other arguments(.|\n)*min_words: 20 then, 30 now"):
        clean(cleaning([input_dir], output, "--set", "length.min_words=30"))
    extended = tmp_path / "raw"
    shutil.copytree(input_dir, extended)
    write_records(extended / "c.jsonl", [document(english(900))])
    with pytest.raises(UserError, match=r"c\.jsonl: absent then"):
        clean(cleaning([extended], output))
    clean(cleaning([extended], output, "--overwrite"))
    clean(cleaning([extended], tmp_path / "new"))
    assert content(output) == content(tmp_path / "new")


@pytest.mark.parametrize(
    "damaged", ["chunks/*.candidates", "chunks/*.json", "signatures/*/run-*.npy", "signatures/*/dropped/run-*.npy"]
)
def test_damaged_intermediates_are_made_anew(input_dir, tmp_path, small_chunks, capsys, damaged):
    output = tmp_path / "out"
    clean(cleaning([input_dir], output, "--keep_work"))
    before = {name: data for name, data in content(output).items() if not name.startswith("work")}
    (output / "cleaning.json").unlink()
    file = max((output / "work").glob(damaged), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-10])
    part = next((output / "documents").iterdir())
    part.write_bytes(b"")
    clean(cleaning([input_dir], output))
    assert "made anew" in capsys.readouterr().out
    assert content(output) == before


@pytest.mark.parametrize("options", [(), ("--num_shards", "1", "--shard_index", "0")], ids=["complete", "begun"])
def test_input_that_changes_between_two_runs_is_noticed(input_dir, tmp_path, options):
    raw, output = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(input_dir, raw)
    clean(cleaning([raw], output, *options))
    file = raw / "a.jsonl"
    file.write_bytes(file.read_bytes().replace(b"river", b"RIVER"))
    with pytest.raises(UserError, match=r"a\.jsonl: its content has changed"):
        clean(cleaning([raw], output))


@pytest.mark.parametrize("name", ["documents/mine.jsonl", "dropped/notes.txt", "cleaning.json", "work/chunks"])
def test_files_of_somebody_else_are_refused_and_left_alone(input_dir, tmp_path, name):
    output = tmp_path / "out"
    (output / name).parent.mkdir(parents=True)
    (output / name).write_text("mine")
    for options in ((), ("--overwrite",)):
        with pytest.raises(UserError, match="which no cleaning wrote"):
            clean(cleaning([input_dir], output, *options))
    assert content(output) == {name: b"mine"}


def test_overwriting_leaves_files_of_somebody_else_in_a_finished_cleaning(input_dir, tmp_path):
    output = tmp_path / "out"
    clean(cleaning([input_dir], output))
    (output / "dropped" / "mine.jsonl").write_text("{}\n")
    before = content(output)
    with pytest.raises(UserError, match=r"dropped/mine\.jsonl, which no cleaning wrote"):
        clean(cleaning([input_dir], output, "--overwrite"))
    assert content(output) == before


def test_a_refused_run_leaves_nothing(input_dir, tmp_path):
    raw, output = tmp_path / "raw", tmp_path / "new" / "out"
    write_records(raw / "a.jsonl", [{"number": 1}])
    with pytest.raises(UserError, match="no record could be used"):
        clean(cleaning([raw], output))
    assert not output.exists()
    with pytest.raises(UserError, match=r"no question|holds no"):
        clean(cleaning([input_dir], output, "--decontaminate", str(raw / "a.jsonl")))
    assert not output.exists()


def test_all_refused_arguments_are_named_at_once(capsys):
    with pytest.raises(SystemExit) as ended:
        cleaning([Path("nowhere")], Path("out"), "--off", "lengths", "--on", "language", "--num_shards", "2", "--what")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    for word in ("nowhere does not exist", "lengths: there is no rule", "--num_shards needs", "--what is no argument"):
        assert word in said
    lists = ("--decontaminate", "nowhere", "--blocklist", "x=none.txt")
    with pytest.raises(SystemExit):
        cleaning([Path.cwd()], Path("out"), *lists, "--max_line_mb", "0")
    said = capsys.readouterr().err
    for word in ("nowhere does not exist", "none.txt is not there", "0 is less than 1"):
        assert word in said


def test_a_full_disk_is_named_and_finished_work_is_kept(tmp_path, input_dir, project_root):
    """On a disk of 300 kB that then grows."""

    def call(output):
        return [sys.executable, *command_line([input_dir], output, "--num_workers", "2")]

    resumed = run_before_and_after_it_grows(tmp_path, "300k", call, project_root)
    clean(cleaning([input_dir], tmp_path / "whole"))
    assert content(resumed) == content(tmp_path / "whole")


@pytest.mark.parametrize("compression", ["", ".zst"])
@pytest.mark.parametrize("form", [form for form in FORMATS if not form.is_text], ids=lambda form: form.name)
def test_every_format_gives_the_same_corpus(tmp_path, form, compression):
    if compression and not form.is_compressible:
        pytest.skip("it has no compressed form")
    records = [document(english(seed)) for seed in range(20)] + [document(english(3)), document("short")]
    raw, output = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    form.write(raw, records, compression)
    clean(cleaning([raw / name for name in form.given], output))
    assert sorted(record["target"] for record in kept(output)) == sorted(record["target"] for record in records[:20])
    assert len(dropped(output, "exact_duplicates")) == len(dropped(output, "length")) == 1
