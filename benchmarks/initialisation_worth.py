r"""Measures initialisations of new rows: loss per byte before and during continued training.

    python benchmarks/initialisation_worth.py --source_tokenizer llama2 \
        --target_tokenizer expanded --corpus_dir corpus \
        --work_dir /dev/shm --output worth.json --curve worth.png

1. train.py trains a small LLaMA with the source tokenizer on most of the corpus, for minutes.
2. init_model.py adds the rows of the expanded tokenizer; row_variants.py fills them in other ways.
   All are evaluated on held-out documents by category, in nats per byte, which are comparable
   between tokenizers.
3. train.py continues each on text that the model has not seen, the same rows in the same order.

The results are written after each step. On a CPU: `--width 128 --layers 2 --length_tokens 128
--source_steps 400 --continued_steps 50`.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.initialisation_corpus import prepare_both, split_corpus
from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.cli import CollectingArgumentParser, existing_directory, number_in_range
from colossal_llama.utils.console import log_rank_zero, table
from colossal_llama.utils.errors import run_main

_ROOT = Path(__file__).resolve().parents[1]
_CALIBRATION_STEPS = 40
# (input rows, output rows) of the models that are trained, and of those that are only evaluated.
_CONTINUED = (
    ("mean", "mean"),
    ("random", "random"),
    ("random_covariance", "random_covariance"),
    ("norm_matched_mean", "norm_matched_mean"),
    ("average", "average"),
    ("mean", "average"),
)
_ONLY_EVALUATED = (
    ("mean", "random_covariance"),
    ("random_covariance", "mean"),
    ("average", "mean"),
    ("norm_matched_mean", "mean"),
    ("mean", "norm_matched_mean"),
    ("norm_matched_mean", "average"),
    ("mean", "half_mean"),
    ("half_mean", "half_mean"),
    ("first_piece", "first_piece"),
    ("mean", "first_piece"),
)


def main() -> None:
    """Prepares the data, trains the source model, and compares the initialisations."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(dir=arguments.work_dir, prefix="initialisation-worth-") as scratch:
        work_dir = Path(scratch)
        results: dict[str, Any] = {"settings": {name: str(value) for name, value in vars(arguments).items()}}
        held_out, results["corpus"] = split_corpus(
            arguments.corpus_dir, work_dir, arguments.eval_bytes, arguments.documents
        )
        results["prepared"] = prepare_both(
            arguments.source_tokenizer, arguments.target_tokenizer, arguments.length_tokens, work_dir
        )

        from colossal_llama.engine import launch

        launch.launch(seed=0)

        results["device"] = device_name()
        results["source"] = train_source(arguments, work_dir)
        evaluate_source(results, work_dir, held_out)
        record(arguments, results)
        evaluate_variants(arguments, results, work_dir, held_out)
        for pair in _CONTINUED:
            continue_training(arguments, results, work_dir, held_out, pair)
            record(arguments, results)
        launch.leave()
    report(arguments, results)


