r"""Compares ways to continue a real LLaMA's training on a language: expanded or not, equal FLOPs.

    python benchmarks/real_model.py --source_model SmolLM2-135M --corpus_dir corpus --scripts Han \
        --work_dir work --epochs 1.5 --output real_model.json --curve real_model.png

1. Documents of each category are held out. learn_pieces.py learns pieces on the others,
   init_tokenizer.py adds them, init_model.py makes the models to begin with.
2. train.py trains the source model for --epochs, and the others for the same FLOPs, those of a
   distillation included: they read more text, since it has fewer tokens.
3. evaluate.py measures all models on the same held-out passages, and asks them to go on with
   prompts.

The results are written after each stage. A call that --time_limit_s ends, or that is killed, goes
on when it is repeated with the same --work_dir. More --runs may be named then.
"""

import json
import shutil
import statistics
import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.real_model_inputs import Inputs
from benchmarks.real_model_report import comparisons, draw, report
from benchmarks.real_model_runs import FROZEN_SHARE, RUNS, UNEXPANDED, Point, Run, curve_of, distillation_flops
from benchmarks.real_model_stages import OutOfTime, Stages
from colossal_llama.utils.atomic_io import write_json, write_text
from colossal_llama.utils.cli import (
    CollectingArgumentParser,
    creatable_directory,
    existing_directory,
    existing_file,
    number_in_range,
)
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.errors import UserError, run_main

_PROMPTS = ("The Python standard library", "床前明月光，", "TiDB 是")
_ROWS_FIRST_LR = 1e-2  # the best of 3e-3, 1e-2, 3e-2 for rows alone on SmolLM2-135M
_CALIBRATION_STEPS = 60
_NOT_FIXED = ("runs", "untrained", "time_limit_s", "output", "curve", "questions", "max_new_tokens")


def main() -> None:
    """Makes what the runs need, trains and evaluates them, as far as the time goes."""
    arguments = parse_arguments()
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    fix_settings(arguments)
    comparison = Comparison(arguments)
    try:
        comparison.run()
    except OutOfTime as stage:
        log_rank_zero(f"--time_limit_s ends this call in or before stage {stage}; the same command goes on there")
    results = comparison.record()
    print(report(results))


def parse_arguments() -> Namespace:
    """Parses and checks the command line."""
    parser = CollectingArgumentParser(description=__doc__.splitlines()[0])
    positive, rate = number_in_range(int, minimum=1), number_in_range(float, above=0)
    parser.add_argument("--source_model", type=existing_directory, required=True, help="with its tokenizer")
    texts = parser.add_mutually_exclusive_group(required=True)
    texts.add_argument("--corpus_dir", type=existing_directory, help="pre-training records, to be split")
    texts.add_argument("--texts_dir", type=existing_directory, help="records that are split: train/ and held/")
    parser.add_argument("--work_dir", type=creatable_directory, required=True, help="is kept: a second call goes on")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=["unexpanded", "mean", "mean_x10", "distilled_x10"])
    parser.add_argument(
        "--untrained", nargs="+", choices=RUNS, default=[], help="runs whose beginning is made and evaluated, no more"
    )
    parser.add_argument("--num_pieces", type=positive, default=2500, help="to learn")
    parser.add_argument("--scripts", help="learn pieces of these Unicode scripts only")
    parser.add_argument("--pieces_file", type=existing_file, help="learned pieces, instead of learning them")
    parser.add_argument("--generic_pieces_file", type=existing_file, help="pieces of run `generic`")
    parser.add_argument("--distill_tokens", type=positive, help="of init_model.py (default: 1,000 for each new row)")
    training = parser.add_argument_group("training")
    length = training.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=rate, default=1.5, help="of the unexpanded model; FLOPs of all runs")
    length.add_argument("--train_s", type=rate, help="seconds of the unexpanded model's steps, instead of --epochs")
    training.add_argument("--lr", type=rate, default=6e-4)
    training.add_argument("--rows", type=positive, default=16, help="rows a step")
    training.add_argument("--length_tokens", type=number_in_range(int, minimum=12), default=2048, help="tokens a row")
    training.add_argument("--validations", type=positive, default=12, help="in a run: points of its curve")
    more = parser.add_argument_group("evaluation and records")
    more.add_argument(
        "--eval_bytes",
        type=positive,
        default=120_000,
        help="held-out bytes a category, in passages of a window for every tokenizer: --length_tokens / 3 characters",
    )
    more.add_argument("--questions", type=existing_file, help="prompts in evaluate.py's format (default: three)")
    more.add_argument("--max_new_tokens", type=positive, default=48, help="of an answer")
    more.add_argument("--time_limit_s", type=rate, help="seconds of this call")
    more.add_argument(
        "--output", type=Path, default=Path("real_model.json"), help="all figures; tables in a .md next to it"
    )
    more.add_argument("--curve", type=Path, default=Path("real_model.png"), help="losses by FLOPs")
    arguments = parser.parse_args()
    if "generic" in (*arguments.runs, *arguments.untrained) and not arguments.generic_pieces_file:
        parser.problem("run `generic` needs --generic_pieces_file")
    parser.finish()
    return arguments


