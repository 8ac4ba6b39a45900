"""`plot_data` and `--plot`: a picture, tables and JSON of any parts; other files stay."""

import json
import sys

import pytest

from colossal_llama.dataset.prepare.cli import run
from tests.support.forked import run_forked
from tests.support.written_parts import write_part

SCRIPT = "colossal_llama/dataset/plot_data.py"
PNG = b"\x89PNG\r\n\x1a\n"


def test_the_script_plots_prints_and_writes_numbers(project_root, tmp_path):
    for number, rows in enumerate(([[(3, 0), (4, 1)]], [], [[(9, 1)]])):
        write_part(tmp_path / "data", number, rows, ["a", "诗词"], 16)
    for _ in range(2):  # what it has written is replaced
        done = run_forked(project_root, SCRIPT, tmp_path / "data", "--output", tmp_path / "deep" / "x.png")
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
    assert (tmp_path / "deep" / "x.png").read_bytes().startswith(PNG)
    record = json.loads((tmp_path / "deep" / "x.json").read_text())
    assert record["categories"]["诗词"]["tokens"] == 13
    assert "诗词" in done.stdout
    assert "all parts" in done.stdout
    one = run_forked(project_root, SCRIPT, tmp_path / "data" / "arrow" / "part-00002", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    assert json.loads((tmp_path / "data.json").read_text())["tokens"] == 9


def test_other_files_stay(project_root, tmp_path):
    write_part(tmp_path, 0, [[(3, 0)]], ["a"], 16)
    (tmp_path / "a.png").write_bytes(PNG + b"somebody's")
    (tmp_path / "b.json").write_text("{}")
    for output, said in (
        ("a.png", "is no plot of this command"),
        ("b.png", "no run of this command wrote it"),
        ("c.gif", "must end in .png, .pdf or .svg"),
    ):
        done = run_forked(project_root, SCRIPT, tmp_path / "arrow", "--output", tmp_path / output)
        assert done.returncode == 2
        assert said in done.stderr
    assert (tmp_path / "a.png").read_bytes() == PNG + b"somebody's"
    assert (tmp_path / "b.json").read_text() == "{}"
    done = run_forked(project_root, SCRIPT, tmp_path / "absent", tmp_path / "arrow" / "part-00000" / "part.json")
    assert "absent does not exist" in done.stderr
    assert "part.json is a file, not a directory" in done.stderr


@pytest.mark.parametrize("kind", ["pretrain", "sft"])
def test_a_preparation_plots_its_parts(kind, made_data, tmp_path, monkeypatch, capsys):
    folder = {"pretrain": "pretrain/zh_poetry", "sft": "sft/kdconv"}[kind]
    output = tmp_path / "out"
    words = ["--data_input_dirs", made_data / folder, "--tokenizer_dir", made_data / "tokenizers" / "llama2"]
    words += ["--data_output_dirs", output, "--max_length", 256, "--num_spliced_dataset_bins", 2, "--limit", 40]
    words += ["--num_workers", 1, "--plot", *(("--llama_version", 2) if kind == "sft" else ())]
    monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, words)])
    for again in ([], [], ["--overwrite"]):
        monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, words), *again])
        run(kind)
        assert f"plotted: {output / 'plot_data.png'}" in capsys.readouterr().out
        assert (output / "plot_data.png").read_bytes().startswith(PNG)
        record, manifest = (json.loads((output / f"{name}.json").read_text()) for name in ("plot_data", "manifest"))
        assert record["tokens"] == manifest["totals"]["tokens_out"]
        assert record["segments"] == manifest["totals"]["segments"]
        assert [sum(part["tokens"]) for part in record["parts"]] == [part["tokens"] for part in manifest["parts"]]
        assert record["fill"] == pytest.approx(manifest["totals"]["fill"])
    (output / "plot_data.png").write_bytes(PNG)
    with pytest.raises(Exception, match=r"plot_data\.png, which these scripts did not write"):
        run(kind)
