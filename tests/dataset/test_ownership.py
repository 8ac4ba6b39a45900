"""Other programs' files in an output directory: never deleted or replaced, named in a refusal."""

import json
import os

import pytest

from colossal_llama.dataset.prepare.open_tokenizer import OpenTokenizer
from colossal_llama.dataset.prepare.pipeline import prepare
from colossal_llama.dataset.prepare.verification import verify
from colossal_llama.utils.errors import UserError
from tests.support.preparations import preparation


@pytest.fixture(scope="module")
def opened(made_data):
    return OpenTokenizer(made_data / "tokenizers" / "llama2")


@pytest.fixture
def run(tmp_path, opened, made_data):
    source = tmp_path / "in"
    source.mkdir()
    rows = [{"source": "", "target": f"document {n} with words", "category": "c"} for n in range(30)]
    (source / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")

    def prepare_it(**changes):
        options = {"max_length": 64, "num_spliced_dataset_bins": 2, "on_bad_record": "skip", **changes}
        wanted = preparation("pretrain", (source,), made_data / "tokenizers" / "llama2", tmp_path / "out", **options)
        return prepare(wanted, opened)

    return prepare_it


def snapshot(directory):
    return {
        str(path.relative_to(directory)): path.readlink() if path.is_symlink()
        else path.read_bytes() if path.is_file() else path.stat().st_mode
        for path in directory.rglob("*")
    }  # fmt: skip


def write(path, text="precious\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


FOREIGN = {
    "manifest.json": lambda out: write(out / "manifest.json", '{"name": "somebody else\'s"}'),
    "an empty manifest.json": lambda out: write(out / "manifest.json", ""),
    "last_run.json": lambda out: write(out / "last_run.json"),
    "rejected.jsonl": lambda out: write(out / "rejected.jsonl", '{"piece": "word"}\n'),
    "rejected.jsonl, a link": lambda out: (out / "rejected.jsonl").symlink_to(out.parent / "in" / "a.jsonl"),
    "manifest.json, a pipe": lambda out: os.mkfifo(out / "manifest.json"),
    "arrow": lambda out: write(out / "arrow"),
    "arrow/part-00000/notes.txt": lambda out: write(out / "arrow" / "part-00000" / "notes.txt"),
    "jsonl/part-00000.jsonl": lambda out: write(out / "jsonl" / "part-00000.jsonl"),
    "jsonl/rows.jsonl": lambda out: write(out / "jsonl" / "rows.jsonl"),
    "cache/chunks/chunk-00000.json": lambda out: write(out / "cache" / "chunks" / "chunk-00000.json"),
    "cache/run.json": lambda out: write(out / "cache" / "run.json", "{}"),
    ".lock, a link": lambda out: (out / ".lock").symlink_to(out.parent / "in" / "a.jsonl"),
    ".lock, a link to nothing": lambda out: (out / ".lock").symlink_to(out.parent / "nothing"),
    ".lock, a directory": lambda out: (out / ".lock").mkdir(),
    ".lock, a pipe": lambda out: os.mkfifo(out / ".lock"),
    ".lock": lambda out: write(out / ".lock"),
    ".lock-finishing": lambda out: write(out / ".lock-finishing"),
}


@pytest.mark.parametrize("overwrite", [False, True], ids=["", "overwrite"])
@pytest.mark.parametrize("foreign", FOREIGN)
def test_what_no_run_wrote_is_named_and_left_alone_in_a_fresh_directory(tmp_path, run, foreign, overwrite):
    (tmp_path / "out").mkdir()
    FOREIGN[foreign](tmp_path / "out")
    before = snapshot(tmp_path)
    with pytest.raises(UserError) as refusal:
        run(overwrite=overwrite)
    assert foreign.split(",")[0].removeprefix("an empty ").split("/")[0] in str(refusal.value)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    ["arrow/mine", "arrow/part-00002", "arrow/part-00000/notes.txt", "jsonl/part-00007.jsonl", "cache/models"],
)
def test_what_was_put_into_a_preparation_is_kept_by_overwriting(tmp_path, run, name):
    run()
    write(tmp_path / "out" / name)
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="did not write"):
        run(overwrite=True, max_length=32)
    assert snapshot(tmp_path) == before


def test_other_names_are_not_looked_at(tmp_path, run):
    others = [".notes.tmp-1", ".manifest.json.tmp-host-7", "notes.txt", ".x.tmp-1/a", "cache.old/a"]
    for name in others:
        write(tmp_path / "out" / name)
    run()
    run(overwrite=True, max_length=32)
    run(overwrite=True)
    assert [(tmp_path / "out" / name).read_text() for name in others] == ["precious\n"] * len(others)


def test_what_killed_runs_left_is_removed(tmp_path, run):
    run()
    for name in (".manifest.json.tmp-host-7", ".last_run.json.tmp-host-8", "cache/..run.json.tmp-h-1.tmp-h-1"):
        write(tmp_path / "out" / name, "")
    (tmp_path / "out" / "manifest.json").rename(tmp_path / "out" / ".manifest.json.tmp-host-9")
    run(overwrite=True)
    names = {path.name for path in (tmp_path / "out").rglob(".*") if not path.name.startswith(".lock")}
    assert names == set()


def test_a_refused_run_leaves_nothing_behind(tmp_path, run):
    with pytest.raises(UserError, match="bad record"):
        run(on_bad_record="stop")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    (tmp_path / "in" / "a.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no record"):
        run(num_shards=2, shard_index=0)
    assert not (tmp_path / "out" / ".lock").exists()


def test_a_refused_run_leaves_the_directories_that_were_there(tmp_path, run):
    for name in ("arrow", "cache"):
        (tmp_path / "out" / name).mkdir(parents=True)
    with pytest.raises(UserError, match="bad record"):
        run(on_bad_record="stop")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["arrow", "cache"]


def test_what_a_shard_wrote_after_another_had_emptied_the_cache_is_no_foreign_file(tmp_path, run):
    run(keep_cache=True)
    (tmp_path / "out" / "cache" / "run.json").unlink()
    run()
    assert list((tmp_path / "out" / "cache").iterdir()) == []


def test_verify_names_a_manifest_of_another_program(tmp_path):
    write(tmp_path / "manifest.json", '{"name": "somebody else\'s"}')
    with pytest.raises(UserError, match="not written by the prepare scripts"):
        verify(tmp_path)
