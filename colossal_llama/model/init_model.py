"""Initialises the embedding rows of an expanded tokenizer's new tokens by means of existing rows.

A new row is the mean of the rows of the pieces into which the source tokenizer splits the token.
Weight files are rewritten one by one, tensor by tensor: the model is never loaded, and no GPU is
needed. `--init_method distilled` then loads the source model and trains the new rows on texts, so
that the model behind a new token behaves as behind its pieces (Token Distillation, arXiv
2505.20133).
"""

import os
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from colossal_llama.model.expansion.distillation.arguments import (
    DISTILLED,
    DistillationArguments,
    distillation_problems,
)
from colossal_llama.readers.fields import FieldOptions, TextFields, field_problems
from colossal_llama.readers.formats import DESCRIPTION
from colossal_llama.readers.input_paths import GatherPaths, input_paths
from colossal_llama.utils.arguments import add_options, from_namespace, option_values
from colossal_llama.utils.cli import (
    CollectingArgumentParser,
    creatable_directory,
    number_in_range,
)
from colossal_llama.utils.console import log_rank_zero, table
from colossal_llama.utils.environment import peak_memory_bytes
from colossal_llama.utils.errors import run_main
from colossal_llama.utils.hub.files import Needed
from colossal_llama.utils.hub.names import NAME_FORMS, directory_or_name

_MODEL_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*")


def main() -> None:
    """Plans, writes and reports the initialisation, and evaluates it under --eval_file."""
    arguments = parse_arguments()
    started = time.monotonic()
    if arguments.eval_file is None and arguments.init_method != DISTILLED:
        os.environ.setdefault("USE_TORCH", "0")  # transformers then loads tokenizers without torch: 180 MB less
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # and does not warn that torch is missing
    from colossal_llama.model.expansion.resize_embeddings import create_model, plan_expansion
    from colossal_llama.utils.atomic_io import write_json
    from colossal_llama.utils.hub.fetch import option_directory, origin_record

    # Read first, so that an error in it is reported before the weights are written.
    documents = _evaluation_documents(arguments)
    source = option_directory(
        "--source_model_and_tokenizer_path", arguments.source_model_and_tokenizer_path, Needed.MODEL
    )
    target_tokenizer = option_directory("--target_tokenizer_path", arguments.target_tokenizer_path, Needed.TOKENIZER)
    plan = plan_expansion(source, target_tokenizer)
    distilled = rows = means = None
    if arguments.init_method == DISTILLED:
        from colossal_llama.model.expansion.distillation.distil import distil

        distilled = distil(
            plan,
            from_namespace(DistillationArguments, arguments),
            _field_options(arguments),
            arguments.target_model_path,
        )
        rows, means = distilled.rows, distilled.means
    report = create_model(plan, arguments.init_method, arguments.target_model_path, rows)
    report |= ({"distillation": distilled.record} if distilled else {}) | origin_record(source)
    report["seconds"] = round(time.monotonic() - started, 2)
    report["peak_memory_bytes"] = peak_memory_bytes()
    write_json(arguments.target_model_path / "init_report.json", report)
    print_summary(report, arguments.target_model_path)
    if distilled:
        distilled.state.unlink(missing_ok=True)
    if documents:
        report["evaluation"] = evaluate(plan, arguments.target_model_path, documents, means)
        write_json(arguments.target_model_path / "init_report.json", report)


def parse_arguments() -> Namespace:
    """Parses and checks the command line; imports nothing heavy."""
    parser = CollectingArgumentParser(description=__doc__.splitlines()[0])
    files = parser.add_argument_group("directories")
    files.add_argument(
        "--source_model_and_tokenizer_path",
        type=directory_or_name,
        required=True,
        metavar="DIR",
        help="source model and its tokenizer: config.json, safetensors or .bin files (single or sharded), tokenizer; "
        f"{NAME_FORMS} (safetensors alone)",
    )
    files.add_argument(
        "--target_tokenizer_path",
        type=directory_or_name,
        required=True,
        metavar="DIR",
        help=f"expanded tokenizer (init_tokenizer.py); {NAME_FORMS}",
    )
    files.add_argument(
        "--target_model_path",
        type=creatable_directory,
        required=True,
        metavar="DIR",
        help="output: a new directory, or the target tokenizer's own, which then holds model and tokenizer",
    )
    method = parser.add_argument_group("initialisation")
    method.add_argument(
        "--init_method",
        choices=("mean", "norm_matched_mean", DISTILLED),
        default="mean",
        help="norm_matched_mean rescales each mean to the average norm of its constituents: averaging shortens "
        "vectors; distilled trains the new rows, from their means, to do what their pieces do in the source model",
    )
    distillation = parser.add_argument_group(
        "--init_method distilled (loads the whole model, on a GPU if there is one)",
        "A run that is killed goes on when it is started again with the same arguments. Its state is a hidden file "
        "at --target_model_path, next to a new directory or in the tokenizer's own.",
    )
    add_options(distillation, DistillationArguments)
    evaluation = parser.add_argument_group("evaluation (loads the whole model, on a GPU if there is one)")
    evaluation.add_argument(
        "--eval_file",
        nargs="+",
        action=GatherPaths,
        type=input_paths,
        metavar="PATH",
        help="files and directories of texts, also several by commas: reports the loss per byte on them of the source "
        f"model, of the new model, and of two random initialisations of its new rows; {DESCRIPTION}",
    )
    evaluation.add_argument(
        "--eval_bytes",
        type=number_in_range(int, minimum=1),
        default=100_000,
        help="evaluate on this many bytes from the beginning of the texts",
    )
    fields = parser.add_argument_group("columns of --distill_data and --eval_file")
    add_options(fields, TextFields)
    arguments = parser.parse_args()
    _check_target(parser, arguments)
    for problem in (*distillation_problems(arguments), *field_problems(arguments)):
        parser.problem(problem)
    parser.finish()
    return arguments