def fix_settings(arguments: Namespace) -> None:
    """Records the settings that all calls with a --work_dir share, and refuses others.

    Raises:
        UserError: the directory was begun with other ones.
    """
    path = arguments.work_dir / "settings.json"
    settings = {name: str(value) for name, value in vars(arguments).items() if name not in _NOT_FIXED}
    before = json.loads(path.read_bytes()) if path.is_file() else settings
    if other := [name for name in settings if before.get(name) != settings[name]]:
        changes = ", ".join(f"--{name} {before.get(name)}, now {settings[name]}" for name in other)
        raise UserError(f"{arguments.work_dir} was begun with {changes}: give the same, or another --work_dir")
    write_json(path, settings)


class Comparison:
    """The stages of a comparison, and its results so far."""

    def __init__(self, arguments: Namespace):
        self.arguments, self.work = arguments, arguments.work_dir
        self.stages = Stages(self.work, arguments.time_limit_s, self.record)
        self.inputs = Inputs(arguments, self.stages)
        self.chosen = [RUNS[name] for name in arguments.runs]
        self.begun = [*self.chosen, *(RUNS[name] for name in arguments.untrained)]

    def run(self) -> None:
        """Does all stages.

        Raises:
            OutOfTime: the time of this call is over.
        """
        self.inputs.texts()
        for run in (UNEXPANDED, *self.begun):
            self.inputs.data(run.vocabulary)
            self.inputs.start(run)
        self.budget_flops()
        for run in self.chosen:
            self.stages.do(f"run-{run.name}", lambda run=run: self.train(run))
        models = self.models()
        done = self.stages.result("evaluation")
        self.stages.do("evaluation", lambda: self.evaluate(models), again=not done or done["models"] != list(models))

    # --- Training ---

    def budget_flops(self) -> float:
        """FLOPs of every run."""
        price = self.inputs.price(UNEXPANDED)
        if self.arguments.train_s is None:
            rows = self.inputs.data(UNEXPANDED.vocabulary)["training_rows"]
            return price.flops(max(1, round(self.arguments.epochs * rows / self.arguments.rows)))
        step_s = self.stages.do("calibration", self.calibrate)["step_s"]
        return price.flops(max(1, round(self.arguments.train_s / step_s)))

    def calibrate(self) -> dict[str, Any]:
        """Measures the seconds of a step of the unexpanded model."""
        directory = self.work / "run-calibration"
        options = ["--max_steps", _CALIBRATION_STEPS, "--lr", self.arguments.lr]
        entries = self.train_steps("calibration", directory, UNEXPANDED, self.arguments.source_model, options)
        shutil.rmtree(directory)
        return {"step_s": statistics.median(entry["step_s"] for entry in entries[len(entries) // 2 :])}

    def train(self, run: Run) -> dict[str, Any]:
        """Trains a model for the FLOPs of every run; its directory is models/NAME."""
        price, start, lr = self.inputs.price(run), self.inputs.start(run), self.arguments.lr
        budget = self.budget_flops()
        begun = Point(0, 0.0, 0.0, {})
        if run.start == "distilled":
            distilled = self.stages.result(start.name) or {}
            flops = distillation_flops(distilled["distill_tokens"], self.inputs.price(UNEXPANDED), price)
            begun = Point(0, flops, 0.0, {})
        curve: list[Point] = []
        entries: list[dict[str, Any]] = []
        if run.rows_first:
            steps = price.steps_for(run.rows_first * budget, FROZEN_SHARE)
            options = ["--max_steps", steps, "--train_only", "new_rows", "--lr", _ROWS_FIRST_LR, "--weight_decay", 0]
            directory = self.work / f"run-{run.name}-rows"
            entries = self.train_steps(f"{run.name}-rows", directory, run, start, options, steps)
            start, curve = directory / "save" / "modelling", self.curve(run, entries, begun, FROZEN_SHARE)
            begun = curve[-1]
        steps = price.steps_for(budget - begun.flops)
        options = ["--max_steps", steps, "--lr", lr, "--new_row_lr", lr * run.new_row_lr_ratio]
        options = options[: len(options) if run.vocabulary != "source" else -2]
        directory = self.work / f"run-{run.name}"
        found = self.train_steps(run.name, directory, run, start, options, steps)
        curve += self.curve(run, found, begun, 1.0)
        entries += found
        (directory / "save" / "modelling").replace(self.work / "models" / run.name)
        shutil.rmtree(directory / "save")
        last = curve[-1]
        return {
            "steps": int(last.step),
            "flops": last.flops,
            "text_bytes": last.text_bytes,
            "tokens": last.text_bytes / price.bytes_per_token,
            "tokens_per_s": statistics.median(entry["tokens_per_s"] for entry in entries),
            "seconds": sum(entry["step_s"] for entry in entries),
            "curve": [asdict(point) for point in curve],
        }

    def train_steps(
        self, log: str, directory: Path, run: Run, start: Path, options: list, steps: int | None = None
    ) -> list[dict[str, Any]]:
        """Runs train.py, or goes on with it; returns the entries of its metrics.

        Args:
            log: name of the log.
            directory: of the run.
            run: its vocabulary's data are trained on.
            start: model to begin with.
            options: of the run.
            steps: number of them, to validate at intervals; None: no validation.
        """
        from colossal_llama.engine.launch import has_gpu
        from colossal_llama.training.metrics import read_metrics

        (self.work / "models").mkdir(exist_ok=True)
        data, length = self.inputs.arrow("train", run.vocabulary), self.arguments.length_tokens
        command = ["--pretrained", start, "--dataset", data, "--max_length", length, "--shuffle", "global"]
        command += ["--plugin", "zero2", "--micro_batch_size", self.arguments.rows, "--num_epochs", 1000]
        command += ["--mixed_precision", "bf16", "--use_flash_attn"] if has_gpu() else ["--mixed_precision", "fp32"]
        command += ["--lr_schedule", "linear", "--min_lr_ratio", 0, *options]
        command += ["--save_dir", directory / "save", "--skip_save_each_epoch", "--save_interval", 10**9]
        command += ["--load_checkpoint", "auto", "--tensorboard_dir", directory / "logs"]
        command += ["--config_file", directory / "config.json"]
        if steps is not None:
            command += ["--eval_dataset", self.inputs.arrow("held", run.vocabulary)]
            command += ["--eval_interval", max(1, steps // self.arguments.validations)]
        if not (directory / "save" / "modelling").is_dir():
            self.stages.torchrun(log, "train.py", *command)
        return read_metrics(directory / "logs")

    def curve(self, run: Run, entries: list[dict[str, Any]], begun: Point, share: float) -> list[Point]:
        """The validations of a run; `share` of a whole step's FLOPs."""
        return curve_of(entries, self.inputs.price(run), self.inputs.nats_per_loss(run.vocabulary), begun, share)

    # --- Evaluation ---

    def models(self) -> dict[str, Path]:
        """Directories of the models to evaluate by name: trained, then as they began."""
        found = {run.name: self.work / "models" / run.name for run in RUNS.values()}
        found = {name: path for name, path in found.items() if self.stages.result(f"run-{name}")}
        starts = {self.inputs.start(run) for run in self.begun if run.start != "source"}
        return found | {"source": self.arguments.source_model} | {path.name: path for path in sorted(starts)}

    def evaluate(self, models: dict[str, Path]) -> dict[str, Any]:
        """Measures all models; what evaluate.py has measured before is not measured again."""
        questions = self.arguments.questions
        if questions is None:
            questions = self.work / "questions.jsonl"
            asked = [{"messages": [{"from": "human", "content": prompt}]} for prompt in _PROMPTS]
            write_text(questions, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in asked))
        first, *others = models.values()
        output = self.work / "evaluation"
        options = ["--model_path", first, *(["--compare", *others] if others else []), "--output_dir", output]
        options += ["--texts", self.work / "held", "--max_length", self.arguments.length_tokens]
        options += ["--questions", questions, "--max_new_tokens", self.arguments.max_new_tokens]
        self.stages.script("evaluation", "evaluate.py", *options, "--prompt_style", "pretrained")
        measured = json.loads((output / "texts.json").read_bytes())
        names = {str(path.resolve()): name for name, path in models.items()}
        named = {key: names[str(Path(path).resolve())] for key, path in measured["models"].items()}
        return {
            "models": list(models),
            "losses": {
                name: {
                    row["name"]: row["models"][key]["bits"] * _NATS_PER_BIT / row["bytes"]
                    for row in measured["categories"]
                }
                for key, name in named.items()
            },
            "answers": _answers(output / "answers.jsonl", named),
        }

    # --- Record ---

    def record(self) -> dict[str, Any]:
        """Writes the results so far, tables next to them, and the figure; returns them."""
        result = self.stages.result
        vocabularies = {"source": None} | {run.vocabulary: None for run in RUNS.values()}
        results: dict[str, Any] = {
            "settings": json.loads((self.work / "settings.json").read_bytes()),
            "texts": result("texts"),
            "tokenizers": {name: found for name in vocabularies if (found := result(f"tokenizer-{name}"))},
            "data": {name: found for name in vocabularies if (found := result(f"data-{name}"))},
            "runs": {name: found for name in RUNS if (found := result(f"run-{name}"))},
            "stages_s": self.stages.seconds(),
        }
        if evaluation := result("evaluation"):
            results |= {"evaluation": evaluation["losses"], "answers": evaluation["answers"]}
        results["comparisons"] = comparisons(results)
        write_json(self.arguments.output, results)
        write_text(self.arguments.output.with_suffix(".md"), report(results) + "\n")
        if results["runs"]:
            draw(results, self.arguments.curve)
        return results


_NATS_PER_BIT = 0.6931471805599453


def _answers(path: Path, named: dict[str, str]) -> list[dict[str, Any]]:
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [
        {
            "question": line["question"],
            "answers": {named[key]: answer["generated"] for key, answer in line["answers"].items()},
        }
        for line in lines
    ]


if __name__ == "__main__":
    run_main(main)
