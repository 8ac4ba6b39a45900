"""Model card: what the records say, code that runs, and nothing else."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from colossal_llama.export.arguments import parse_arguments
from colossal_llama.export.directory import export
from tests.support.preparations import preparation
from tests.support.scripts import run_script


def card_of(source: Path, target: Path, *options: object) -> str:
    words = ["--model_path", source, "--output_dir", target, "--model_card", *options]
    export(parse_arguments(list(map(str, words))))
    return (target / "README.md").read_text(encoding="utf-8")


def write_run(model: Path, root: Path, **arguments: object) -> Path:
    """A run's directories as train.py leaves them: the model, --config_file, metrics.jsonl."""
    save = root / "checkpoints" / "zh-1"
    (save / "modelling").mkdir(parents=True)
    for path in model.iterdir():
        (save / "modelling" / path.name).write_bytes(path.read_bytes())
    logs = root / "logs" / "zh-1"
    logs.mkdir(parents=True)
    (logs / "run.json").write_text(json.dumps({"save_dir": str(save)}))
    given = {"pretrained": "/data/hidden/LLAMA", "save_dir": str(save), "tensorboard_dir": str(logs), **arguments}
    configuration = {
        "command": ["train.py"],
        "arguments": {"lr": 1e-4, "lora_rank": 0, "lora_alpha": 16, "use_neft": False, "dataset": [], **given},
        "world_size": 8,
        "device": "cuda:0",
        "started_s": 1.0,
        "versions": {"torch": "2.13.0"},
    }
    (root / "configs").mkdir()
    (root / "configs" / "zh-1.json").write_text(json.dumps(configuration))
    steps = [
        {"step": 1, "loss": 9.5, "tokens_seen": 100, "target_tokens_seen": 90, "loss_by_category": {"poems": 9.25}},
        {"step": 2, "loss": None, "tokens_seen": 200, "target_tokens_seen": 180, "eval_loss": 7.125},
        {"step": 3, "loss": 6.5, "tokens_seen": 300, "target_tokens_seen": 270, "loss_by_category": {"poems": 6.25}},
    ]
    for step, right in zip(steps, (25, 30, 50), strict=True):
        step |= {"eval_task_accuracy": {"mmlu": right / 100}, "eval_task_questions": {"mmlu": 100}}
    (logs / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps) + '{"step": 4, "lo')
    return save


@pytest.mark.parametrize("given", ["parts", "directory"])
def test_the_card_of_a_run_says_what_its_records_say(
    random_model_directory, made_data, project_root, tmp_path, capsys, given
):
    data = tmp_path / "work" / "data"
    from colossal_llama.dataset.prepare.pipeline import prepare

    prepare(
        preparation("pretrain", [project_root / "examples" / "pretrain"], random_model_directory, data, max_length=64)
    )
    parts = sorted(map(str, (data / "arrow").iterdir()))
    dataset = parts if given == "parts" else [str(data / "arrow")]
    save = write_run(random_model_directory, tmp_path / "work", dataset=dataset, pad_token="/data/hidden/pad")
    text = card_of(save, tmp_path / "out" / "zh", "--license", "mit", "--language", "zh", "en")
    metadata = ModelCard(text).data.to_dict()
    assert metadata["license"] == "mit"
    assert metadata["language"] == ["zh", "en"]
    assert metadata["base_model"] == "LLAMA"
    manifest = json.loads((data / "manifest.json").read_text())
    assert len(manifest["categories"]) > 2
    for name, counts in manifest["categories"].items():
        assert f"| {name} | {counts['documents']:,} | {counts['tokens_out']:,} |" in text
    assert f"in {len(parts)} parts" in text
    for shown in (
        "| loss, step 1 | 9.5 |",
        "| loss, step 3 | 6.5 |",
        "| validation loss, step 2 | 7.125 |",
        "| loss, step 3, poems | 6.25 |",
        "| step 1 | mmlu | 100 | 0.25 |",
        "| step 3 | mmlu | 100 | 0.5 |",
        "| tokens seen | 300 |",
        "| of them in the loss | 270 |",
        "| `--lr` | 0.0001 |",
        "| processes | 8 (cuda:0) |",
    ):
        assert shown in text, shown
    assert "lora_alpha" not in text  # there was no adapter
    assert "1 lines that are no steps" in capsys.readouterr().out
    assert not re.search(r"(?<![\w/:])/(tmp|data|home|root)\b", text)
    assert str(tmp_path) not in text + (tmp_path / "out" / "zh" / "export.json").read_text()


