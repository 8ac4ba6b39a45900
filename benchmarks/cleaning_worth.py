r"""Measures what a cleaning is worth: a real model trained on each corpus for the same FLOPs.

    python benchmarks/dirty_corpus.py --corpus_dir texts/train --output_dir dirty --copies 10
    colossal-llama clean --data_input_dirs dirty/documents --output_dir cleaned
    python benchmarks/cleaning_worth.py --source_model SmolLM2-135M --held_dir texts/held \
        --corpora dirty=dirty/documents cleaned=cleaned/documents --work_dir work --train_s 60

Every corpus is prepared with the tokenizer of the model, train.py trains the model on each for the
same number of steps of full rows, and evaluate.py measures nats per byte of the same held-out
documents. The steps are those that take --train_s seconds, measured once. A corpus that is smaller
is read more often. A killed call goes on when it is repeated with the same --work_dir; corpora may
be added to it. On a CPU: a tiny model and `--steps 20 --rows 2 --length_tokens 128`.
"""

import sys
from argparse import ArgumentTypeError, Namespace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.real_model import Comparison
from benchmarks.real_model_report import draw_curves
from benchmarks.real_model_runs import UNEXPANDED, Point
from colossal_llama.evaluation.markdown_table import markdown_table
from colossal_llama.utils.atomic_io import write_json, write_text
from colossal_llama.utils.cli import (
    CollectingArgumentParser,
    creatable_directory,
    existing_directory,
    number_in_range,
    usable_name,
)
from colossal_llama.utils.errors import run_main


def main() -> None:
    """Prepares and trains on each corpus, evaluates all models, and writes the figures."""
    arguments = parse_arguments()
    comparisons = {name: comparison_of(arguments, name, path) for name, path in arguments.corpora}
    steps = arguments.steps or calibrated_steps(arguments, next(iter(comparisons.values())))
    results: dict[str, Any] = {
        "settings": {name: str(value) for name, value in vars(arguments).items()},
        "steps": steps,
        "corpora": {name: trained(comparison, steps) for name, comparison in comparisons.items()},
    }
    models = {name: each.work / "models" / UNEXPANDED.name for name, each in comparisons.items()}
    evaluation = next(iter(comparisons.values())).evaluate({**models, "before": arguments.source_model})
    results["losses"] = evaluation["losses"]
    write_json(arguments.output, results)
    write_text(arguments.output.with_suffix(".md"), report(results) + "\n")
    curves = {name: [Point(**point) for point in run["curve"]] for name, run in results["corpora"].items()}
    draw_curves(curves, list(results["losses"]["before"]), next(iter(curves)), arguments.curve)
    print(report(results))


def parse_arguments() -> Namespace:
    """Parses and checks the command line."""
    parser = CollectingArgumentParser(description=__doc__.splitlines()[0])
    positive, rate = number_in_range(int, minimum=1), number_in_range(float, above=0)
    parser.add_argument("--source_model", type=existing_directory, required=True, help="with its tokenizer")
    parser.add_argument(
        "--corpora", type=_named_directory, nargs="+", required=True, metavar="NAME=DIR", help="the first is the base"
    )
    parser.add_argument("--held_dir", type=existing_directory, required=True, help="records that no corpus has")
    parser.add_argument("--work_dir", type=creatable_directory, required=True, help="is kept: a second call goes on")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--train_s", type=rate, default=60.0, help="seconds of the steps on each corpus")
    length.add_argument("--steps", type=positive, help="on each corpus, instead of --train_s")
    parser.add_argument("--lr", type=rate, default=6e-4)
    parser.add_argument("--rows", type=positive, default=16, help="rows a step")
    parser.add_argument("--length_tokens", type=number_in_range(int, minimum=12), default=2048, help="tokens a row")
    parser.add_argument("--validations", type=positive, default=6, help="in a run: points of its curve")
    parser.add_argument("--eval_bytes", type=positive, default=120_000, help="held-out bytes a category")
    parser.add_argument("--output", type=Path, default=Path("cleaning_worth.json"), help="a table in a .md next to it")
    parser.add_argument("--curve", type=Path, default=Path("cleaning_worth.png"), help="losses by FLOPs")
    arguments = parser.parse_args()
    names = [name for name, _ in arguments.corpora]
    if twice := {name for name in names if names.count(name) > 1}:
        parser.problem(f"--corpora names {', '.join(sorted(twice))} twice")
    if "before" in names:
        parser.problem("--corpora: before is the model that is trained: give another name")
    parser.finish()
    return arguments


