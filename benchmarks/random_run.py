"""Parts common to the training benchmarks: random model, random rows, and runs of train.py."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from colossal_llama.dataset.dummy_dataset import random_rows
from colossal_llama.training.metrics import BENCHMARK_FILE, METRICS_FILE

PROJECT_ROOT = Path(__file__).resolve().parents[1]
VOCABULARY_SIZE = 69_104
LENGTH_TOKENS = 4096

SHAPES = {
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "170M": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 10,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    },
    "190M": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    },
    "1.25B": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "7B": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
}


def make_model(directory: Path, shape: str) -> None:
    """Saves a random LLaMA in bf16 with a word-level tokenizer of the same vocabulary size."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE, max_position_embeddings=LENGTH_TOKENS, torch_dtype="bfloat16", **SHAPES[shape]
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(directory)
    del model
    torch.cuda.empty_cache()  # for the runs that follow: at 7 B this process held 14 GiB
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY_SIZE)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(directory)


def make_part(directory: Path, rows: int, documents_per_row: int = 1, length_tokens: int = LENGTH_TOKENS) -> None:
    """Saves a part of full rows of random tokens, divided into documents of equal length."""
    random_rows(rows, length_tokens, VOCABULARY_SIZE, documents_per_row).save_to_disk(str(directory))
    note = {
        "kind": "pretrain",
        "max_length": length_tokens,
        "rows": rows,
        "tokens": rows * length_tokens,
        "fingerprint": f"random-{rows}-{documents_per_row}",
    }
    (directory / "part.json").write_text(json.dumps(note))


@dataclass(frozen=True)
class Outcome:
    """A finished run of train.py."""

    entries: list[dict]
    output: str
    returncode: int

    def median(self, figure: str, skip: int = 3) -> float:
        """Median of a metric over the steps after the first `skip`; NaN where it is unknown."""
        values = [entry[figure] for entry in self.entries[skip:] if entry.get(figure) is not None]
        return float(np.median(values)) if values else float("nan")


def output_options(run_dir: Path) -> list[str]:
    """Options that put all output files of a run into `run_dir`."""
    return [
        "--save_dir",
        f"{run_dir}/save",
        "--tensorboard_dir",
        f"{run_dir}/logs",
        "--config_file",
        f"{run_dir}/config.json",
    ]


def run_training(run_dir: Path, *options: str, processes: int = 1) -> Outcome:
    """Starts train.py with torchrun, as a user does; its output files are in `run_dir`."""
    done = _torchrun(["train.py", *output_options(run_dir), *options], processes)
    return read_outcome(run_dir, done)


def run_many(listing: Path, commands: list[list[str]], processes: int = 1) -> subprocess.CompletedProcess:
    """Runs several command lines of train.py in one launch."""
    listing.write_text(json.dumps(commands))
    return _torchrun(["benchmarks/train_many.py", str(listing)], processes)


def read_outcome(run_dir: Path, done: subprocess.CompletedProcess) -> Outcome:
    """Reads the metrics of a run in `run_dir`, and its printed output."""
    metrics = metrics_file_of(run_dir)
    entries = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    return Outcome(entries, done.stdout + done.stderr, done.returncode)


def metrics_file_of(run_dir: Path) -> Path:
    """Path of the metrics of a run in `run_dir`, a --benchmark or not."""
    logs = run_dir / "logs"
    return next((path for path in (logs / BENCHMARK_FILE, logs / METRICS_FILE) if path.exists()), logs / METRICS_FILE)


def _torchrun(command_line: list[str], processes: int) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += command_line
    return subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, env=os.environ, check=False)
