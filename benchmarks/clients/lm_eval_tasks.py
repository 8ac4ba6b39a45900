"""Evaluates a model by lm-evaluation-harness on MMLU's and CMMLU's files, without a network.

    python lm_eval_tasks.py --model DIR --data_dir DIR --tasks mmlu cmmlu --subjects astronomy …
        [--limit 20] [--shots 5] [--max_length 2048] [--device cpu] [--dtype float32] --output OUT

The tasks are the harness' own `mmlu` and `cmmlu`: its wording, its letters, the first rows of dev.
Only their data are local files. Imports nothing of this project.
"""

import argparse
import csv
import json
import os
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}

import lm_eval
import yaml
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

_LETTERS = "ABCD"
_TEMPLATES = Path(lm_eval.__file__).parent / "tasks"
_DIRECTORIES = {"mmlu": _TEMPLATES / "mmlu" / "default", "cmmlu": _TEMPLATES / "cmmlu"}


def main() -> None:
    """Writes versions, times and the four log-likelihoods of each question, as one JSON object."""
    options = _options()
    started = time.perf_counter()
    limits = {"max_length": options.max_length, "batch_size": options.batch_size}
    harness = HFLM(pretrained=str(options.model), dtype=options.dtype, device=options.device, **limits)
    opened = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        files = _write_tasks(options, Path(directory))
        tasks = TaskManager(include_path=directory, include_defaults=False)
        names: list[Any] = list(files)
        result = simple_evaluate(
            harness, tasks=names, task_manager=tasks, num_fewshot=options.shots, limit=options.limit, bootstrap_iters=0
        )
    assert result is not None, "there is one process"
    questions = [_question(files[name], sample) for name in names for sample in result["samples"][name]]
    answer = {
        "versions": {name: version(name) for name in ("lm_eval", "transformers", "torch")},
        "open_s": opened - started,
        "evaluate_s": time.perf_counter() - opened,
        "accuracies": {"/".join(files[name]): result["results"][name]["acc,none"] for name in names},
        "questions": questions,
    }
    options.output.write_text(json.dumps(answer), encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of a model")
    parser.add_argument("--data_dir", type=Path, required=True, help="directory with mmlu/ and cmmlu/")
    parser.add_argument("--tasks", nargs="+", choices=_DIRECTORIES, default=list(_DIRECTORIES), help="tasks")
    parser.add_argument("--subjects", nargs="+", help="subjects' names, as the harness has them (default: all)")
    parser.add_argument("--limit", type=int, help="first questions of each subject (default: all)")
    parser.add_argument("--shots", type=int, default=5, help="examples before each question")
    parser.add_argument("--max_length", type=int, default=2048, help="tokens of a prompt")
    parser.add_argument("--device", default="cpu", help="device of PyTorch")
    parser.add_argument("--dtype", default="float32", help="of the weights, as PyTorch names it")
    parser.add_argument("--batch_size", default=1, help="prompts in a batch, or auto")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


def _write_tasks(options: argparse.Namespace, directory: Path) -> dict[str, tuple[str, str]]:
    """Writes a task a subject, and returns the task's and file's names of ours by the harness'."""
    files = {}
    for task in options.tasks:
        template = yaml.safe_load((_DIRECTORIES[task] / "_default_template_yaml").read_text(encoding="utf-8"))
        for path in sorted(_DIRECTORIES[task].glob(f"{task}_*.yaml")):
            own = yaml.safe_load(path.read_text(encoding="utf-8"))
            subject = own["dataset_name"]
            suffixes = {split: f"_{split}" if task == "mmlu" else "" for split in ("dev", "test")}
            data = {s: options.data_dir / task / s / f"{subject}{suffixes[s]}.csv" for s in suffixes}
            if subject not in (options.subjects or [subject]) or not data["test"].is_file():
                continue
            for split, file in data.items():
                lines = [json.dumps(row) + "\n" for row in _rows(file, task)]
                Path(directory, f"{own['task']}.{split}.jsonl").write_text("".join(lines), encoding="utf-8")
            written = {split: str(Path(directory, f"{own['task']}.{split}.jsonl")) for split in data}
            local = {"dataset_path": "json", "dataset_name": None, "tag": None}
            local["dataset_kwargs"] = {"data_files": written, "cache_dir": str(directory)}
            merged = {**template, **{key: own[key] for key in own if key != "include"}, **local}
            Path(directory, f"{own['task']}.yaml").write_text(json.dumps(merged), encoding="utf-8")  # JSON is YAML
            files[own["task"]] = (task, data["test"].stem)
    return files


def _rows(path: Path, task: str) -> list[dict[str, Any]]:
    """The questions of a csv, with the columns that the harness' template of the task names."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    if task == "cmmlu":
        return [dict(zip(("Question", *_LETTERS, "Answer"), row[-6:], strict=True)) for row in rows[1:]]
    if rows[0][0] == "question":
        rows = rows[1:]
    answers = [int(row[5]) if row[5].isdigit() else _LETTERS.index(row[5]) for row in rows]
    return [{"question": row[0], "choices": row[1:5], "answer": answers[i]} for i, row in enumerate(rows)]


def _question(file: tuple[str, str], sample: dict) -> dict[str, Any]:
    found = [response[0] for response in sample["filtered_resps"]]
    return {
        "task": file[0],
        "subject": file[1],
        "index": sample["doc_id"],
        "log_likelihoods": dict(zip(_LETTERS, found, strict=True)),
        "prediction": _LETTERS[max(range(len(found)), key=found.__getitem__)],
        "label": _LETTERS[sample["target"]] if isinstance(sample["target"], int) else sample["target"],
        "is_right": bool(sample["acc"]),
    }


if __name__ == "__main__":
    main()
