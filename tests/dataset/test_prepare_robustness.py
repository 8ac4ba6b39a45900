"""Preparation under kill -9, other arguments, concurrent runs, a full disk, shards, bad input."""

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colossal_llama.dataset.prepare import buckets, part_planning, pipeline
from colossal_llama.dataset.prepare.arguments import PrepareArguments
from colossal_llama.dataset.prepare.chunk_worker import ChunkJob, process_chunk
from colossal_llama.dataset.prepare.input_files import plan_chunks
from colossal_llama.dataset.prepare.manifest import summary
from colossal_llama.dataset.prepare.output_dir import run_lock
from colossal_llama.dataset.prepare.pipeline import prepare
from colossal_llama.dataset.prepare.verification import verify
from colossal_llama.dataset.prepare.worker_pool import shared_flag
from colossal_llama.dataset.tokenization import DocumentTokenizer
from colossal_llama.readers.listing import find_input_files
from colossal_llama.utils.errors import UserError
from tests.support.preparations import content, preparation
from tests.support.small_disk import run_before_and_after_it_grows

NUM_PARTS = 12


def records(count: int, words: int = 12) -> str:
    rows = [
        {"source": "", "target": f"document {n} " + "some words " * (n % words), "category": f"c{n % 3}"}
        for n in range(count)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def input_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("input")
    for number in range(8):
        (directory / f"{number}.jsonl").write_text(records(60 + number))
    return directory


def settings_for(input_dir: Path, output_dir: Path, tokenizer_dir: Path, **changes) -> PrepareArguments:
    basic = {"max_length": 128, "num_spliced_dataset_bins": NUM_PARTS, **changes}
    return preparation("pretrain", (input_dir,), tokenizer_dir, output_dir, **basic)


def command(project_root, input_dir, output_dir, tokenizer_dir, *more) -> list[str]:
    parts = [sys.executable, project_root / "prepare_pretrain_dataset.py", "--data_input_dirs", input_dir,
             "--tokenizer_dir", tokenizer_dir, "--data_output_dirs", output_dir, "--max_length", 128,
             "--num_spliced_dataset_bins", NUM_PARTS, *more]  # fmt: skip
    return [str(part) for part in parts]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, input_dir, tokenizer_dir, opened):
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    prepare(settings_for(input_dir, output, tokenizer_dir), opened)
    return content(output)


def files_below(directory: Path) -> int:
    # Not rglob, which fails when a directory goes while it looks: the runs that are watched rename
    # theirs.
    return sum(len(files) for _, _, files in os.walk(directory))


def test_a_run_killed_at_random_points_ends_up_as_if_it_had_not_been(
    tmp_path, input_dir, tokenizer_dir, project_root, undisturbed
):
    output = tmp_path / "out"
    call = command(project_root, input_dir, output, tokenizer_dir, "--num_workers", 2)
    chance = random.Random(time.time_ns())
    killed = []
    for _ in range(4):
        already = files_below(output)
        limit = already + chance.randint(1, 25)
        process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and files_below(output) < limit:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed.append(limit)
        for part in (output / "arrow").glob("*"):  # what has its final name is whole
            datasets.load_from_disk(str(part))
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (killed, done.stderr)
    assert content(output) == undisturbed, killed


def test_shards_in_any_order_give_what_one_run_gives(tmp_path, input_dir, tokenizer_dir, opened, undisturbed):
    output = tmp_path / "out"
    for index in (2, 0, 1, 1, 2, 0):
        manifest = prepare(settings_for(input_dir, output, tokenizer_dir, num_shards=3, shard_index=index), opened)
    assert manifest is not None
    assert content(output) == undisturbed


def test_the_plain_command_finishes_what_shards_began(tmp_path, input_dir, tokenizer_dir, opened, undisturbed):
    output = tmp_path / "out"
    assert prepare(settings_for(input_dir, output, tokenizer_dir, num_shards=3, shard_index=1), opened) is None
    prepare(settings_for(input_dir, output, tokenizer_dir), opened)
    assert content(output) == undisturbed


