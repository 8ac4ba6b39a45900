"""Benchmarks and examples name what the package has; the examples in their docstrings hold."""

import ast
import importlib
import importlib.util
import json
import random
import string
import subprocess
import sys
from pathlib import Path

import pytest

from colossal_llama.engine.launch import prepare_engine
from tests.support.project_tree import project_files

PROJECT_ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [file for folder in ("benchmarks", "examples") for file in project_files(PROJECT_ROOT / folder)]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_every_imported_name_exists(script):
    """Most of these scripts run on GPUs only: a stale import would be noticed there."""
    prepare_engine()
    nodes = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.ImportFrom)]
    for node in (node for node in nodes if (node.module or "").startswith("colossal_llama")):
        module = importlib.import_module(node.module)
        for name in (alias.name for alias in node.names):
            submodule = f"{node.module}.{name}"
            assert hasattr(module, name) or importlib.util.find_spec(submodule), f"{script}:{node.lineno}: {name}"


@pytest.mark.parametrize(
    "script", ["allocated_memory", "dirty_corpus", "dirty_texts", "real_model_runs", "real_model_inputs"]
)
def test_the_arithmetic_of_figures_is_that_of_its_examples(project_root, script):
    """Peaks without what former runs left; steps of equal FLOPs, and where curves cross."""
    command = [sys.executable, "-m", "doctest", f"benchmarks/{script}.py"]
    done = subprocess.run(command, cwd=project_root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def write_made_up_corpus(directory: Path, documents: int) -> None:
    """Prose of made-up words, half of it without spaces: no duplicates, nothing repeated."""
    draw = random.Random(0)
    words = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(3, 9))) for _ in range(3000)]
    characters = [chr(code) for code in range(0x4E00, 0x5200)]
    for category, units, space, end in (("en", words, " ", ".\n"), ("zh", characters, "", "。\n")):
        (directory / category).mkdir(parents=True)
        records = [
            {
                "source": "",
                "target": "".join(space.join(draw.choices(units, k=draw.randint(12, 24))) + end for _ in range(25)),
                "category": category,
            }
            for _ in range(documents)
        ]
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        (directory / category / "documents.jsonl").write_text("".join(lines), encoding="utf-8")


def write_made_up_questions(directory: Path, questions: int) -> None:
    """Questions of GSM8K's form, each of 24 made-up words."""
    draw = random.Random(1)
    directory.mkdir(parents=True)
    for split in ("train", "test"):
        wordings = [" ".join("".join(draw.choices("abcdefgh", k=6)) for _ in range(24)) for _ in range(questions)]
        lines = [json.dumps({"question": f"{text}?", "answer": "#### 1"}) + "\n" for text in wordings]
        (directory / f"{split}.jsonl").write_text("".join(lines))


def test_a_dirtied_corpus_holds_what_its_record_says_and_a_cleaning_finds_it(project_root, tmp_path):
    """The benchmark's own figures: what is planted is where the record says, and is found there."""
    write_made_up_corpus(tmp_path / "corpus", 80)
    write_made_up_questions(tmp_path / "eval" / "gsm8k", 30)

    def run(script: str, *options: object) -> str:
        command = [sys.executable, *script.split(), *map(str, options)]
        return subprocess.run(command, cwd=project_root, capture_output=True, text=True, check=True).stdout

    dirty, cleaned = tmp_path / "dirty", tmp_path / "cleaned"
    inputs = ["--corpus_dir", tmp_path / "corpus", "--eval_dir", tmp_path / "eval"]
    run("benchmarks/dirty_corpus.py", *inputs, "--output_dir", dirty, "--each", 5)
    planted = [json.loads(line) for line in (dirty / "planted.jsonl").open(encoding="utf-8")]
    files = {entry["file"] for entry in planted}
    texts = {
        (name, number): json.loads(line)["target"]
        for name in files
        for number, line in enumerate((dirty / "documents" / name).open(encoding="utf-8"), 1)
    }
    assert all(entry["value"] in texts[entry["file"], entry["line"]] for entry in planted if "value" in entry)
    assert all(entry["jaccard"] >= 0.8 for entry in planted if "jaccard" in entry and entry["expected"] == "drop")
    options = ["--decontaminate", tmp_path / "eval"]
    has_blocklists = importlib.util.find_spec("ahocorasick_rs") is not None
    options += ["--blocklist", f"made_up={dirty / 'blocklist.txt'}"] if has_blocklists else []
    run("-m colossal_llama clean", "--data_input_dirs", dirty / "documents", "--output_dir", cleaned, *options)
    figures = tmp_path / "quality.json"
    run("benchmarks/cleaning_quality.py", "--dirty_dir", dirty, "--cleaned_dir", cleaned, "--output", figures)
    found = json.loads(figures.read_bytes())
    unsure = {"near_duplicate_0.8", "near_duplicate_0.85", "other_language", "other_script"}
    unsure |= set() if has_blocklists else {"blocked_words"}
    recalls = {kind: score["recall"] for kind, score in found["kinds"].items() if kind not in unsure}
    assert {kind: recall for kind, recall in recalls.items() if recall not in (None, 1.0)} == {}
    assert {kind: score["precision"] for kind, score in found["kinds"].items() if score["false"]} == {}
    assert found["not_planted"] == {}
