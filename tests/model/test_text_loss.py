"""What `--eval_file` prints: losses per byte of the very models, comparable between tokenizers."""

import json
import math
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from colossal_llama.model.expansion.text_loss import loss_per_byte, randomise_rows, read_evaluation_text, segments_of
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.errors import UserError


def small_model(rows: int, **settings: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=rows, max_position_embeddings=512, **shape, **settings))


def test_a_uniform_model_pays_the_logarithm_of_its_vocabulary_per_token(llama2):
    tokenizer = load_tokenizer(llama2)
    model = small_model(len(tokenizer))
    torch.nn.init.zeros_(model.lm_head.weight)  # all logits equal
    documents = ["学而时习之,不亦说乎" * 40, "A short one."]
    loss = loss_per_byte(model, tokenizer, documents, "")
    assert loss.bytes == sum(len(document.encode()) for document in documents)
    assert loss.loss_per_byte == pytest.approx(loss.tokens * math.log(len(tokenizer)) / loss.bytes, rel=1e-5)


def test_segments_of_any_length_are_not_given_to_cudnn(llama2):
    """It builds an execution plan for each shape."""
    tokenizer = load_tokenizer(llama2)
    model, seen = small_model(len(tokenizer)), []
    model.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cuda.cudnn_sdp_enabled()))
    loss_per_byte(model, tokenizer, ["A short one."], "")
    assert set(seen) == {False}


def test_segments_are_the_documents_and_always_fit(llama2):
    tokenizer = load_tokenizer(llama2)
    documents = ["𠀀" * 500, "abc" * 700, "x"]  # 𠀀 falls to four bytes
    segments = segments_of(documents, max_positions=512)
    assert "".join(segments) == "".join(documents)
    longest = max(len(tokenizer(segment).input_ids) for segment in segments)
    assert longest == 127 * 4 + 2 <= 512  # BOS and ▁ beside the bytes


def test_records_are_read_to_the_limit(tmp_path):
    path = tmp_path / "text.jsonl"
    lines = [{"text": "一二三"}, {"source": "问", "target": "答"}, {"text": "四"}]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), "utf-8")
    assert read_evaluation_text([path], 1000) == ["一二三", "问答", "四"]
    assert read_evaluation_text([path], 14) == ["一二三", "问"]  # 答 would be cut within a character
    path.write_text('{"text": "a"}\n{"words": "b"}\n')
    with pytest.raises(UserError, match=r"text\.jsonl:2: "):
        read_evaluation_text([path], 1000)


def test_random_rows_have_the_scale_of_the_others_and_leave_them_alone():
    model = small_model(32000, tie_word_embeddings=True)
    with torch.no_grad():
        model.lm_head.weight[:, 0] += 5.0  # a column with a mean of its own
    before = model.lm_head.weight.detach().clone()
    randomise_rows(model, 30000, around_mean=True)
    after = model.lm_head.weight.detach()
    assert torch.equal(after[:30000], before[:30000])
    assert torch.equal(model.get_input_embeddings().weight, after)  # tied: replaced once
    assert torch.allclose(after[30000:].mean(dim=0), before[:30000].mean(dim=0), atol=0.01)
    assert torch.allclose(after[30000:].std(dim=0), before[:30000].std(dim=0), rtol=0.1)
    randomise_rows(model, 30000, around_mean=False)
    assert torch.equal(model.lm_head.weight[:30000], before[:30000])
    assert model.lm_head.weight[30000:].mean(dim=0).tolist() == pytest.approx(
        [before[:30000].mean().item()] * 64, abs=0.1
    )
    assert model.lm_head.weight[30000:].std().item() == pytest.approx(before[:30000].std().item(), rel=0.05)


def test_the_script_reports_the_losses_of_the_models_it_leaves(project_root, llama2, tmp_path):
    text = "开源软件的用户可以使用命令，如果系统有这个文件。" * 10
    (tmp_path / "eval.txt").write_text(text, "utf-8")
    tokenizer = AutoTokenizer.from_pretrained(llama2)
    tokenizer.save_pretrained(tmp_path / "source")
    small_model(len(tokenizer), initializer_range=0.3).save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    proto = ModelProto.FromString((llama2 / "tokenizer.model").read_bytes())
    for i, piece in enumerate(["文件", "系统", "可以", "使用", "用户", "软件", "命令", "开源", "这个", "如果"]):
        proto.pieces.add(piece=piece, score=-100000.0 - i)
    (tmp_path / "tokenizer" / "tokenizer.model").write_bytes(proto.SerializeToString())
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()

    script = project_root / "colossal_llama" / "model" / "init_model.py"
    command = [sys.executable, script, "--source_model_and_tokenizer_path", tmp_path / "source"]
    command += ["--target_tokenizer_path", tmp_path / "tokenizer", "--target_model_path", tmp_path / "target"]
    done = subprocess.run([*command, "--eval_file", tmp_path / "eval.txt"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    losses = json.loads((tmp_path / "target" / "init_report.json").read_text())["evaluation"]
    for name, directory in (("source", tmp_path / "source"), ("initialised", tmp_path / "target")):
        model = AutoModelForCausalLM.from_pretrained(directory)
        expected = loss_per_byte(model, load_tokenizer(directory), [text], "")
        assert losses[name] == pytest.approx(asdict(expected))
    assert losses["source"]["tokens"] > losses["initialised"]["tokens"] == losses["random"]["tokens"]
    assert len({loss["loss_per_byte"] for loss in losses.values()}) == 4