def test_parts_of_an_earlier_version_are_completed_by_its_plan(tmp_path, input_dir, tokenizer_dir, opened, monkeypatch):
    output = tmp_path / "out"
    with monkeypatch.context() as earlier:
        assign = buckets.assign_bins
        earlier.setattr(buckets, "assign_bins", lambda *settings: (assign(*settings) + 1) % NUM_PARTS)
        for index in (0, 1):
            prepare(settings_for(input_dir, output, tokenizer_dir, num_shards=2, shard_index=index), opened)
    manifest = prepare(settings_for(input_dir, output, tokenizer_dir), opened)
    assert sum(part["documents"] for part in manifest["parts"]) == manifest["totals"]["documents"]
    assert verify(output)


@pytest.mark.parametrize("finished", [True, False], ids=["complete", "begun"])
def test_other_arguments_input_or_tokenizer_are_refused_and_named(tmp_path, tokenizer_dir, opened, made_data, finished):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "a.jsonl").write_text(records(20))
    (source / "b.jsonl").write_text(records(20))
    shard = {} if finished else {"num_shards": 2, "shard_index": 0}
    prepare(settings_for(source, output, tokenizer_dir, **shard), opened)
    before = content(output)

    def refused(message, **changes):
        directory = changes.pop("tokenizer", None)
        wanted = settings_for(source, output, directory or tokenizer_dir, **changes)
        with pytest.raises(UserError, match=message):
            prepare(wanted, None if directory else opened)
        assert content(output) == before

    refused("max_length: 128 then, 64 now", max_length=64)
    refused("seed: 42 then, 1 now", seed=1)
    refused(f"num_spliced_dataset_bins: {NUM_PARTS} then, 3 now", num_spliced_dataset_bins=3)
    refused("tokenizer_fingerprint", tokenizer=made_data / "tokenizers" / "llama3-base")
    (source / "c.jsonl").write_text(records(1))
    refused(r"c\.jsonl: absent then")
    (source / "c.jsonl").rename(source / "c.csv")  # earlier versions did not read it
    refused(r"files of \.csv were not read by earlier versions: .* --data_input_dirs 'DIRECTORY/\*\.jsonl'")
    (source / "c.csv").unlink()
    text = (source / "a.jsonl").read_text()
    (source / "a.jsonl").write_text(text.replace("document 7", "document X"))
    refused(r"a\.jsonl: its content has changed")
    (source / "a.jsonl").write_text(text)  # the same content at another time is the same input
    prepare(settings_for(source, output, tokenizer_dir, **shard), opened)
    prepare(settings_for(source, output, tokenizer_dir, max_length=64, overwrite=True), opened)
    assert json.loads((output / "manifest.json").read_text())["identity"]["arguments"]["max_length"] == 64


def test_fewer_parts_on_overwriting_leave_no_old_ones(tmp_path, input_dir, tokenizer_dir, opened):
    output = tmp_path / "out"
    prepare(settings_for(input_dir, output, tokenizer_dir), opened)
    (output / "mine.txt").write_text("keep me")
    prepare(settings_for(input_dir, output, tokenizer_dir, num_spliced_dataset_bins=2, overwrite=True), opened)
    assert sorted(path.name for path in (output / "arrow").iterdir()) == ["part-00000", "part-00001"]
    assert sorted(path.name for path in (output / "jsonl").iterdir()) == ["part-00000.jsonl", "part-00001.jsonl"]
    assert (output / "mine.txt").read_text() == "keep me"


def test_parts_of_unknown_origin_are_left_alone(tmp_path, input_dir, tokenizer_dir, opened):
    (tmp_path / "out" / "arrow" / "part-00000").mkdir(parents=True)
    with pytest.raises(UserError, match="not empty"):
        prepare(settings_for(input_dir, tmp_path / "out", tokenizer_dir), opened)
    assert (tmp_path / "out" / "arrow" / "part-00000").is_dir()


