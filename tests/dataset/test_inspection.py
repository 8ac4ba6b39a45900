"""A finished directory is opened by its name alone: its rows are shown, its tokenizer is known."""

import json
import shutil
from pathlib import Path

import datasets
import pyarrow as pa
import pytest

from colossal_llama.dataset.prepare.cli import parse_arguments, run
from colossal_llama.utils.errors import UserError


def run_here(monkeypatch, capsys, *words: object, kind: str = "pretrain") -> str:
    """What a prepare script prints; raises what it ends with."""
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["prepare.py", *map(str, words)])
    run(kind)
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def prepared(made_data, tmp_path_factory) -> Path:
    """A directory with `tokenizer` and, of it, the prepared `documents` and `conversations`."""
    root = tmp_path_factory.mktemp("inspected")
    shutil.copytree(made_data / "tokenizers" / "llama2", root / "tokenizer")
    with pytest.MonkeyPatch.context() as patch:
        for kind, name, inputs in (
            ("pretrain", "documents", "pretrain/zh_poetry"),
            ("sft", "conversations", "sft/kdconv"),
        ):
            words = ["--data_input_dirs", made_data / inputs, "--tokenizer_dir", root / "tokenizer", "--limit", 40]
            words += ["--data_output_dirs", root / name, "--max_length", 256, "--num_spliced_dataset_bins", 3]
            words += ["--num_workers", 1, *(("--llama_version", 2) if kind == "sft" else ())]
            patch.setattr("sys.argv", ["prepare.py", *map(str, words)])
            run(kind)
    return root


@pytest.fixture
def copy(prepared, tmp_path) -> Path:
    """A copy of all, whose preparations name the copied tokenizer."""
    shutil.copytree(prepared, tmp_path / "copy")
    for path in (tmp_path / "copy").glob("*/last_run.json"):
        record_tokenizer(path, str(tmp_path / "copy" / "tokenizer"))
    return tmp_path / "copy"


def record_tokenizer(path: Path, directory: str | None) -> None:
    """Changes the recorded directory, or leaves it out as earlier versions did."""
    content = json.loads(path.read_text())
    for key in ("checksum", "tokenizer_dir"):
        content.pop(key, None)
    path.write_text(json.dumps(content | ({"tokenizer_dir": directory} if directory else {}), indent=2))


@pytest.mark.parametrize("kind", ["pretrain", "sft"])
@pytest.mark.parametrize("name", ["documents", "conversations"])
def test_both_scripts_show_either_kind(prepared, kind, name, monkeypatch, capsys):
    directory = prepared / name
    shown = run_here(monkeypatch, capsys, "--inspect", 4, "--data_output_dirs", directory, kind=kind)
    titles = [f"part-0000{part}, row {row}" for row, part in ((0, 0), (0, 1), (0, 2), (1, 0))]
    positions = [shown.index(title) for title in titles]
    assert positions == sorted(positions)
    assert shown.count(", row ") == 4
    assert "document 1 of" in shown
    assert "⟦" in shown
    for words in ((directory, 4), (4, directory), (directory / "arrow", 4)):
        assert run_here(monkeypatch, capsys, "--inspect", *words, kind=kind) == shown
    assert run_here(monkeypatch, capsys, "--inspect", directory).count(", row ") == 5
    part = run_here(monkeypatch, capsys, "--inspect", directory / "arrow" / "part-00001", 2)
    assert [line for line in part.splitlines() if ", row " in line][1].count("part-00001, row 1") == 1


def test_all_rows_are_shown_once_and_no_more(prepared, monkeypatch, capsys):
    rows = json.loads((prepared / "documents" / "manifest.json").read_text())["totals"]["rows"]
    shown = run_here(monkeypatch, capsys, "--inspect", prepared / "documents", 10_000)
    assert len({line for line in shown.splitlines() if ", row " in line}) == rows == shown.count(", row ")


def test_verify_takes_the_directory_in_both_ways(prepared, monkeypatch, capsys):
    directory = prepared / "documents"
    said = run_here(monkeypatch, capsys, "--verify", directory)
    assert "all as in the manifest" in said
    assert run_here(monkeypatch, capsys, "--verify", "--data_output_dirs", directory, kind="sft") == said
    monkeypatch.chdir(directory)
    assert "all as in the manifest" in run_here(monkeypatch, capsys, "--verify", ".")


def test_a_tokenizer_that_has_gone_is_asked_for(copy, monkeypatch, capsys):
    (copy / "tokenizer").rename(copy / "moved")
    with pytest.raises(UserError, match=rf"tokenizer {copy / 'tokenizer'} is not there any more.* as --tokenizer_dir"):
        run_here(monkeypatch, capsys, "--inspect", copy / "documents")
    shown = run_here(monkeypatch, capsys, "--inspect", copy / "documents", "--tokenizer_dir", copy / "moved")
    assert "⟦" in shown
    (copy / "tokenizer").mkdir()
    with pytest.raises(UserError) as stopped:
        run_here(monkeypatch, capsys, "--inspect", copy / "documents")
    assert "--tokenizer_dir" in str(stopped.value)


