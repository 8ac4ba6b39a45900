"""Models to be tried in other programs, made by the suite's own scripts as a user would.

    LLaMA-2, LLaMA-3    random weights ┬ init_tokenizer, init_model        "… expanded"
    SmolLM2             real weights   ┘       ├ prepare_sft_dataset, train           "… SFT"
                                               └ the same with --lora_rank 8          "… LoRA"
                                                 --merge_lora              "… LoRA merged"

Random models have two layers; all are made once and used again.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[2]
_RANDOM_MODEL = """
import sys, torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
source, target = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(source)
torch.manual_seed(0)
config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.2,
    bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
model = LlamaForCausalLM(config)
model.save_pretrained(target)
tokenizer.save_pretrained(target)
"""
"""A LLaMA of 2 layers, whose weights are large enough for its greatest logit to stand out."""
_CONVERSATIONS = 400
_TRAINING = ("--max_length", "512", "--micro_batch_size", "1", "--accumulation_steps", "2", "--max_steps", "12")


@dataclass(frozen=True)
class TriedModel:
    """A model directory that clients open.

    Attributes:
        name: in the table.
        directory: model or adapter.
        is_adapter: a LoRA adapter, whose base the adapter_config.json names.
        sentencepiece: it has a tokenizer.model.
        data: the prepared conversations that it was fine-tuned on; None for a base model.
    """

    name: str
    directory: Path
    is_adapter: bool = False
    sentencepiece: bool = False
    data: Path | None = None

    @property
    def chats(self) -> bool:
        """True where the prompts are conversations, as it was fine-tuned on some."""
        return self.data is not None


def run_script(*command: object, python: Path | str = sys.executable) -> None:
    """Runs a script of the project, quietly on the CPU; its output is shown when it fails."""
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    words = [str(python), *map(str, command)]
    done = subprocess.run(words, cwd=PROJECT_ROOT, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


@dataclass(frozen=True)
class ModelMaker:
    """Makes models by the suite's scripts; what lies in the work directory is used again.

    Attributes:
        work: directory for all that is made.
        shared_data: has `tokenizers/`, `pieces_zh_17953.jsonl` and `sft/`.
    """

    work: Path
    shared_data: Path

    def expanded(self, name: str, source: Path) -> Path:
        """A model with a vocabulary that is expanded by the Chinese pieces."""
        target, tokenizer = self.work / f"{name}-expanded", self.work / f"{name}-tokenizer"
        if not tokenizer.exists():
            names = ("--source_tokenizer_dir", source, "--target_tokenizer_dir", tokenizer)
            pieces = self.shared_data / "pieces_zh_17953.jsonl"
            run_script("colossal_llama/tokenizer/init_tokenizer.py", *names, "--expand_tokens_file", pieces)
        if not target.exists():
            names = ("--source_model_and_tokenizer_path", source, "--target_tokenizer_path", tokenizer)
            run_script("colossal_llama/model/init_model.py", *names, "--target_model_path", target)
        return target

    def random_expanded(self, name: str) -> Path:
        """A random model with one of the real tokenizers, expanded."""
        source = self.work / f"{name}-random"
        if not source.exists():
            run_script("-c", _RANDOM_MODEL, self.shared_data / "tokenizers" / name, source)
        return self.expanded(name, source)

    def fine_tuned(self, name: str, base: Path, template: tuple[str, ...], *options: str) -> tuple[Path, Path]:
        """Prepared conversations, and the directory of a run that has trained on them."""
        data, run = self.work / f"{base.name}-conversations", self.work / name
        if not data.exists():
            names = ("--data_input_dirs", _conversations(self.work, self.shared_data).parent, "--tokenizer_dir", base)
            names = (*names, "--data_output_dirs", data, "--max_length", 512, "--num_spliced_dataset_bins", 1)
            run_script("prepare_sft_dataset.py", *names, *template)
        if not (run / "modelling").exists():
            names = ("--pretrained", base, "--dataset", data / "arrow" / "part-00000", "--save_dir", run)
            records = ("--tensorboard_dir", self.work / f"{name}-logs", "--config_file", self.work / f"{name}.json")
            settings = ("--plugin", "ddp", "--mixed_precision", "bf16", "--lr", "1e-3", *_TRAINING, *options)
            run_script("train.py", *names, *records, *settings)
        return data, run


def random_models(maker: ModelMaker) -> Iterator[tuple[str, Callable[[], TriedModel]]]:
    """Names of the models with random weights, and ways to make them."""
    for title, name, version in (("LLaMA-2", "llama2", "2"), ("LLaMA-3 base", "llama3-base", "3")):
        is_2 = version == "2"
        yield (
            f"{title} expanded",
            partial(_expanded, maker, f"{title} expanded", name, is_2),
        )
        yield f"{title} SFT", partial(_fine_tuned, maker, f"{title} SFT", name, version, is_2)
    title = "LLaMA-3 instruct expanded"
    yield title, partial(_expanded, maker, title, "llama3-instruct", False)


def _expanded(maker: ModelMaker, title: str, name: str, sentencepiece: bool) -> TriedModel:
    return TriedModel(title, maker.random_expanded(name), sentencepiece=sentencepiece)


def _fine_tuned(maker: ModelMaker, title: str, name: str, version: str, sentencepiece: bool) -> TriedModel:
    data, run = maker.fine_tuned(f"{name}-sft", maker.random_expanded(name), ("--llama_version", version))
    return TriedModel(title, run / "modelling", sentencepiece=sentencepiece, data=data)


def real_models(maker: ModelMaker, source: Path) -> Iterator[tuple[str, Callable[[], TriedModel]]]:
    """Names of the models made of a trained one with a ChatML template, and ways to make them."""

    def tuned(name: str, folder: str, run: str, *options: str, is_adapter: bool = False) -> TriedModel:
        """A model that was fine-tuned in ChatML: a directory of the run of that name."""
        base = maker.expanded("smollm2", source)
        data, directory = maker.fine_tuned(run, base, ("--chat_template", "chatml"), *options)
        return TriedModel(name, directory / folder, is_adapter, data=data)

    adapter = ("smollm2-lora", "--lora_rank", "8", "--merge_lora")
    yield "SmolLM2 expanded", lambda: TriedModel("SmolLM2 expanded", maker.expanded("smollm2", source))
    yield "SmolLM2 SFT", lambda: tuned("SmolLM2 SFT", "modelling", "smollm2-sft")
    yield "SmolLM2 LoRA", lambda: tuned("SmolLM2 LoRA", "modelling", *adapter, is_adapter=True)
    yield "SmolLM2 LoRA merged", lambda: tuned("SmolLM2 LoRA merged", "modelling_merged", *adapter)


def _conversations(work: Path, shared_data: Path) -> Path:
    """A file, alone in its directory, with the first real conversations of each data set."""
    target = work / "conversations" / "conversations.jsonl"
    if not target.exists():
        lines = [line for file in _first_files(shared_data) for line in file.read_text().splitlines()[:_CONVERSATIONS]]
        target.parent.mkdir()
        target.write_text("\n".join(lines) + "\n")
    return target


def _first_files(shared_data: Path) -> list[Path]:
    return [shared_data / "sft" / name / f"{name}-000.jsonl" for name in ("kdconv", "sgd")]


def read_trained(work: Path, shared_data: Path) -> list[list[dict[str, str]]]:
    """The conversations that models are fine-tuned on, up to their last answer; OpenAI's keys."""
    found = [_messages(line) for line in _conversations(work, shared_data).read_text().splitlines()]
    for messages in found:
        while messages[-1]["role"] != "assistant":  # preparation cuts off a question without an answer
            messages.pop()
    return found