@pytest.mark.parametrize("changes", [{}, {"overwrite": True}, {"num_shards": 2, "shard_index": 0}])
def test_a_cache_of_somebody_else_is_left_alone(tmp_path, input_dir, tokenizer_dir, opened, changes):
    weights = tmp_path / "out" / "cache" / "models" / "weights.bin"
    weights.parent.mkdir(parents=True)
    weights.write_text("precious")
    with pytest.raises(UserError, match="cache holds models, which these scripts did not write"):
        prepare(settings_for(input_dir, tmp_path / "out", tokenizer_dir, **changes), opened)
    assert weights.read_text() == "precious"


def test_a_change_is_seen_in_each_of_two_directories_of_one_name(tmp_path, tokenizer_dir, opened):
    inputs = [tmp_path / language / "data" for language in ("zh", "en")]
    for directory in inputs:
        directory.mkdir(parents=True)
        (directory / "a.jsonl").write_text(records(20))
    wanted = preparation(
        "pretrain", tuple(inputs), tokenizer_dir, tmp_path / "out", max_length=128, num_spliced_dataset_bins=2
    )
    assert prepare(wanted, opened)["totals"]["documents"] == 40
    for directory in inputs:
        former = (directory / "a.jsonl").read_text()
        (directory / "a.jsonl").write_text(former.replace("document", "DOCUMENT", 1))
        with pytest.raises(UserError, match=f"{directory.parent.name}/data/a.jsonl: its content has changed"):
            prepare(wanted, opened)
        (directory / "a.jsonl").write_text(former)


def test_files_of_which_a_limit_leaves_nothing_may_be_touched(tmp_path, input_dir, tokenizer_dir, opened):
    shutil.copytree(input_dir, tmp_path / "in")
    wanted = settings_for(tmp_path / "in", tmp_path / "out", tokenizer_dir, limit=3)
    prepare(wanted, opened)
    for file in (tmp_path / "in").iterdir():
        os.utime(file)
    assert prepare(wanted, opened)["totals"]["documents"] == 3


