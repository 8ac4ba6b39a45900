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
from collections.abc import Callable
from dataclasses import dataclass
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
        chats: it was fine-tuned on conversations: its prompts are conversations.
        sentencepiece: it has a tokenizer.model.
    """

    name: str
    directory: Path
    is_adapter: bool = False
    chats: bool = False
    sentencepiece: bool = False


def run_script(*command: object, python: Path | str = sys.executable) -> None:
    """Runs a script of the project, quietly on the CPU; its output is shown when it fails."""
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    words = [str(python), *map(str, command)]
    done = subprocess.run(words, cwd=PROJECT_ROOT, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def make_models(work: Path, shared_data: Path, real_model: Path | None) -> dict[str, Callable[[], TriedModel]]:
    """Ways to make every model, by name; a model that lies in the work directory is used again.

    Args:
        work: directory for all that is made.
        shared_data: has `tokenizers/`, `pieces_zh_17953.jsonl` and `sft/`.
        real_model: a trained LLaMA with a chat template; without it its four models are left out.
    """
    pieces = shared_data / "pieces_zh_17953.jsonl"

    def expanded(name: str, source: Path) -> Path:
        target = work / f"{name}-expanded"
        if not target.exists():
            tokenizer = work / f"{name}-tokenizer"
            if not tokenizer.exists():
                names = ("--source_tokenizer_dir", source, "--target_tokenizer_dir", tokenizer)
                run_script("colossal_llama/tokenizer/init_tokenizer.py", *names, "--expand_tokens_file", pieces)
            names = ("--source_model_and_tokenizer_path", source, "--target_tokenizer_path", tokenizer)
            run_script("colossal_llama/model/init_model.py", *names, "--target_model_path", target)
        return target

    def random_expanded(name: str) -> Path:
        source = work / f"{name}-random"
        if not source.exists():
            run_script("-c", _RANDOM_MODEL, shared_data / "tokenizers" / name, source)
        return expanded(name, source)

    def fine_tuned(name: str, base: Path, template: tuple[str, ...], *options: str) -> Path:
        data, run = work / f"{base.name}-conversations", work / name
        if not data.exists():
            names = ("--data_input_dirs", _conversations(work, shared_data), "--tokenizer_dir", base)
            names = (*names, "--data_output_dirs", data, "--max_length", 512, "--num_spliced_dataset_bins", 1)
            run_script("prepare_sft_dataset.py", *names, *template)
        if not (run / "modelling").exists():
            names = ("--pretrained", base, "--dataset", data / "arrow" / "part-00000", "--save_dir", run)
            records = ("--tensorboard_dir", work / f"{name}-logs", "--config_file", work / f"{name}.json")
            settings = ("--plugin", "ddp", "--mixed_precision", "bf16", "--lr", "1e-3", *_TRAINING, *options)
            run_script("train.py", *names, *records, *settings)
        return run

    llama2, llama3 = ("--llama_version", "2"), ("--llama_version", "3")
    makers: dict[str, Callable[[], TriedModel]] = {
        "LLaMA-2 expanded": lambda: TriedModel("LLaMA-2 expanded", random_expanded("llama2"), sentencepiece=True),
        "LLaMA-2 SFT": lambda: TriedModel(
            "LLaMA-2 SFT",
            fine_tuned("llama2-sft", random_expanded("llama2"), llama2) / "modelling",
            chats=True,
            sentencepiece=True,
        ),
        "LLaMA-3 base expanded": lambda: TriedModel("LLaMA-3 base expanded", random_expanded("llama3-base")),
        "LLaMA-3 base SFT": lambda: TriedModel(
            "LLaMA-3 base SFT",
            fine_tuned("llama3-sft", random_expanded("llama3-base"), llama3) / "modelling",
            chats=True,
        ),
        "LLaMA-3 instruct expanded": lambda: TriedModel(
            "LLaMA-3 instruct expanded", random_expanded("llama3-instruct")
        ),
    }
    if real_model is None:
        return makers

    def real() -> Path:
        return expanded("smollm2", real_model)

    def lora() -> Path:
        return fine_tuned("smollm2-lora", real(), own, "--lora_rank", "8", "--merge_lora")

    own = ("--chat_template", "chatml")
    makers |= {
        "SmolLM2 expanded": lambda: TriedModel("SmolLM2 expanded", real()),
        "SmolLM2 SFT": lambda: TriedModel(
            "SmolLM2 SFT", fine_tuned("smollm2-sft", real(), own) / "modelling", chats=True
        ),
        "SmolLM2 LoRA": lambda: TriedModel("SmolLM2 LoRA", lora() / "modelling", is_adapter=True, chats=True),
        "SmolLM2 LoRA merged": lambda: TriedModel("SmolLM2 LoRA merged", lora() / "modelling_merged", chats=True),
    }
    return makers


def _conversations(work: Path, shared_data: Path) -> Path:
    """A directory with the first real conversations of each data set."""
    target = work / "conversations"
    if not target.exists():
        lines = [line for file in _first_files(shared_data) for line in file.read_text().splitlines()[:_CONVERSATIONS]]
        target.mkdir()
        (target / "conversations.jsonl").write_text("\n".join(lines) + "\n")
    return target


def _first_files(shared_data: Path) -> list[Path]:
    return [shared_data / "sft" / name / f"{name}-000.jsonl" for name in ("kdconv", "sgd")]


def read_conversations(shared_data: Path, count: int) -> list[list[dict[str, str]]]:
    """Beginnings of other real conversations, each up to a message of the human, OpenAI's keys."""
    roles = {"human": "user", "assistant": "assistant", "system": "system"}
    found: list[list[dict[str, str]]] = []
    for file in _first_files(shared_data):
        for line in file.read_text().splitlines()[_CONVERSATIONS : _CONVERSATIONS + (count + 1) // 2]:
            messages = [{"role": roles[m["from"]], "content": m["content"]} for m in json.loads(line)["messages"]]
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