def _named_directory(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals:
        raise ArgumentTypeError(f"{text} has no =: give NAME=DIR")
    return usable_name(name), existing_directory(path).resolve()


def comparison_of(arguments: Namespace, name: str, corpus: Path) -> Comparison:
    """Stages of benchmarks/real_model.py on a corpus, in a directory of its own."""
    work = arguments.work_dir / name
    texts = work / "texts"
    texts.mkdir(parents=True, exist_ok=True)
    for link, target in ((texts / "train", corpus), (texts / "held", arguments.held_dir.resolve())):
        if not link.is_symlink():
            link.symlink_to(target)
    settings: dict[str, Any] = {
        "source_model": arguments.source_model,
        "lr": arguments.lr,
        "rows": arguments.rows,
        "length_tokens": arguments.length_tokens,
        "validations": arguments.validations,
        "eval_bytes": arguments.eval_bytes,
        "train_s": arguments.train_s,
    }
    settings |= {"work_dir": work, "texts_dir": texts, "output": work / "run.json", "curve": work / "run.png"}
    settings |= {"runs": [], "untrained": [], "time_limit_s": None, "questions": None, "max_new_tokens": 1}
    write_json(work / "settings.json", {"corpus": str(corpus)})
    return Comparison(Namespace(**settings))


def calibrated_steps(arguments: Namespace, comparison: Comparison) -> int:
    """Number of steps that take --train_s."""
    comparison.inputs.data(UNEXPANDED.vocabulary)
    step_s = comparison.stages.do("calibration", comparison.calibrate)["step_s"]
    return max(1, round(arguments.train_s / step_s))


def trained(comparison: Comparison, steps: int) -> dict[str, Any]:
    """Trains on a corpus; returns its size, what was read of it, and the curve."""
    texts, data = comparison.inputs.texts(), comparison.inputs.data(UNEXPANDED.vocabulary)
    comparison.arguments.train_s = None
    comparison.arguments.epochs = steps * comparison.arguments.rows / data["training_rows"]
    run = comparison.stages.do(f"run-{UNEXPANDED.name}", lambda: comparison.train(UNEXPANDED))
    epochs = comparison.arguments.epochs
    return {"train_bytes": texts["train_bytes"], "train_tokens": data["tokens"], "epochs": epochs, **run}


def report(results: dict[str, Any]) -> str:
    """Formats the sizes, and the losses against those of the first corpus."""
    runs, losses = results["corpora"], results["losses"]
    sizes = [
        [
            name,
            f"{run['train_bytes'] / 1e6:.4g} MB",
            f"{run['epochs']:.2f}",
            f"{run['steps']:,}",
            f"{run['flops']:.3g}",
            f"{run['tokens_per_s']:,.0f}",
        ]
        for name, run in runs.items()
    ]
    base = losses[next(iter(runs))]
    rows = [
        [name, *(f"{of_model[each]:.4f} ({(of_model[each] / base[each] - 1) * 100:+.1f} %)" for each in base)]
        for name, of_model in losses.items()
    ]
    return "\n\n".join(
        (
            markdown_table(["corpus", "text", "epochs", "steps", "FLOPs", "tokens/s"], sizes),
            markdown_table([f"nats per byte (against {next(iter(runs))})", *base], rows),
        )
    )


if __name__ == "__main__":
    run_main(main)
