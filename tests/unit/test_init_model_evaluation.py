"""What `--eval_file` prints: the loss per byte is right, and shows that means are worth more than random rows."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from colossal_llama.model.evaluate_text import loss_per_byte, read_evaluation_text, segments_of
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.errors import UserError


def small_model(**settings: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32000, max_position_embeddings=512, **shape, **settings))


def test_a_uniform_model_pays_the_logarithm_of_its_vocabulary_per_token(shared_data):
    tokenizer = load_tokenizer(shared_data / "tokenizers" / "llama2")
    model = small_model()
    torch.nn.init.zeros_(model.lm_head.weight)  # all logits equal
    documents = ["学而时习之,不亦说乎" * 40, "A short one."]
    loss = loss_per_byte(model, tokenizer, documents, "")
    assert loss.bytes == sum(len(document.encode()) for document in documents)
    assert loss.loss_per_byte == pytest.approx(loss.tokens * math.log(32000) / loss.bytes, rel=1e-5)


def test_segments_are_the_documents_and_always_fit(shared_data):
    tokenizer = load_tokenizer(shared_data / "tokenizers" / "llama2")
    documents = ["𠀀" * 500, "abc" * 700, "x"]  # 𠀀 falls to four bytes
    segments = segments_of(documents, max_positions=512)
    assert "".join(segments) == "".join(documents)
    longest = max(len(tokenizer(segment).input_ids) for segment in segments)
    assert longest == 127 * 4 + 2 <= 512  # BOS and ▁ beside the bytes


def test_records_are_read_to_the_limit(tmp_path):
    path = tmp_path / "text.jsonl"
    lines = [{"text": "一二三"}, {"source": "问", "target": "答"}, {"text": "四"}]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), "utf-8")
    assert read_evaluation_text(path, 1000) == ["一二三", "问答", "四"]
    assert read_evaluation_text(path, 14) == ["一二三", "问"]  # 答 would be cut within a character
    path.write_text('{"text": "a"}\n{"words": "b"}\n')
    with pytest.raises(UserError, match="line 2"):
        read_evaluation_text(path, 1000)


def trained_on(tokenizer_directory: Path, text: str, steps: int) -> LlamaForCausalLM:
    """A small model trained on rows of 64 tokens of the text."""
    model = small_model()
    ids = torch.tensor(load_tokenizer(tokenizer_directory)(text, add_special_tokens=False).input_ids)
    rows = ids[: len(ids) // 64 * 64].view(-1, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = rows[torch.randint(len(rows), (4,), generator=generator)]
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_means_are_worth_more_than_random_rows(project_root, shared_data, tmp_path):
    """A model that has learned Chinese characters; its new two-character rows on the same text."""
    llama2 = shared_data / "tokenizers" / "llama2"
    with (shared_data / "pretrain" / "zh_articles" / "zh_articles-000.jsonl").open(encoding="utf-8") as file:
        texts = [json.loads(next(file))["target"] for _ in range(20)]
    AutoTokenizer.from_pretrained(llama2).save_pretrained(tmp_path / "source")
    trained_on(llama2, "\n".join(texts), steps=20).save_pretrained(tmp_path / "source")
    (tmp_path / "eval.txt").write_text("\n".join(texts)[:1500], "utf-8")

    AutoTokenizer.from_pretrained(llama2).save_pretrained(tmp_path / "tokenizer")
    proto = ModelProto.FromString((tmp_path / "tokenizer" / "tokenizer.model").read_bytes())
    for i, piece in enumerate(
        ["文件", "系统", "可以", "一个", "使用", "用户", "我们", "软件", "命令", "开源", "这个", "如果"]
    ):
        proto.pieces.add(piece=piece, score=-100000.0 - i)
    (tmp_path / "tokenizer" / "tokenizer.model").write_bytes(proto.SerializeToString())
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()

    script = project_root / "colossal_llama" / "model" / "init_model.py"
    command = [sys.executable, script, "--source_model_and_tokenizer_path", tmp_path / "source"]
    command += ["--target_tokenizer_path", tmp_path / "tokenizer", "--target_model_path", tmp_path / "target"]
    done = subprocess.run([*command, "--eval_file", tmp_path / "eval.txt"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    losses = json.loads((tmp_path / "target" / "init_report.json").read_text())["evaluation"]
    print(done.stdout)
    assert losses["source"]["tokens"] > losses["initialised"]["tokens"] == losses["random"]["tokens"]
    assert losses["initialised"]["loss_per_byte"] < losses["random"]["loss_per_byte"]
    assert losses["initialised"]["loss_per_byte"] == pytest.approx(losses["source"]["loss_per_byte"], rel=0.1)
