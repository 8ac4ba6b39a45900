r"""Adds the differences of models to a base, or averages models, without loading any of them.

result = base + w1 * (model1 - base) + w2 * (model2 - base) + … (task arithmetic, arXiv 2212.04089).
The difference of a chat model from its base gives a continued model its chats back (chat vector,
arXiv 2310.04799). Without a base the models are averaged (model soups, arXiv 2203.05482):

    python colossal_llama/model/merge_models.py --base llama --models llama-zh llama-chat \
            --weights 1 1 --output_dir llama-zh-chat

Rows of the embeddings are matched by token, whatever the sizes of the vocabularies.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from colossal_llama.model.merging.arguments import MergeArguments, parse_arguments
from colossal_llama.utils.console import log_rank_zero, table
from colossal_llama.utils.errors import run_main


def main() -> None:
    """Parses the arguments, merges and prints a summary."""
    arguments = parse_arguments()
    os.environ.setdefault("USE_TORCH", "0")  # transformers then loads tokenizers without torch: 180 MB less
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # and does not warn that torch is missing
    merge(arguments)


def merge(arguments: MergeArguments) -> dict[str, Any]:
    """Merges models into a new directory and returns the report."""
    started = time.monotonic()
    from colossal_llama.model.merging.result import plan_merge, say_plan, write_merge

    plan = plan_merge(arguments)
    say_plan(plan)
    output = arguments.models.output_dir
    report = write_merge(plan, output, started)
    print_summary(report, output)
    return report


def print_summary(report: dict[str, Any], directory: Path) -> None:
    """Prints models, rows and differences as tables, and where the result is."""
    base, models = report["base"], report["models"]
    shown = [("base", 1.0, base)] if base else []
    shown += [(model["name"], model["weight"], model) for model in models]
    header = ["model", "weight", "tokens", "rows", "dtype", "moved", "left out"]
    rows = report["rows"]
    log_rank_zero(
        table(
            header,
            [
                [
                    name,
                    float(weight),
                    model["tokens"],
                    model["rows"],
                    model["dtype"],
                    rows["moved"][model["name"]],
                    rows["left_out"][model["name"]],
                ]
                for name, weight, model in shown
            ],
        )
    )
    _print_differences(report)
    _print_rows(report)
    log_rank_zero(
        f"{report['weight_bytes'] / 1e9:.2f} GB of weights in {report['seconds']:.1f} s, peak memory "
        f"{report['peak_memory_bytes'] / 1e9:.2f} GB → {directory}"
    )


def _print_differences(report: dict[str, Any]) -> None:
    differences = report["differences"]
    groups = list(dict.fromkeys(group for of_model in differences.values() for group in of_model))
    rows = [
        [name, *(f"{of_model[group]['relative']:.3%}" for group in groups)] for name, of_model in differences.items()
    ]
    log_rank_zero(table([f"norm of the difference from the {report['differences_from']}, of its norm", *groups], rows))
    for name, of_model in differences.items():
        if not any(values["norm"] for values in of_model.values()) and report["base"]:
            log_rank_zero(f"warning: {name} has the base's weights in all that both have: it adds nothing there")


def _print_rows(report: dict[str, Any]) -> None:
    rows = report["rows"]
    parts = [f"{rows['combined']:,} combined"]
    parts += [f"{count:,} of {name} alone" for name, count in rows["only_in"].items()]
    if rows["mean_without_base"]:
        parts.append(f"{rows['mean_without_base']:,} that the base or a model lacks, the mean of the others")
    log_rank_zero(f"{rows['total']:,} rows: {', '.join(parts)}; {rows['padding']:,} of them padding; {report['dtype']}")
    chat = report["chat_of"]
    added = report["added_tokens"]
    more = (
        f", with {len(added):,} tokens of {chat} added ({', '.join(added[:3])}{' …' if added[3:] else ''})"
        if added
        else ""
    )
    chats = f"chat template of {chat}" if chat else "no chat template"
    log_rank_zero(f"tokenizer of {report['tokenizer_of']}{more}; {chats}")


if __name__ == "__main__":
    run_main(main)