def _messages(line: str) -> list[dict[str, str]]:
    roles = {"human": "user", "assistant": "assistant", "system": "system"}
    return [{"role": roles[m["from"]], "content": m["content"]} for m in json.loads(line)["messages"]]


def read_conversations(shared_data: Path, count: int) -> list[list[dict[str, str]]]:
    """Beginnings of other real conversations, each up to a message of the human, OpenAI's keys."""
    found: list[list[dict[str, str]]] = []
    for file in _first_files(shared_data):
        for line in file.read_text().splitlines()[_CONVERSATIONS : _CONVERSATIONS + (count + 1) // 2]:
            messages = _messages(line)
            ends = [number for number, message in enumerate(messages[:5]) if message["role"] == "user"]
            found.append(messages[: ends[len(found) % len(ends)] + 1])
    return found[:count]


def read_texts(shared_data: Path, count: int) -> list[str]:
    """Real texts in Chinese and English, from every category, of up to 2,000 characters."""
    folders = sorted((shared_data / "pretrain").iterdir())
    texts: list[str] = []
    for folder in folders:
        chosen: list[str] = []
        for file in sorted(folder.glob("*.jsonl")):
            records = (json.loads(line) for line in file.read_text().splitlines())
            chosen += [(record["source"] + record["target"])[:2000] for record in records]
            if len(chosen) >= count // len(folders):
                break
        texts += chosen[: count // len(folders)]
    return texts
