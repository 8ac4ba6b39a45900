"""Compares `evaluate.py --protocol likelihood` with lm-evaluation-harness, question by question.

    python -m benchmarks.clients.likelihood --model DIR --data_dir DIR --tasks mmlu cmmlu
        --subjects astronomy agronomy … [--limit 50] [--device cpu] --work_dir DIR

The harness runs in an environment of its own (`lm_eval_tasks.py`), on the same files. Both compute
in fp32. The table has the accuracies of both, the number of answers that differ, and the
largest difference of a log-likelihood.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.clients.environment import client_environment
from benchmarks.clients.programs import CLIENTS

_LARGEST_DIFFERENCE = 1e-3
"""In nats: fp32 in another order of batches and with kept keys and values rounds by 1e-5."""


def main() -> int:
    """Runs both programs, prints the table, and returns 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of a model")
    parser.add_argument("--data_dir", type=Path, required=True, help="directory with mmlu/ and cmmlu/")
    parser.add_argument("--tasks", nargs="+", choices=("mmlu", "cmmlu"), default=["mmlu", "cmmlu"], help="tasks")
    parser.add_argument("--subjects", nargs="+", required=True, help="subjects, as the harness names them")
    parser.add_argument("--limit", type=int, default=50, help="first questions of each subject")
    parser.add_argument("--device", default="cpu", help="device of PyTorch")
    parser.add_argument("--work_dir", type=Path, required=True, help="what both write; what is there is used again")
    options = parser.parse_args()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    theirs, ours = _ask_harness(options), _ask_suite(options)
    print(f"lm_eval {theirs['versions']['lm_eval']}, first {options.limit} questions of each subject, fp32")
    return _print_table(theirs["questions"], ours)


def _ask_harness(options: argparse.Namespace) -> dict[str, Any]:
    client = CLIENTS["lm_eval"]
    output = options.work_dir / "harness.json"
    if not output.is_file():
        python = client_environment(client.name, client.requirements, client.unresolved)
        script = Path(__file__).with_name("lm_eval_tasks.py")
        words = ["--model", options.model, "--subjects", *options.subjects, *_shared(options), "--output", output]
        _run(python, script, *words)
    return json.loads(output.read_text())


def _ask_suite(options: argparse.Namespace) -> list[dict[str, Any]]:
    subjects = [f"{name}{suffix}" for name in options.subjects for suffix in ("", "_test")]
    known = [name for name in subjects if any(options.data_dir.glob(f"*/test/{name}.csv"))]
    words = [*_shared(options), "--model_path", options.model, "--subjects", *known, "--protocol", "likelihood"]
    directory = options.work_dir / "suite"
    _run(sys.executable, "-m", "colossal_llama", "evaluate", *words, "--dtype", "fp32", "--output_dir", directory)
    (file,) = directory.glob("*/questions.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _shared(options: argparse.Namespace) -> list[object]:
    words = ["--data_dir", options.data_dir, "--tasks", *options.tasks]
    return [*words, "--limit", options.limit, "--device", options.device]


def _run(*words: object) -> None:
    variables = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run(list(map(str, words)), env=variables, check=True)


def _print_table(theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> int:
    by_place = {(row["task"], row["subject"], row["index"]): row for row in ours}
    subjects = defaultdict(list)
    for row in theirs:
        subjects[row["task"], row["subject"]].append((row, by_place.get((row["task"], row["subject"], row["index"]))))
    print("| task | subject | questions | harness | suite | other answers | largest difference, nats |")
    print("|---|---|---|---|---|---|---|")
    differences = 0
    for (task, subject), pairs in subjects.items():
        found = [(row, own) for row, own in pairs if own is not None]
        others = sum(row["prediction"] != own["prediction"] for row, own in found)
        largest = max(
            (abs(value - own["logits"][key]) for row, own in found for key, value in row["log_likelihoods"].items()),
            default=0.0,
        )
        accuracies = [sum(row["is_right"] for row, _ in pairs), sum(own["correct"] for _, own in found)]
        shares = " | ".join(f"{100 * right / len(pairs):.2f}" for right in accuracies)
        print(f"| {task} | {subject} | {len(pairs)} | {shares} | {others} | {largest:.1e} |")
        differences += others + (accuracies[0] != accuracies[1]) + (largest > _LARGEST_DIFFERENCE)
        differences += len(found) != len(pairs)
    return int(differences > 0)


if __name__ == "__main__":
    sys.exit(main())
