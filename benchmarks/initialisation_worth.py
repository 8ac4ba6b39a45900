"""Shows what each initialisation of new rows is worth: loss per byte on held-out text, before any further training.

Trains a small LLaMA on a corpus with the source tokenizer, gives it the expanded tokenizer's rows with init_model.py by
either method, and prints the losses that `--eval_file` reports. A small model trained for minutes: compare the columns, not
the values with those of real models.
"""

import itertools
import json
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from colossal_llama.utils.command_line import CommandLine, existing_directory, number
from colossal_llama.utils.console import progress, table
from colossal_llama.utils.errors import run_main

_SCRIPT = Path(__file__).resolve().parents[1] / "colossal_llama" / "model" / "init_model.py"
_HELD_OUT_DOCUMENTS = 60
_ROW_TOKENS = 128


def main() -> None:
    """Train, initialise by both methods, print one table."""
    arguments = parse_arguments()
    documents = read_documents(arguments.corpus_dir, arguments.documents)
    held_out, training = documents[:_HELD_OUT_DOCUMENTS], documents[_HELD_OUT_DOCUMENTS:]
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.work_dir, prefix="initialisation-worth-") as place:
        eval_file = Path(place) / "held_out.jsonl"
        eval_file.write_text("\n".join(json.dumps({"text": text}) for text in held_out), "utf-8")
        train_source(Path(place) / "source", training, arguments)
        for method in ("mean", "norm_matched_mean"):
            target = Path(place) / method
            losses = initialise(Path(place) / "source", arguments.target_tokenizer, target, method, eval_file)
            if not rows:
                rows.append(["source model", losses["source"]["loss_per_byte"], losses["source"]["tokens"]])
                for kind in ("random", "random_around_mean"):
                    rows.append([kind, losses[kind]["loss_per_byte"], losses[kind]["tokens"]])
            rows.append([method, losses["initialised"]["loss_per_byte"], losses["initialised"]["tokens"]])
    print(table(["new rows", "nats per byte", "tokens"], rows))


def parse_arguments() -> Namespace:
    """The command line, checked."""
    parser = CommandLine(description=__doc__.splitlines()[0])
    parser.add_argument("--source_tokenizer", type=existing_directory, required=True)
    parser.add_argument("--target_tokenizer", type=existing_directory, required=True, help="from init_tokenizer.py")
    parser.add_argument(
        "--corpus_dir", type=existing_directory, required=True, help='.jsonl files with "source" and "target"'
    )
    parser.add_argument("--documents", type=number(int, minimum=100), default=2000, help="documents read of each file")
    parser.add_argument(
        "--steps", type=number(int, minimum=1), default=400, help="training steps of 8 rows of 128 tokens"
    )
    parser.add_argument("--width", type=number(int, minimum=64), default=128, help="hidden size, a multiple of 64")
    parser.add_argument("--work_dir", type=existing_directory, help="where the models are made and removed again")
    arguments = parser.parse_args()
    parser.finish()
    return arguments


def read_documents(directory: Path, limit: int) -> list[str]:
    """The first `limit` texts of every file, shuffled the same way every time."""
    import random

    texts = []
    for path in sorted(directory.rglob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            texts += [record["source"] + record["target"] for record in map(json.loads, itertools.islice(file, limit))]
    random.Random(0).shuffle(texts)
    return texts


def train_source(directory: Path, documents: list[str], arguments: Namespace) -> None:
    """Trains and saves the source model with its tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from colossal_llama.tokenizer.loading import load_tokenizer

    torch.manual_seed(0)
    tokenizer = load_tokenizer(arguments.source_tokenizer)
    shape = {"hidden_size": arguments.width, "intermediate_size": 3 * arguments.width, "num_hidden_layers": 2}
    heads = {"num_attention_heads": arguments.width // 32, "max_position_embeddings": 2048}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape, **heads)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=arguments.steps)
    rows = token_rows(documents, tokenizer)
    for _ in (bar := progress(range(arguments.steps), desc="training the source model")):
        batch = torch.tensor(list(itertools.islice(rows, 8)), device=device)
        loss = model(batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(arguments.source_tokenizer).save_pretrained(directory)


def token_rows(documents: list[str], tokenizer) -> Iterator[list[int]]:
    """Rows of 128 tokens of the documents, for ever; at most 2,000 characters of each, so that long ones do not rule."""
    left: list[int] = []
    for text in itertools.cycle(documents):
        left += [*tokenizer(text[:2000]).input_ids, tokenizer.eos_token_id]
        while len(left) >= _ROW_TOKENS:
            yield left[:_ROW_TOKENS]
            del left[:_ROW_TOKENS]


def initialise(source: Path, tokenizer: Path, target: Path, method: str, eval_file: Path) -> dict[str, dict]:
    """Runs init_model.py and returns the losses of its report."""
    command = [sys.executable, str(_SCRIPT), "--source_model_and_tokenizer_path", str(source)]
    command += ["--target_tokenizer_path", str(tokenizer), "--target_model_path", str(target)]
    subprocess.run(
        [*command, "--init_method", method, "--eval_file", str(eval_file), "--eval_bytes", "40000"], check=True
    )
    return json.loads((target / "init_report.json").read_text())["evaluation"]


if __name__ == "__main__":
    run_main(main)