def test_shards_that_end_together_finish_it_once(tmp_path, input_dir, tokenizer_dir, project_root, undisturbed):
    """Both jobs of the last round save the same plan, find all parts written, and write reports."""
    output = tmp_path / "out"
    calls = [
        command(
            project_root,
            input_dir,
            output,
            tokenizer_dir,
            "--num_shards",
            2,
            "--shard_index",
            index,
            "--num_workers",
            1,
        )
        for index in range(2)
    ]
    for _ in range(2):
        jobs = [subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for call in calls]
        failures = [job.communicate()[1] for job in jobs if job.wait()]
        assert not failures, failures
    done = subprocess.run(command(project_root, input_dir, output, tokenizer_dir), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert content(output) == undisturbed


def test_an_output_directory_that_cannot_be_made_is_named(input_dir, tokenizer_dir, opened):
    with pytest.raises(UserError, match="--data_output_dirs: /proc/nowhere cannot be written to"):
        prepare(settings_for(input_dir, Path("/proc/nowhere"), tokenizer_dir), opened)


def test_a_second_run_into_the_same_directory_refuses(tmp_path, input_dir, tokenizer_dir, opened, project_root):
    output = tmp_path / "out"
    with run_lock(settings_for(input_dir, output, tokenizer_dir)):
        done = subprocess.run(
            command(project_root, input_dir, output, tokenizer_dir), capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert "another run is writing" in done.stderr
        with pytest.raises(UserError, match="another run"):
            prepare(settings_for(input_dir, output, tokenizer_dir, num_shards=2, shard_index=0), opened)
    with (
        run_lock(settings_for(input_dir, output, tokenizer_dir, num_shards=2, shard_index=0)),
        run_lock(settings_for(input_dir, output, tokenizer_dir, num_shards=2, shard_index=1)),
        pytest.raises(UserError, match="another run"),
        run_lock(settings_for(input_dir, output, tokenizer_dir)),
    ):
        pass


def test_a_full_disk_is_named_and_the_finished_parts_are_kept(
    tmp_path, input_dir, tokenizer_dir, project_root, undisturbed
):
    """On a disk of 500 kB (3 MB are needed) that then grows."""

    def call(output):
        return command(project_root, input_dir, output, tokenizer_dir, "--num_workers", 2)

    assert content(run_before_and_after_it_grows(tmp_path, "500k", call, project_root)) == undisturbed


# --------------------------------------------------------------------------------------- bad input


def test_bad_records_stop_the_run_before_anything_is_written(tmp_path, tokenizer_dir, project_root):
    source = tmp_path / "in"
    source.mkdir()
    good = records(3)
    (source / "a.jsonl").write_text(good + '{"source": "", "target": null, "category": "x"}\n\n' + good + "[1]\n")
    (source / "b.jsonl").write_bytes(good.encode() + b'{"source": "", "target": "\xff\xfe", "category": "x"}\n' * 30)
    call = command(project_root, source, tmp_path / "out", tokenizer_dir, "--num_workers", 2)
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"{source}/a.jsonl:4: " in done.stderr
    assert f"{source}/a.jsonl:9: " in done.stderr
    assert f"{source}/b.jsonl:4: " in done.stderr
    assert done.stderr.count("b.jsonl:") == 18  # twenty in all
    assert '"target": null' in done.stderr
    assert content(tmp_path / "out") == {}
    (source / "a.jsonl").write_text(good)
    (source / "b.jsonl").unlink()
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_skipped_records_are_counted_and_listed_with_their_lines(tmp_path, tokenizer_dir, opened):
    source = tmp_path / "in"
    source.mkdir()
    good = records(3)
    (source / "a.jsonl").write_text(good + '{"source": "", "target": ""\n\n' + good + '{"source": "x"}\n')
    (source / "b.jsonl").write_text("")
    manifest = prepare(settings_for(source, tmp_path / "out", tokenizer_dir, on_bad_record="skip"), opened)
    assert manifest["totals"]["rejected_records"] == {"broken_json": 1, "missing_field": 1}
    assert manifest["totals"]["empty_lines"] == 1
    assert manifest["totals"]["documents"] == 6
    listed = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(entry["file"], entry["line"], entry["reason"]) for entry in listed] == [
        ("in/a.jsonl", 4, "broken_json"),
        ("in/a.jsonl", 9, "missing_field"),
    ]
    assert listed[1]["record"] == '{"source": "x"}'


def test_a_cut_off_compressed_file_is_a_bad_record(tmp_path, tokenizer_dir, opened):
    source = tmp_path / "in"
    source.mkdir()
    whole = gzip.compress(os.urandom(3000).hex().encode() + b"\n" + records(500).encode())
    (source / "a.jsonl.gz").write_bytes(whole[: len(whole) - 200])
    (source / "b.parquet").write_bytes(b"PAR1 this is no parquet file")
    frames = [pyarrow.compress(records(200).encode(), codec="zstd", asbytes=True) for _ in range(2)]
    (source / "d.jsonl.zst").write_bytes(frames[0] + frames[1][:-20])
    (source / "c.jsonl").write_text(records(3))
    for damaged in ("a.jsonl.gz", "b.parquet", "d.jsonl.zst"):
        alone = tmp_path / f"only-{damaged}"
        alone.mkdir()
        shutil.copy(source / damaged, alone)
        with pytest.raises(UserError, match="damaged"):
            prepare(settings_for(alone, tmp_path / "out", tokenizer_dir), opened)
        assert content(tmp_path / "out") == {}
    manifest = prepare(settings_for(source, tmp_path / "out", tokenizer_dir, on_bad_record="skip"), opened)
    assert manifest["totals"]["rejected_records"]["damaged_file"] == 3


def test_files_that_are_not_read_are_named_on_the_terminal_and_in_the_manifest(tmp_path, tokenizer_dir, opened, capsys):
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.jsonl").write_text(records(3))
    (source / os.fsdecode(b"\xe9.jsonl")).write_text(records(2))
    for name in ("b.xml", "c.XML", ".hidden.jsonl"):
        (source / name).write_text(records(1))
    manifest = prepare(settings_for(source, tmp_path / "out", tokenizer_dir), opened)
    assert manifest["totals"]["documents"] == 5
    assert [file["name"] for file in manifest["input_files"]] == ["in/\\xe9.jsonl", "in/a.jsonl"]
    assert manifest["unread_files"]["first"] == ["in/b.xml", "in/c.XML"]
    message = "files that are not read: 2 (.XML 1, .xml 1): in/b.xml, in/c.XML\nhidden files and directories that"
    assert message in capsys.readouterr().out
    assert message in summary(manifest)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_line_beyond_the_bound_is_a_bad_record_and_what_follows_is_read(tmp_path, tokenizer_dir, opened, name):
    long = json.dumps({"source": "", "target": "x" * 9_000_000, "category": "c"}).encode()
    lines = records(2).encode() + long + b"\n" + records(3).encode()
    codec = {"gz": "gzip", "zst": "zstd"}.get(name.rpartition(".")[2])
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(pyarrow.compress(lines, codec=codec, asbytes=True) if codec else lines)
    bound = {"max_line_mb": 8, "num_spliced_dataset_bins": 2}
    with pytest.raises(UserError, match=rf"/{name}:3: the line has 9 MB, more than 8: .* --max_line_mb"):
        prepare(settings_for(tmp_path / "in", tmp_path / "out", tokenizer_dir, **bound), opened)
    wanted = settings_for(tmp_path / "in", tmp_path / "out", tokenizer_dir, on_bad_record="skip", **bound)
    totals = prepare(wanted, opened)["totals"]
    assert (totals["records"], totals["documents"], totals["rejected_records"]) == (6, 5, {"line_too_long": 1})
    rejected = json.loads((tmp_path / "out" / "rejected.jsonl").read_text())
    assert rejected["line"] == 3
    assert len(rejected["record"]) == 200
    with pytest.raises(UserError, match="max_line_mb: 8 then, 256 now"):
        prepare(settings_for(tmp_path / "in", tmp_path / "out", tokenizer_dir, on_bad_record="skip",
                             num_spliced_dataset_bins=2), opened)  # fmt: skip


def test_a_long_cell_of_a_table_is_a_bad_record(tmp_path, tokenizer_dir, opened):
    (tmp_path / "in").mkdir()
    texts = ["short", "long " * 400_000, "short"]
    rows = [{"source": "", "target": text, "category": "c"} for text in texts]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in" / "a.parquet")
    bound = {"max_line_mb": 1, "on_bad_record": "skip"}
    totals = prepare(settings_for(tmp_path / "in", tmp_path / "out", tokenizer_dir, **bound), opened)["totals"]
    assert (totals["records"], totals["documents"], totals["rejected_records"]) == (3, 2, {"line_too_long": 1})
    message = "the row has 2 MB, more than 1; --max_line_mb sets the bound"
    assert json.loads((tmp_path / "out" / "rejected.jsonl").read_text())["message"] == message


def test_many_bad_records_are_written_as_they_come(tmp_path, tokenizer_dir, opened):
    (tmp_path / "in").mkdir()
    with gzip.open(tmp_path / "in" / "a.jsonl.gz", "wt", compresslevel=1) as file:
        file.writelines([records(1), '{"a": 1}\n' * 60_000, records(1), "[]\n"])
    tracemalloc.start()
    prepare(settings_for(tmp_path / "in", tmp_path / "out", tokenizer_dir, on_bad_record="skip"), opened)
    peak_mb = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    assert peak_mb < 25, "measured: 17, and 277 with all of them in memory"
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [entry["line"] for entry in rejected] == [*range(2, 60_002), 60_003]


def test_bad_records_that_stop_the_run_are_shortened_and_end_their_chunk(tmp_path, opened):
    text = ('{"a": "' + "x" * 10_000 + '"}\n') * 1_000
    (tmp_path / "a.jsonl").write_text(text)
    (chunk, *_) = plan_chunks(find_input_files([tmp_path], tmp_path / "out")[0], None)
    tokenizer = DocumentTokenizer(opened.encoder, 1, 2, opened.cut_scores, 128, "split")
    facts = process_chunk(ChunkJob(tokenizer, tmp_path / "out", 10**6, True, shared_flag()), chunk)
    assert (facts["finished"], len(facts["rejected"])) == (False, 21)
    assert max(len(record["record"]) for record in facts["rejected"]) < 1_000
    assert list((tmp_path / "out").iterdir()) == []


def grow(path: Path) -> None:
    with path.open("a") as file:
        file.write(records(1))


def replace(path: Path) -> None:
    text = path.read_text()
    path.with_name("new").write_text(text.replace("document 1", "document 7"))
    path.with_name("new").replace(path)


CHANGES = {
    "grows": (grow, "has changed from [0-9,]+ to [0-9,]+ bytes while it was read", "bytes then, .* bytes now"),
    "shrinks": (
        lambda path: os.truncate(path, 500),
        "has changed from .* to 500 bytes while it was read",
        "500 bytes now",
    ),
    "replaced": (replace, "was written or replaced while it was read", "its content has changed"),
    "gone": (Path.unlink, "can no longer be read: No such file", "absent now"),
}


@pytest.mark.parametrize("stage", ["process_chunk", "_write_one_part"])
@pytest.mark.parametrize("change", CHANGES)
def test_input_that_changes_while_a_run_reads_it_is_noticed(
    tmp_path, input_dir, tokenizer_dir, opened, monkeypatch, change, stage
):
    act, message, next_message = CHANGES[change]
    source = Path(shutil.copytree(input_dir, tmp_path / "in"))
    work, pending = getattr(pipeline, stage), [source / "3.jsonl"]

    def work_and_change(state, task):
        done = work(state, task)
        if stage != "process_chunk" or task.index == 5:
            for path in pending:
                act(path)
            pending.clear()
        return done

    monkeypatch.setattr(pipeline, stage, work_and_change)
    wanted = settings_for(source, tmp_path / "out", tokenizer_dir)
    with pytest.raises(UserError, match=f"3.jsonl {message}"):
        prepare(wanted, opened)
    assert not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(UserError, match=f"3.jsonl: .*{next_message}"):
        prepare(wanted, opened)


def test_input_that_was_only_touched_while_a_run_read_it_is_used_by_the_next(
    tmp_path, input_dir, tokenizer_dir, opened, monkeypatch, undisturbed
):
    source = Path(shutil.copytree(input_dir, tmp_path / input_dir.name))
    plan_parts = part_planning.plan_parts
    monkeypatch.setattr(
        part_planning, "plan_parts", lambda *given: (os.utime(source / "3.jsonl"), plan_parts(*given))[1]
    )
    wanted = settings_for(source, tmp_path / "out", tokenizer_dir)
    with pytest.raises(UserError, match=r"3.jsonl was written or replaced"):
        prepare(wanted, opened)
    prepare(wanted, opened)
    assert content(tmp_path / "out") == undisturbed


def test_an_output_directory_that_goes_meanwhile_is_named(tmp_path, input_dir, tokenizer_dir, opened, monkeypatch):
    out, build_manifest = tmp_path / "out", pipeline.build_manifest
    monkeypatch.setattr(pipeline, "build_manifest", lambda *given: (shutil.rmtree(out), build_manifest(*given))[1])
    with pytest.raises(UserError, match="has gone while this run was working with it"):
        prepare(settings_for(input_dir, out, tokenizer_dir), opened)


@pytest.mark.parametrize("text", ["", "\n\n \n"], ids=["empty", "blank"])
def test_input_without_a_record_is_refused(tmp_path, tokenizer_dir, opened, text):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text(text)
    with pytest.raises(UserError, match="no record"):
        prepare(settings_for(tmp_path / "in", tmp_path / "out", tokenizer_dir), opened)
    assert content(tmp_path / "out") == {}


FIELDS = st.sampled_from(["source", "target", "category", "messages", "from", "content"])
JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=True),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=3),
    max_leaves=5,
)
GOOD = st.fixed_dictionaries(
    {"source": st.text(max_size=9), "target": st.text(max_size=300), "category": st.text(max_size=3)}
)
LINES = st.one_of(
    st.binary(max_size=40),
    JSON.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")),
    GOOD.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    GOOD.map(lambda value: json.dumps(value).encode()),
)


