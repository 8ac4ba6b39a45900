"""Prints what the quick start's steps achieved, a few lines each, from the files that they left.

python examples/quickstart_report.py compression REPORT.json   tokens per character before and after
python examples/quickstart_report.py loss RUN_DIR              first and last loss in metrics.jsonl
python examples/quickstart_report.py answers ANSWERS.jsonl     how many are what the example teaches
"""

import json
import sys
from pathlib import Path
from statistics import fmean

INDENT = " " * 4


def main() -> None:
    """Prints the report that the command line names; exit code 2 for another."""
    if len(sys.argv) == 3 and sys.argv[1] == "compression":
        report_compression(Path(sys.argv[2]))
    elif len(sys.argv) == 3 and sys.argv[1] == "loss":
        report_loss(Path(sys.argv[2]))
    elif len(sys.argv) == 3 and sys.argv[1] == "answers":
        report_answers(Path(sys.argv[2]))
    else:
        print(__doc__, file=sys.stderr)
        raise SystemExit(2)


def read_jsonl(path: Path) -> list[dict]:
    """The records of a .jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def report_compression(report: Path) -> None:
    """Prints tokens per character of the tokenizers `before` and `after`, also by language."""
    tokenizers = json.loads(report.read_text(encoding="utf-8"))["tokenizers"]
    for beginning, name in (("zh_", "Chinese"), ("en_", "English"), ("", "all texts")):
        rates = [rate_of(tokenizers[key]["categories"], beginning) for key in ("before", "after")]
        print(f"{INDENT}{name}: {rates[0]:.3f} → {rates[1]:.3f} tokens per character")
    lengths = [tokenizers[key]["total"]["tokens_per_document"] for key in ("before", "after")]
    print(f"{INDENT}average text: {lengths[0]:.1f} → {lengths[1]:.1f} tokens")


def rate_of(categories: dict[str, dict], beginning: str) -> float:
    """Tokens per character over the categories whose name begins so."""
    counts = [count for name, count in categories.items() if name.startswith(beginning)]
    return sum(count["tokens"] for count in counts) / sum(count["characters"] for count in counts)


def report_loss(run: Path) -> None:
    """The loss at the first step and, averaged over the last epoch, at the end."""
    steps = read_jsonl(run / "metrics.jsonl")
    last_epoch = [step["loss"] for step in steps if step["epoch"] == steps[-1]["epoch"]]
    seconds = steps[-1]["time_s"] - steps[0]["time_s"]
    print(
        f"{INDENT}loss {steps[0]['loss']:.3f} → {fmean(last_epoch):.3f} in {len(steps)} steps, "
        f"{steps[-1]['tokens_seen']:,} tokens, {steps[-1]['tokens_seen'] / seconds:,.0f} tokens/s"
    )


def report_answers(answers: Path) -> None:
    """Prints some answers, and the share of exact ones; exit code 1 if it is below one half."""
    records = read_jsonl(answers)
    as_taught = [record["generated"].strip() == record["messages"][-1]["content"] for record in records]
    for record in records[::12]:
        print(
            f"{INDENT}Human:     {record['messages'][-2]['content']}\n{INDENT}Assistant: {record['generated'].strip()}"
        )
    print(f"{INDENT}{sum(as_taught)} of {len(records)} answers are word for word what the example teaches")
    if sum(as_taught) < len(records) / 2:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