def _check_target(parser: CollectingArgumentParser, arguments: Namespace) -> None:
    target, tokenizer = arguments.target_model_path, arguments.target_tokenizer_path
    if target is None or tokenizer is None or not target.exists():
        return  # argparse has reported the missing argument
    if not isinstance(tokenizer, Path) or target.resolve() != tokenizer.resolve():
        parser.problem(
            f"--target_model_path {target} exists already: give a new directory, or the target tokenizer's own"
        )
        return
    present = sorted(path.name for pattern in _MODEL_FILES for path in target.glob(pattern))
    if present:
        parser.problem(
            f"--target_model_path {target} already holds a model, or files of an interrupted "
            f"run ({', '.join(present)}): give another directory, or remove these files"
        )


def _evaluation_documents(arguments: Namespace) -> list[str]:
    if arguments.eval_file is None:
        return []
    from colossal_llama.model.expansion.text_loss import read_evaluation_text

    return read_evaluation_text(arguments.eval_file, arguments.eval_bytes, _field_options(arguments))


def _field_options(arguments: Namespace) -> FieldOptions:
    return FieldOptions(**option_values(from_namespace(TextFields, arguments)), category_from="directory")


def print_summary(report: dict[str, Any], directory: Path) -> None:
    """Prints the report in sentences."""
    rows = report["rows"]
    parts = [f"{rows['kept']:,} kept", f"{rows['new']:,} new"]
    if rows["padding"]:
        parts.append(f"{rows['padding']:,} of padding (the mean of all rows)")
    log_rank_zero(f"{rows['total']:,} rows: {', '.join(parts)}; {', '.join(report['matrices'])}; {report['dtype']}")
    if rows["dropped_source_padding"]:
        log_rank_zero(
            f"{rows['dropped_source_padding']:,} padding rows of the source (beyond its tokenizer) are dropped"
        )
    if rows["new_without_constituents"]:
        log_rank_zero(
            f"{rows['new_without_constituents']:,} new rows have no source pieces and are the mean of all rows"
        )
    log_rank_zero(
        f"new rows: {report['init_method']} of {report['constituents_per_new_row']:.2f} source rows on average"
    )
    if "distillation" in report:
        print_distillation(report["distillation"])
    norms = report["average_row_norm"]
    log_rank_zero(
        table(["average norm", "source rows", "new rows"], [[name, *values.values()] for name, values in norms.items()])
    )
    for correction in report["config_corrections"]:
        log_rank_zero(f"corrected {correction}")
    log_rank_zero(
        f"{report['weight_bytes'] / 1e9:.2f} GB of weights in {report['seconds']:.1f} s, peak memory "
        f"{report['peak_memory_bytes'] / 1e9:.2f} GB → {directory}"
    )


def print_distillation(record: dict[str, Any]) -> None:
    """Prints what a distillation was trained on, and which rows it has hardly seen."""
    seen, first, last = record["rows_seen"], record["losses"][0], record["losses"][-1]
    log_rank_zero(
        f"distilled on {record['tokens']:,} tokens ({record['passes']:.2f} passes over {record['windows']:,} windows) "
        f"in {record['seconds']:,.0f} s: "
        + ", ".join(f"{name.replace('_', ' ')} {first[name]:.3f} → {last[name]:.3f}" for name in first)
    )
    log_rank_zero(
        f"of {seen['rows']:,} new rows {seen['never']:,} never occurred and stay means; "
        f"{seen['fewer_than_10']:,} occurred fewer than 10 times, {seen['fewer_than_100']:,} fewer than 100"
    )


def evaluate(plan: Any, directory: Path, documents: list[str], means: Any = None) -> dict[str, Any]:
    """Prints the losses per byte of source, new and randomly initialised models; returns them.

    With `means`, which a distillation began with, also that of the model with these.
    """
    from dataclasses import asdict

    from colossal_llama.model.expansion.text_loss import compare_initialisations

    losses = compare_initialisations(plan.source, directory, documents, plan.source_vocabulary, means)
    log_rank_zero(f"loss on {next(iter(losses.values())).bytes:,} bytes of text:")
    rows = [[name.replace("_", " "), loss.loss_per_byte, loss.tokens] for name, loss in losses.items()]
    log_rank_zero(table(["rows", "nats per byte", "tokens"], rows))
    return {name: asdict(loss) for name, loss in losses.items()}


if __name__ == "__main__":
    run_main(main)