def parse_arguments() -> Namespace:
    """Parses and checks the command line."""
    parser = CollectingArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source_tokenizer", type=existing_directory, required=True)
    parser.add_argument("--target_tokenizer", type=existing_directory, required=True, help="from init_tokenizer.py")
    parser.add_argument("--corpus_dir", type=existing_directory, required=True, help="pre-training records")
    parser.add_argument(
        "--work_dir", type=existing_directory, help="directory for the models, which are removed in the end"
    )
    parser.add_argument("--output", type=Path, help="JSON file for all figures")
    parser.add_argument("--curve", type=Path, help="a PNG file for the losses of the continued training")
    model = parser.add_argument_group("source model and its training")
    model.add_argument(
        "--width", type=number_in_range(int, minimum=64), default=640, help="hidden size, a multiple of 64"
    )
    model.add_argument("--layers", type=number_in_range(int, minimum=1), default=8)
    model.add_argument("--length_tokens", type=number_in_range(int, minimum=64), default=2048, help="tokens a row")
    model.add_argument(
        "--rows", type=number_in_range(int, minimum=1), default=16, help="rows a step of the source's training"
    )
    model.add_argument("--source_lr", type=number_in_range(float, above=0), default=1e-3)
    model.add_argument(
        "--source_seconds", type=number_in_range(float, above=0), default=90.0, help="seconds of the source's training"
    )
    model.add_argument("--source_steps", type=number_in_range(int, minimum=1), help="instead of --source_seconds")
    more = parser.add_argument_group("continued training and evaluation")
    more.add_argument("--continued_steps", type=number_in_range(int, minimum=1), default=200)
    more.add_argument("--continued_rows", type=number_in_range(int, minimum=1), default=8, help="rows a step")
    more.add_argument("--continued_lr", type=number_in_range(float, above=0), default=3e-4)
    more.add_argument(
        "--eval_bytes", type=number_in_range(int, minimum=1000), default=40_000, help="held-out bytes a category"
    )
    more.add_argument(
        "--documents", type=number_in_range(int, minimum=100), help="documents used of each category (all)"
    )
    arguments = parser.parse_args()
    parser.finish()
    return arguments


# --- Training ---


def train(run_dir: Path, model: Path, data: Path, *options: Any) -> list[dict]:
    """Runs train.py in this process; returns the entries of its metrics."""
    import gc

    import torch

    from colossal_llama.engine.launch import has_gpu
    from colossal_llama.training import train as script
    from colossal_llama.training.command_line import parse_arguments as parse_training
    from colossal_llama.training.metrics import read_metrics

    on_gpu = has_gpu()
    command = ["--pretrained", model, "--dataset", data / "arrow" / "part-00000", "--plugin", "zero2"]
    command += ["--mixed_precision", "bf16" if on_gpu else "fp32", *(["--use_flash_attn"] if on_gpu else [])]
    command += [
        "--save_dir",
        run_dir / "save",
        "--tensorboard_dir",
        run_dir / "logs",
        "--config_file",
        run_dir / "config.json",
    ]
    command += ["--skip_save_each_epoch", "--save_interval", 10**9, "--num_epochs", 1000, *options]
    script.train(parse_training(list(map(str, command)), has_gpu=on_gpu, world_size=1))
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
    return read_metrics(run_dir / "logs")