def test_any_bytes_end_in_rows_or_in_counted_rejections(tmp_path, tokenizer_dir, opened):
    (tmp_path / "in").mkdir()

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(lines=st.lists(LINES, min_size=1, max_size=12))
    def check(lines):
        data = b"\n".join(lines)
        (tmp_path / "in" / "a.jsonl").write_bytes(data)
        wanted = settings_for(
            tmp_path / "in",
            tmp_path / "out",
            tokenizer_dir,
            on_bad_record="skip",
            overwrite=True,
            max_length=32,
            num_spliced_dataset_bins=2,
        )
        try:
            manifest = prepare(wanted, opened)
        except UserError as error:
            assert "no record could be used" in str(error)  # noqa: PT017
            return
        totals = manifest["totals"]
        whole = data[:-1] if data.endswith(b"\n") else data
        nonblank = [line for line in whole.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
        assert totals["records"] == len(nonblank) == totals["documents"] + sum(totals["rejected_records"].values())
        cut = sum(count for key, count in totals.items() if key.startswith("cut_tokens."))
        assert totals["tokens_in"] == totals["tokens_out"] + cut
        rows = [
            row for part in sorted((tmp_path / "out" / "arrow").iterdir()) for row in datasets.load_from_disk(str(part))
        ]
        assert sum(len(row["input_ids"]) for row in rows) == totals["tokens_out"]
        assert all(len(row["input_ids"]) <= 32 and any(label != -100 for label in row["labels"]) for row in rows)

    check()


MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "from": st.sampled_from(["human", "assistant", "user", "gpt", "system", "nobody"]),
            "content": st.text(max_size=60) | st.sampled_from(["<s>", "</s>", "Human: <s>x</s>", "long " * 40]),
        }
    )
    | JSON,
    max_size=6,
)
CONVERSATIONS = st.one_of(
    st.fixed_dictionaries({"messages": MESSAGES}, optional={"category": st.text(max_size=3) | JSON, "system": JSON}),
    st.fixed_dictionaries({"instruction": st.text(max_size=40), "output": st.text(max_size=99), "input": JSON}),
    JSON,
).map(lambda value: json.dumps(value).encode())


