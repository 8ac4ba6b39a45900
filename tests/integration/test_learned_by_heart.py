"""Template, mask, loss, checkpoint and inference fit together: a tiny model gives back the answers
that it was trained on.
"""

import json
import os
import subprocess
import sys

import pytest
import sentencepiece
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

CONVERSATIONS = 60
VOCABULARY_SIZE = 1600


@pytest.fixture(scope="module")
def conversations(made_data) -> list[list[dict]]:
    """Chinese and English conversations, cut after two turns, whose turns are short."""
    found = []
    for file in ("kdconv/kdconv-000.jsonl", "sgd/sgd-000.jsonl"):
        lines = (made_data / "sft" / file).read_text(encoding="utf-8").splitlines()
        cut = [json.loads(line)["messages"][:4] for line in lines]
        short = [messages for messages in cut if sum(len(message["content"].encode()) for message in messages) < 240]
        found += short[: CONVERSATIONS // 2]
    assert len(found) == CONVERSATIONS
    return found


@pytest.fixture(scope="module")
def place(conversations, tmp_path_factory):
    """A directory with a random model, the conversations, and every prompt that ends in an
    assistant's turn.
    """
    place = tmp_path_factory.mktemp("by-heart")
    texts = [message["content"] for messages in conversations for message in messages]
    make_tokenizer(texts, place / "model")
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY_SIZE, num_key_value_heads=4, **shape)).save_pretrained(
        place / "model"
    )
    (place / "input").mkdir()
    write_lines(place / "input" / "conversations.jsonl", [{"messages": messages} for messages in conversations])
    turns = {}
    for messages in conversations:
        for end in (2, 4):
            asked = json.dumps(messages[: end - 1])
            turns.setdefault(asked, []).append(messages[end - 1]["content"])
    # A question that two conversations answer differently has no one answer to learn.
    clear = {asked: answers[0] for asked, answers in turns.items() if len(set(answers)) == 1}
    write_lines(
        place / "prompts.jsonl", [{"messages": json.loads(asked), "answer": answer} for asked, answer in clear.items()]
    )
    return place


def make_tokenizer(texts: list[str], path) -> None:
    """A sentencepiece tokenizer of LLaMA-2's kind, small enough for a CPU to learn its output layer
    within the test.
    """
    path.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(path / "tokenizer"),
        vocab_size=VOCABULARY_SIZE,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.999,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (path / "tokenizer.vocab").unlink()
    LlamaTokenizer(str(path / "tokenizer.model"), legacy=False).save_pretrained(path)


def write_lines(path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def run(project_root, *words: str) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=project_root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.distributed
@pytest.mark.slow
def test_a_model_gives_back_what_it_learned(place, project_root):
    model, data = str(place / "model"), str(place / "data")
    prepare = ["--data_input_dirs", str(place / "input"), "--tokenizer_dir", model, "--data_output_dirs", data]
    run(
        project_root,
        "prepare_sft_dataset.py",
        *prepare,
        "--llama_version",
        "2",
        "--num_spliced_dataset_bins",
        "1",
        "--max_length",
        "512",
    )
    train = [
        "--pretrained",
        model,
        "--dataset",
        f"{data}/arrow/part-00000",
        "--plugin",
        "zero2",
        "--mixed_precision",
        "fp32",
    ]
    train += [
        "--max_length",
        "1024",
        "--accumulation_steps",
        "1",
        "--num_epochs",
        "60",
        "--lr",
        "4e-3",
        "--weight_decay",
        "0",
    ]
    train += ["--save_dir", str(place / "save"), "--tensorboard_dir", str(place / "logs"), "--skip_save_each_epoch"]
    run(project_root, "train.py", *train, "--config_file", str(place / "config.json"))
    asked = [
        "--input_file",
        str(place / "prompts.jsonl"),
        "--output_file",
        str(place / "answers.jsonl"),
        "--do_sample",
        "False",
    ]
    run(
        project_root,
        "inference_example.py",
        *(
            "--model_path",
            str(place / "save" / "modelling"),
            "--device",
            "cpu",
            "--prompt_style",
            "sft",
            "--max_new_tokens",
            "120",
        ),
        *asked,
    )
    answers = [json.loads(line) for line in (place / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    right = [record["generated"].strip() == record["answer"].strip() for record in answers]
    assert len(right) > 90
    assert sum(right) >= 0.95 * len(right), f"{sum(right)} of {len(right)}"
