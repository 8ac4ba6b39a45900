"""A tiny model, tokenizer and parts, made on the spot, and a way to run train.py's story many times
in one launch.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import psutil
import torch
from datasets import ClassLabel, Features, Sequence, Value
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from colossal_llama.model.weights.generation_config import save_model
from colossal_llama.tokenizer.loading import tokenizer_fingerprint
from tests.support.ranks import run_ranks

VOCABULARY_SIZE = 203  # a prime: no tensor parallel size divides it
MAX_LENGTH = 96
GENERATION_SETTINGS = {"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.9, "top_p": 0.6}

BF16_BATCH = (
    "--micro_batch_size",
    "2",
    "--num_epochs",
    "2",
    "--save_interval",
    "4",
    "--mixed_precision",
    "bf16",
    "--lr",
    "1e-3",
)
"""Options of the short runs on a GPU that are compared with each other."""


@dataclass(frozen=True)
class Toy:
    """Directories of a tiny model and of prepared parts."""

    model: Path
    parts: tuple[Path, ...]
    sft_parts: tuple[Path, ...]


def copy_with_config(model: Path, target: Path, **settings: object) -> Path:
    """Copies a model, with other settings in its config.json."""
    shutil.copytree(model, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **settings}))
    return target


def make_toy(root: Path) -> Toy:
    """A random two-layer LLaMA in fp32, 33 pre-training rows in 3 parts, 12 conversation rows
    in 1.
    """
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY_SIZE)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(root / "model")
    # As many published models have them: a temperature and no do_sample, which transformers reads
    # and refuses to save.
    (root / "model" / "generation_config.json").write_text(json.dumps(GENERATION_SETTINGS))
    tokenizer.save_pretrained(root / "model")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(root / "model")
    generator = np.random.default_rng(0)
    parts = tuple(_part(root / f"part-{i:05d}", 10 + i, generator, tokenizer, "pretrain") for i in range(3))
    sft_parts = (_part(root / "sft" / "part-00000", 12, generator, tokenizer, "sft"),)
    return Toy(root / "model", parts, sft_parts)


def _part(path: Path, rows: int, generator: np.random.Generator, tokenizer: PreTrainedTokenizerFast, kind: str) -> Path:
    features = Features(
        input_ids=Sequence(Value("int32")),
        labels=Sequence(Value("int32")),
        document_lengths=Sequence(Value("int32")),
        document_categories=Sequence(ClassLabel(names=["a", "b"])),
    )
    made = [_row(generator, 1 if kind == "sft" else int(generator.integers(1, 5))) for _ in range(rows)]
    datasets.Dataset.from_list(made, features=features).save_to_disk(str(path))
    tokens = sum(len(row["input_ids"]) for row in made)
    note = {
        "kind": kind,
        "max_length": MAX_LENGTH,
        "rows": rows,
        "tokens": tokens,
        "fingerprint": f"{kind}-{path.name}-{tokens}",
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
    }
    (path / "part.json").write_text(json.dumps(note))
    return path


def _row(generator: np.random.Generator, documents: int) -> dict:
    """Documents of words that count upwards, so that a model can learn them; the first tokens of
    each are no targets.
    """
    lengths = [int(length) for length in generator.integers(4, 24, documents)]
    input_ids, labels = [], []
    for length in lengths:
        begin = int(generator.integers(3, VOCABULARY_SIZE - length))
        ids = [1, *range(begin, begin + length - 2), 2]
        unlabelled = int(generator.integers(1, length - 1))
        input_ids += ids
        labels += [-100] * unlabelled + ids[unlabelled:]
    return {
        "input_ids": input_ids,
        "labels": labels,
        "document_lengths": lengths,
        "document_categories": [int(c) for c in generator.integers(0, 2, documents)],
    }


def poisoned(toy: Toy, rows: list[list[int]], among: range, path: Path) -> tuple[Path, int]:
    """A copy of the model in which the embedding of one token is no number, and the only row that
    has this token.

    Args:
        toy: the model.
        rows: all rows' tokens, numbered through.
        among: the row is one of these.
        path: of the copy.
    """
    counts = Counter(token for row in rows for token in set(row))
    row, token = next((number, token) for number in among for token in rows[number] if counts[token] == 1)
    shutil.copytree(toy.model, path)
    model = LlamaForCausalLM.from_pretrained(toy.model)
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = math.nan
    save_model(model, path)
    return path, row


def ranks_of(launcher: subprocess.Popen) -> dict[int, psutil.Process]:
    """The processes that a launcher has started, by rank."""
    children = psutil.Process(launcher.pid).children()
    return {int(child.environ()["RANK"]): child for child in children if "RANK" in child.environ()}


def torchrun(
    program: str,
    arguments: list[str],
    ranks: int,
    project_root: Path,
    on_gpu: bool = False,
    timeout_s: int = 300,
    python: str = sys.executable,
) -> subprocess.CompletedProcess:
    """Runs a script, or a module by its name, on `ranks` processes, with gloo on the CPU or NCCL.

    The project's root is the import root, wherever the script lies.
    """
    command = [python, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command += [program, *arguments] if program.endswith(".py") else ["-m", program, *arguments]
    path = os.pathsep.join([str(project_root), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {**os.environ, "PYTHONPATH": path}
    if not on_gpu:
        variables |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        command, cwd=project_root, env=variables, capture_output=True, text=True, timeout=timeout_s, check=False
    )


class Runner:
    """Runs a list of train.py command lines one after the other in one launch of `ranks`
    processes.
    """

    def __init__(self, project_root: Path, toy: Toy, workspace: Path, on_gpu: bool = False):
        self.project_root, self.toy, self.workspace, self.on_gpu = project_root, toy, workspace, on_gpu

    def command(self, name: str, *options: str, sft: bool = False, pretrained: bool = True) -> list[str]:
        """A command line whose outputs lie under workspace/name; fp32 zero2 on all parts unless
        options say otherwise.
        """
        place = self.workspace / name
        parts = self.toy.sft_parts if sft else self.toy.parts
        words = ["--pretrained", str(self.toy.model)] if pretrained else []
        if "--dataset" not in options:  # given again, it would add parts
            words += ["--dataset", *map(str, parts)]
        words += ["--max_length", str(MAX_LENGTH), "--save_dir", str(place / "save")]
        words += ["--tensorboard_dir", str(place / "logs"), "--config_file", str(place / "config.json")]
        if "--plugin" not in options:
            words += ["--plugin", "zero2"]
        if "--mixed_precision" not in options:
            words += ["--mixed_precision", "fp32"]
        if "--lr" not in options:
            words += ["--lr", "1e-2"]
        return [*words, *options]

    def run(
        self, commands: list[list[str]], ranks: int, script: str = "benchmarks/train_many.py", timeout_s: int = 300
    ) -> str:
        """Runs them all; fails with their output if one does, else returns what was printed."""
        listing = self.workspace / f"commands-{ranks}-{abs(hash(str(commands)))}.json"
        listing.write_text(json.dumps(commands))
        if self.on_gpu:
            done = torchrun(script, [str(listing)], ranks, self.project_root, True, timeout_s)
        else:
            done = run_ranks(script, [str(listing)], ranks, self.project_root, timeout_s)
        # All of it: where a rank fails, PyTorch's stacks of the others may follow what it says.
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self, command: list[str], ranks: int = 2) -> subprocess.Popen:
        """Starts train.py on the CPU as a user does, in a session of its own, and returns at
        once.
        """
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        return subprocess.Popen(
            [*launch, "train.py", *command],
            cwd=self.project_root,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def metrics(self, name: str) -> list[dict]:
        """The entries of a run's metrics.jsonl."""
        lines = (self.workspace / name / "logs" / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def losses(self, name: str) -> list[float]:
        """Loss by step."""
        return [entry["loss"] for entry in self.metrics(name)]

    def weights(self, name: str, folder: str = "modelling") -> dict[str, torch.Tensor]:
        """The tensors of a saved model."""
        from safetensors.torch import load_file

        tensors: dict[str, torch.Tensor] = {}
        for file in sorted((self.workspace / name / "save" / folder).glob("*.safetensors")):
            tensors |= load_file(file)
        assert tensors
        return tensors