def test_any_conversations_end_in_rows_or_in_counts(tmp_path, tokenizer_dir, opened):
    (tmp_path / "in").mkdir()
    common = {
        "llama_version": 2,
        "on_bad_record": "skip",
        "overwrite": True,
        "max_length": 96,
        "num_spliced_dataset_bins": 2,
    }

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(lines=st.lists(CONVERSATIONS | LINES, min_size=1, max_size=8), fit=st.sampled_from(["truncate", "window"]))
    def check(lines, fit):
        (tmp_path / "in" / "a.jsonl").write_bytes(b"\n".join(lines))
        wanted = preparation(
            "sft", (tmp_path / "in",), tokenizer_dir, tmp_path / "out", long_conversations=fit, **common
        )
        try:
            totals = prepare(wanted, opened)["totals"]
        except UserError as error:
            assert "no record could be used" in str(error)  # noqa: PT017
            return
        assert totals["records"] == totals["documents"] + sum(totals["rejected_records"].values())
        lost = sum(count for key, count in totals.items() if key.startswith(("cut_tokens.", "dropped_tokens.")))
        assert totals["tokens_in"] + totals.get("repeated_tokens", 0) == totals["tokens_out"] + lost
        rows = [
            row for part in sorted((tmp_path / "out" / "arrow").iterdir()) for row in datasets.load_from_disk(str(part))
        ]
        assert sum(len(row["input_ids"]) for row in rows) == totals["tokens_out"]
        assert all(len(row["input_ids"]) <= 96 and any(label != -100 for label in row["labels"]) for row in rows)

    check()