def train_source(arguments: Namespace, work_dir: Path) -> dict:
    """Trains the source model; `work_dir`/source is its directory."""
    make_random_model(arguments, work_dir / "random")
    common = ["--max_length", arguments.length_tokens, "--micro_batch_size", arguments.rows]
    common += ["--lr", arguments.source_lr]
    steps = arguments.source_steps
    if steps is None:
        entries = train(
            work_dir / "calibration",
            work_dir / "random",
            work_dir / "source-data",
            *common,
            "--max_steps",
            _CALIBRATION_STEPS,
        )
        half = len(entries) // 2
        step_s = (entries[-1]["time_s"] - entries[half]["time_s"]) / (len(entries) - 1 - half)
        steps = max(_CALIBRATION_STEPS, int(arguments.source_seconds / step_s))
    started = time.monotonic()
    entries = train(
        work_dir / "source-run", work_dir / "random", work_dir / "source-data", *common, "--max_steps", steps
    )
    (work_dir / "source-run" / "save" / "modelling").rename(work_dir / "source")
    return {
        "steps": len(entries),
        "tokens": entries[-1]["tokens_seen"],
        "seconds": round(time.monotonic() - started, 1),
        "last_loss": entries[-1]["loss"],
        "tokens_per_s": sorted(entry["tokens_per_s"] for entry in entries)[len(entries) // 2],
    }


def make_random_model(arguments: Namespace, directory: Path) -> None:
    """Saves a random LLaMA with the source tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(arguments.source_tokenizer, trust_remote_code=False)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=arguments.width,
            intermediate_size=arguments.width * 27 // 10 // 64 * 64,
            num_hidden_layers=arguments.layers,
            num_attention_heads=arguments.width // 64,
            max_position_embeddings=max(arguments.length_tokens, 4096),
        )
    )
    log_rank_zero(f"source model: {model.num_parameters():,} parameters")
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def device_name() -> str:
    """Name of the GPU; "CPU" without one."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


# --- Comparison ---


def losses(model: Any, tokenizer: Any, held_out: dict[str, list[str]], label: str) -> dict[str, float]:
    """Computes nats per byte by category, and over all."""
    from colossal_llama.model.expansion.text_loss import loss_per_byte

    by_category = {name: loss_per_byte(model, tokenizer, texts, f"{label}: {name}") for name, texts in held_out.items()}
    nats = sum(loss.loss_per_byte * loss.bytes for loss in by_category.values())
    total = nats / sum(loss.bytes for loss in by_category.values())
    return {**{name: loss.loss_per_byte for name, loss in by_category.items()}, "all": total}


def evaluate_source(results: dict, work_dir: Path, held_out: dict[str, list[str]]) -> None:
    """Adds the source model's losses to the results."""
    from benchmarks.row_variants import load_model
    from colossal_llama.tokenizer.loading import load_tokenizer

    source = work_dir / "source"
    results["source"]["held_out"] = losses(load_model(source), load_tokenizer(source), held_out, "source")


def evaluate_variants(arguments: Namespace, results: dict, work_dir: Path, held_out: dict[str, list[str]]) -> None:
    """Builds the models with new rows, and adds their losses before training to the results.

    Those that are trained further are in `work_dir`/start-….
    """
    from benchmarks.row_variants import MEANS, load_model, set_rows
    from colossal_llama.model.expansion.resize_embeddings import plan_expansion
    from colossal_llama.tokenizer.loading import load_tokenizer

    for method in MEANS:
        initialise(work_dir / "source", arguments.target_tokenizer, method, start_of(work_dir, method))
    plan = plan_expansion(work_dir / "source", arguments.target_tokenizer)
    results["new_rows"], results["old_rows"] = plan.new_tokens, plan.source_vocabulary
    model, tokenizer = load_model(start_of(work_dir, "mean")), load_tokenizer(arguments.target_tokenizer)
    known = [m.weight[: plan.source_vocabulary].detach().cpu().float() for m in both_matrices(model)]
    results["before_training"] = {}
    for pair in (*_CONTINUED, *_ONLY_EVALUATED):
        set_rows(model, plan.source_vocabulary, *rows_of(pair, known, plan))
        results["before_training"][name_of(pair)] = losses(model, tokenizer, held_out, name_of(pair))
        record(arguments, results)
        if pair in _CONTINUED and name_of(pair) not in MEANS:
            shutil.copytree(start_of(work_dir, "mean"), start_of(work_dir, name_of(pair)), ignore=_weights)
            model.save_pretrained(start_of(work_dir, name_of(pair)))
    log_rank_zero(before_training_table(results))


def initialise(source: Path, target_tokenizer: Path, method: str, target: Path) -> None:
    """Gives a model the rows of the target tokenizer, by init_model.py."""
    command = [sys.executable, _ROOT / "colossal_llama" / "model" / "init_model.py", "--init_method", method]
    command += ["--source_model_and_tokenizer_path", source, "--target_tokenizer_path", target_tokenizer]
    command += ["--target_model_path", target]
    subprocess.run(list(map(str, command)), check=True)


def both_matrices(model: Any) -> tuple[Any, Any]:
    """Input and output embedding of a model."""
    return model.get_input_embeddings(), model.get_output_embeddings()


def rows_of(pair: tuple[str, str], known: list, plan: Any) -> list:
    """Computes the new input and output rows; random ones differ between the two."""
    from benchmarks.row_variants import new_rows

    return [new_rows(kind, known[side], plan.constituents, seed=side) for side, kind in enumerate(pair)]


def _weights(directory: str, names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(".safetensors")]


def name_of(pair: tuple[str, str]) -> str:
    """Names a pair: `mean`, or `mean+average` for input and output rows of different kinds."""
    return pair[0] if pair[0] == pair[1] else "+".join(pair)


def start_of(work_dir: Path, name: str) -> Path:
    """Directory of a model to train further."""
    return work_dir / f"start-{name}"


def continue_training(
    arguments: Namespace,
    results: dict,
    work_dir: Path,
    held_out: dict[str, list[str]],
    pair: tuple[str, str],
) -> None:
    """Trains a model further, and adds its losses to the results.

    Losses are by step, in nats per byte, and on held-out text after training.
    """
    from benchmarks.row_variants import load_model
    from colossal_llama.tokenizer.loading import load_tokenizer

    name = name_of(pair)
    run = work_dir / f"run-{name}"
    options = ["--max_length", arguments.length_tokens, "--micro_batch_size", arguments.continued_rows]
    options += ["--lr", arguments.continued_lr, "--max_steps", arguments.continued_steps]
    entries = train(run, start_of(work_dir, name), work_dir / "continued-data", *options)
    tokens_per_byte = results["prepared"]["continued"]["target_tokens"] / results["corpus"]["continued"]["bytes"]
    model = run / "save" / "modelling"
    results.setdefault("continued", {})[name] = {
        "loss_per_byte": [round(entry["loss"] * tokens_per_byte, 5) for entry in entries],
        "tokens_per_step": entries[0]["tokens_seen"],
        "held_out": losses(load_model(model), load_tokenizer(model), held_out, f"{name}, continued"),
    }
    shutil.rmtree(run)


# --- Report ---


def record(arguments: Namespace, results: dict) -> None:
    """Writes the results so far."""
    if arguments.output:
        write_json(arguments.output, results)


def before_training_table(results: dict) -> str:
    """Formats the held-out losses by category before training."""
    rows = [["source model", *results["source"]["held_out"].values()]]
    rows += [[name, *values.values()] for name, values in results["before_training"].items()]
    return table(["new rows (input+output), no training", *results["source"]["held_out"]], rows)


def steps_to_reach(curve: list[float], loss: float) -> int | None:
    """First step at which a smoothed curve is as low as a loss; None if it never is."""
    return next((step for step, value in enumerate(curve, 1) if value <= loss), None)


def smoothed(values: list[float], window: int = 5) -> list[float]:
    """Running mean of the last `window` values."""
    return [sum(values[max(0, end - window) : end]) / min(window, end) for end in range(1, len(values) + 1)]


def report(arguments: Namespace, results: dict) -> None:
    """Prints the tables, plots the curves."""
    curves = {name: smoothed(run["loss_per_byte"]) for name, run in results["continued"].items()}
    marks = [step for step in (10, 25, 50, 100, 200) if step <= arguments.continued_steps]
    results["steps_to_reach_mean"] = {
        name: {step: steps_to_reach(curve, curves["mean"][step - 1]) for step in marks}
        for name, curve in curves.items()
    }
    record(arguments, results)
    print(before_training_table(results))
    rows = [[name, *run["held_out"].values()] for name, run in results["continued"].items()]
    print(table([f"after {arguments.continued_steps} steps", *results["source"]["held_out"]], rows))
    rows = [[name, *reached.values()] for name, reached in results["steps_to_reach_mean"].items()]
    print(table(["steps to the loss of `mean` at step", *map(str, marks)], rows))
    if arguments.curve:
        draw(arguments.curve, curves)


def draw(path: Path, curves: dict[str, list[float]]) -> None:
    """Plots the smoothed losses by step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name, curve in curves.items():
        panel.plot(range(1, len(curve) + 1), curve, label=name)
    panel.set(xlabel="step of continued training", ylabel="loss (nats per byte), mean of 5 steps", xscale="log")
    panel.grid(alpha=0.3)
    panel.legend(title="new rows")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


if __name__ == "__main__":
    run_main(main)
