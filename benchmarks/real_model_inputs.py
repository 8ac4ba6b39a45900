"""Inputs of benchmarks/real_model.py: texts, vocabularies with their data, models to begin with."""

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.initialisation_corpus import read_documents, split_corpus
from benchmarks.real_model_runs import Price, Run
from benchmarks.real_model_stages import Stages
from colossal_llama.utils.atomic_io import write_text

_TOKENS_PER_CHARACTER = 3  # at most, of byte-level tokenizers and common characters
_DISTILL_TOKENS_PER_ROW = 1000  # init_model.py's own, given here since its FLOPs are counted


class Inputs:
    """Texts, vocabularies and models of a comparison, in its working directory."""

    def __init__(self, arguments: Namespace, stages: Stages):
        self._arguments, self._stages, self._work = arguments, stages, arguments.work_dir

    def texts(self) -> dict[str, Any]:
        """Splits the corpus; returns the training files, and bytes by category."""
        return self._stages.do("texts", self._split)

    def _split(self) -> dict[str, Any]:
        arguments = self._arguments
        if arguments.texts_dir:
            train = [arguments.texts_dir / "train"]
            held = {
                name: [document.source + document.target for document in documents]
                for name, documents in read_documents(arguments.texts_dir / "held").items()
            }
        else:
            held, _ = split_corpus(arguments.corpus_dir, self._work, arguments.eval_bytes, None)
            train = [self._work / "source-corpus", self._work / "continued-corpus"]
        passages = {
            name: passages_of(texts, arguments.length_tokens // _TOKENS_PER_CHARACTER, arguments.eval_bytes)
            for name, texts in sorted(held.items())
        }
        records = [{"target": text, "category": name} for name, texts in passages.items() for text in texts]
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        (self._work / "held").mkdir(exist_ok=True)
        write_text(self._work / "held" / "held.jsonl", "".join(lines))
        return {
            "train": [str(directory) for directory in train],
            "train_bytes": sum(
                len((document.source + document.target).encode())
                for directory in train
                for documents in read_documents(directory).values()
                for document in documents
            ),
            "held_bytes": {name: sum(len(text.encode()) for text in texts) for name, texts in passages.items()},
        }

    def tokenizer(self, vocabulary: str) -> Path:
        """Directory of a vocabulary's tokenizer, which is made."""
        if vocabulary == "source":
            return self._arguments.source_model
        directory = self._work / f"tokenizer-{vocabulary}"
        self._stages.do(f"tokenizer-{vocabulary}", lambda: self._expand(vocabulary, directory))
        return directory

    def _expand(self, vocabulary: str, directory: Path) -> dict[str, Any]:
        arguments, stages, name = self._arguments, self._stages, f"tokenizer-{vocabulary}"
        pieces = arguments.generic_pieces_file if vocabulary == "generic" else arguments.pieces_file
        if pieces is None:
            learned = self._work / "learned"
            options = ["--num_pieces", arguments.num_pieces, "--max_pieces", 2 * arguments.num_pieces]
            options += ["--scripts", arguments.scripts] if arguments.scripts else []
            options += ["--source_tokenizer_dir", arguments.source_model, "--output_dir", learned]
            script = "colossal_llama/tokenizer/learn_pieces.py"
            stages.script(name, script, "--data_input_dirs", *self.texts()["train"], *options)
            pieces = learned / "pieces.jsonl"
        options = ["--source_tokenizer_dir", arguments.source_model, "--target_tokenizer_dir", directory]
        stages.script(name, "colossal_llama/tokenizer/init_tokenizer.py", *options, "--expand_tokens_file", pieces)
        report = json.loads((directory / "expansion_report.json").read_bytes())
        return {"rows": report["vocab_size"], "new_rows": report["vocab_size"] - report["source_vocab_size"]}

    def data(self, vocabulary: str) -> dict[str, Any]:
        """Prepares training and held-out texts by a vocabulary; returns what the manifests say."""
        tokenizer = self.tokenizer(vocabulary)
        return self._stages.do(f"data-{vocabulary}", lambda: self._prepare(vocabulary, tokenizer))

    def _prepare(self, vocabulary: str, tokenizer: Path) -> dict[str, Any]:
        manifests = {}
        for kind, texts in (("train", self.texts()["train"]), ("held", [self._work / "held"])):
            output = self.arrow(kind, vocabulary).parent
            options = ["--tokenizer_dir", tokenizer, "--data_output_dirs", output]
            options += ["--max_length", self._arguments.length_tokens, "--num_spliced_dataset_bins", 1]
            log = f"data-{vocabulary}"
            self._stages.script(log, "prepare_pretrain_dataset.py", "--data_input_dirs", *texts, *options)
            manifests[kind] = json.loads((output / "manifest.json").read_bytes())
        totals = manifests["train"]["totals"]
        return {
            "tokens": totals["tokens_out"],
            "training_rows": totals["rows"],
            "tokens_by_category": _by_category(manifests["train"], "tokens_out"),
            "held_targets": _by_category(manifests["held"], "target_tokens"),
        }

    def arrow(self, kind: str, vocabulary: str) -> Path:
        """Directory of prepared parts; `kind` is `train` or `held`."""
        return self._work / f"{kind}-{vocabulary}" / "arrow"

    def start(self, run: Run) -> Path:
        """Directory of the model that a run begins with, which is made."""
        if run.start == "source":
            return self._arguments.source_model
        directory = self._work / "models" / f"start-{run.start}-{run.vocabulary}"
        tokenizer = self.tokenizer(run.vocabulary)
        self._stages.do(directory.name, lambda: self._initialise(run, tokenizer, directory))
        return directory

    def _initialise(self, run: Run, tokenizer: Path, directory: Path) -> dict[str, Any]:
        options = ["--init_method", run.start, "--source_model_and_tokenizer_path", self._arguments.source_model]
        options += ["--target_tokenizer_path", tokenizer, "--target_model_path", directory]
        tokens = 0
        if run.start == "distilled":
            tokens = self._arguments.distill_tokens or (
                _DISTILL_TOKENS_PER_ROW * self._stages.result(f"tokenizer-{run.vocabulary}")["new_rows"]
            )
            options += ["--distill_tokens", tokens, "--distill_data", *self.texts()["train"]]
        self._stages.script(directory.name, "colossal_llama/model/init_model.py", *options)
        return {"distill_tokens": tokens}

    def price(self, run: Run) -> Price:
        """Returns the price of a step of a run."""
        from transformers import AutoConfig

        from colossal_llama.model.param_count import flops_per_token

        data, arguments = self.data(run.vocabulary), self._arguments
        return Price(
            flops_per_token(
                AutoConfig.from_pretrained(self.start(run), trust_remote_code=False), arguments.length_tokens
            ),
            arguments.rows * data["tokens"] / data["training_rows"],
            self.texts()["train_bytes"] / data["tokens"],
        )

    def nats_per_loss(self, vocabulary: str) -> dict[str, float]:
        """Held-out tokens per byte by category."""
        targets, sizes = self.data(vocabulary)["held_targets"], self.texts()["held_bytes"]
        return {name: targets[name] / size for name, size in sizes.items()}


def passages_of(texts: Sequence[str], characters: int, most_bytes: int) -> list[str]:
    """Cuts texts into passages, until they are as large as wanted.

    A passage is one window for every tokenizer, so that all models see the same context.

    >>> passages_of(["abcde", "fgh", "ij"], 3, 7)
    ['abc', 'de', 'fgh']
    """
    passages: list[str] = []
    size = 0
    for text in texts:
        for begin in range(0, len(text), characters):
            if size >= most_bytes:
                return passages
            passages.append(text[begin : begin + characters])
            size += len(passages[-1].encode())
    return passages


def _by_category(manifest: Mapping[str, Any], name: str) -> dict[str, int]:
    return {category: counts[name] for category, counts in manifest["categories"].items()}