def test_what_is_not_recorded_is_called_so(random_model_directory, tmp_path):
    text = card_of(random_model_directory, tmp_path / "bare")
    assert "| base model | not recorded |" in text
    assert "| training | not recorded |" in text
    assert "Licence: not recorded" in text
    assert "## Training" not in text
    assert "## Tokenizer" not in text
    metadata = ModelCard(text).data.to_dict()
    assert "license" not in metadata
    assert "base_model" not in metadata
    (tmp_path / "run" / "save").mkdir(parents=True)
    (tmp_path / "run" / "save" / "modelling").symlink_to(random_model_directory)
    text = card_of(tmp_path / "run" / "save" / "modelling", tmp_path / "linked")
    assert "| training | not recorded |" in text


def test_records_elsewhere_are_found_where_they_are_named(random_model_directory, tmp_path):
    save = write_run(random_model_directory, tmp_path / "work")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "work" / "configs").rename(moved / "configs")
    (tmp_path / "work" / "logs").rename(moved / "logs")
    save.rename(tmp_path / "copied")
    without = card_of(tmp_path / "copied", tmp_path / "without")
    assert "Options and losses: not recorded" in without
    results = {
        "results": {"mmlu": {"alias": "mmlu", "acc,none": 0.5306, "acc_stderr,none": 0.01}},
        "n-shot": {"mmlu": 5},
    }
    (moved / "results_2026.json").write_text(json.dumps(results))
    text = card_of(tmp_path / "copied", tmp_path / "with", "--records", moved)
    assert "| `--lr` | 0.0001 |" in text
    assert "| mmlu | 5 | acc | none | 0.5306 |" in text


def test_hostile_names_stay_text(random_model_directory, tmp_path):
    base = 'x"\n---\n# pwned: | <b>'
    with pytest.raises(SystemExit):
        card_of(random_model_directory, tmp_path / "refused", "--license", base)
    name = 'a"b: [c] | <i>`d`'
    text = card_of(random_model_directory, tmp_path / "ok", "--license", name, "--base_model", name)
    assert ModelCard(text).data.to_dict()["license"] == name
    table = text.partition("# ok")[2].partition("## Use")[0]
    assert {line.count("|") - line.count("\\|") for line in table.splitlines() if line.startswith("|")} == {3}
    assert "<i>" not in table


def test_the_code_of_the_card_runs(random_model_directory, tmp_path):
    text = card_of(random_model_directory, tmp_path / "zh")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_licences_and_their_name_come_from_the_base(random_model_directory, tmp_path):
    base = tmp_path / "hidden" / "LLAMA"
    base.mkdir(parents=True)
    (base / "LICENSE").write_text("the licence")
    (base / "README.md").write_text("---\nlicense: llama3\n---\nA model")
    save = write_run(random_model_directory, tmp_path / "work", pretrained=str(base))
    text = card_of(save, tmp_path / "out")
    assert ModelCard(text).data.to_dict()["license"] == "llama3"
    assert "llama3, as the card of the base model LLAMA says" in text
    assert (tmp_path / "out" / "LICENSE").read_text() == "the licence"


def test_a_damaged_manifest_is_named_and_left_out(random_model_directory, tmp_path, capsys):
    save = write_run(random_model_directory, tmp_path / "work", dataset=[str(tmp_path / "work/data/arrow/part-00000")])
    (tmp_path / "work" / "data").mkdir()
    damaged = {"manifest_version": 1, "identity": {}, "parts": []}
    (tmp_path / "work" / "data" / "manifest.json").write_text(json.dumps(damaged))
    text = card_of(save, tmp_path / "out")
    assert "Data by category: not recorded" in text
    assert "the model card does without it" in capsys.readouterr().out


def test_the_command_runs_by_its_path(project_root, random_model_directory, tmp_path):
    done = run_script(
        project_root,
        "colossal_llama/export/export_model.py",
        *("--model_path", random_model_directory, "--output_dir", tmp_path / "out", "--model_card"),
    )
    assert done.returncode == 0, done.stderr
    assert f"complete model in {tmp_path / 'out'}" in done.stdout
    assert "writing weights" in done.stderr


def test_the_card_names_the_scripts_of_an_extended_pre_tokenizer(random_model_directory, tmp_path):
    shutil.copytree(random_model_directory, tmp_path / "model")
    rows = json.loads((tmp_path / "model" / "config.json").read_text())["vocab_size"]
    sizes = {"family": "byte-level BPE", "source_vocab_size": rows - 7, "vocab_size": rows, "padded_vocab_size": rows}
    report = tmp_path / "model" / "expansion_report.json"
    report.write_text(json.dumps(sizes | {"extended_pretokenizer": {"scripts": ["Devanagari", "Thai"]}}))
    assert "combining marks with letters of Devanagari, Thai" in card_of(tmp_path / "model", tmp_path / "extended")
    report.write_text(json.dumps(sizes))
    assert "combining marks" not in card_of(tmp_path / "model", tmp_path / "plain")