@pytest.mark.parametrize("damage", ["earlier version", "missing", "cut off"])
def test_a_tokenizer_that_is_not_recorded_is_asked_for(copy, damage, monkeypatch, capsys):
    path = copy / "documents" / "last_run.json"
    if damage == "earlier version":
        record_tokenizer(path, None)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"where its tokenizer lies is not recorded .*name it by --tokenizer_dir"):
        run_here(monkeypatch, capsys, "--inspect", copy / "documents")
    assert "⟦" in run_here(
        monkeypatch, capsys, "--inspect", copy / "documents", 1, "--tokenizer_dir", copy / "tokenizer"
    )


def test_another_tokenizer_is_refused(copy, made_data, monkeypatch, capsys):
    other = made_data / "tokenizers" / "llama3-base"
    with pytest.raises(UserError, match=r"part-00000 was made with another tokenizer.*is another one"):
        run_here(monkeypatch, capsys, "--inspect", copy / "documents", "--tokenizer_dir", other)
    shutil.rmtree(copy / "tokenizer")
    shutil.copytree(other, copy / "tokenizer")
    with pytest.raises(UserError, match=r"was made with another tokenizer.*has changed since"):
        run_here(monkeypatch, capsys, "--inspect", copy / "documents")


@pytest.mark.parametrize("column", ["document_lengths", "labels", "input_ids"])
def test_a_damaged_row_is_named(copy, column, monkeypatch, capsys):
    path = copy / "documents" / "arrow" / "part-00001" / "data-00000-of-00001.arrow"
    with pa.OSFile(str(path), "rb") as file:
        table = pa.ipc.open_stream(file).read_all()
    rows = table.to_pylist()
    rows[0][column] = [10**6] * len(rows[0][column]) if column == "input_ids" else rows[0][column][:-1]
    with path.open("wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=table.schema))
    with pytest.raises(UserError, match="part-00001, row 0"):
        run_here(monkeypatch, capsys, "--inspect", copy / "documents")


def test_a_preparation_that_is_resumed_records_its_tokenizer(copy, made_data, monkeypatch, capsys):
    (copy / "documents" / "last_run.json").unlink()
    words = ["--data_input_dirs", made_data / "pretrain" / "zh_poetry", "--tokenizer_dir", copy / "tokenizer"]
    words += ["--data_output_dirs", copy / "documents", "--max_length", 256, "--num_spliced_dataset_bins", 3]
    shown = run_here(monkeypatch, capsys, *words, "--limit", 40, "--num_workers", 1, "--inspect", 2)
    assert shown.count(", row ") == 2
    content = json.loads((copy / "documents" / "last_run.json").read_text())
    assert content["tokenizer_dir"] == str((copy / "tokenizer").resolve())


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--inspect"], "which directory? --inspect DIR, or --data_output_dirs DIR"),
        (["--verify"], "which directory? --verify DIR, or --data_output_dirs DIR"),
        (["--inspect", "nowhere"], "nowhere does not exist"),
        (["--inspect", "0", "--data_output_dirs", "."], "0 is less than 1"),
        (["--inspect", ".", "--data_output_dirs", "."], "names a directory, and --data_output_dirs another one"),
        (["--inspect", ".", ".", "3"], "one number of rows and one directory at most"),
        (["--inspect", "3", "4", "--data_input_dirs", "."], "one number of rows and one directory at most"),
        (["--inspect", "3", "--data_output_dirs", "absent"], "--data_output_dirs: absent does not exist"),
        (["--inspect", ".", "--max_length", "64"], "not with --max_length; to prepare data, name it by"),
        (["--verify", ".", "--inspect", "3"], "not with --inspect"),
    ],
)
def test_what_contradicts_itself_is_refused(words, problem, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        parse_arguments("pretrain", words)
    assert stopped.value.code == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize("columns", [("input_ids", "labels"), ("input_ids", "labels", "document_lengths"), None])
def test_a_data_set_of_another_program_is_shown_with_a_named_tokenizer(
    prepared, columns, tmp_path, monkeypatch, capsys
):
    rows = datasets.load_from_disk(str(prepared / "documents" / "arrow" / "part-00000"))
    if columns:
        rows = rows.select_columns(list(columns)).cast(
            datasets.Features({c: [datasets.Value("int64")] for c in columns})
        )
    rows.select(range(len(rows) - 1)).flatten_indices().save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match=r"not recorded \(another program made it\): name it by --tokenizer_dir"):
        run_here(monkeypatch, capsys, "--inspect", tmp_path / "saved")
    words = ("--tokenizer_dir", prepared / "tokenizer")
    shown = run_here(monkeypatch, capsys, "--inspect", tmp_path / "saved", 2, *words)
    assert "does not record its tokenizer" in shown
    own = run_here(monkeypatch, capsys, "--inspect", prepared / "documents" / "arrow" / "part-00000", 2)
    texts = [
        "".join(line for line in text.splitlines(keepends=True) if "──" not in line)
        for text in (shown.partition("is another one\n")[2], own)
    ]
    if columns != ("input_ids", "labels"):  # else a row counts as one document
        assert texts[0] == texts[1]
    assert "⟦" in texts[0]
