"""--check: source and export answer in processes of their own; what cannot be loaded is named."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from colossal_llama.export.arguments import CheckArguments, parse_arguments
from colossal_llama.export.check import answer_of, check_export
from colossal_llama.export.directory import export
from colossal_llama.export.source import open_source
from colossal_llama.utils.errors import UserError
from tests.support.client_environments import environment_or_skip

TEXT = "Hi"


@pytest.fixture(scope="module")
def chat_model(random_model_directory, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(random_model_directory, directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = "{{ bos_token }}{% for message in messages %}<{{ message.content }}>{% endfor %}"
    tokenizer.save_pretrained(directory)
    return directory


def test_answers_of_source_and_export_are_compared_and_printed(chat_model, tmp_path, capsys):
    options = ["--check", TEXT, "--check_tokens", "5", "--dtype", "bfloat16"]
    export(parse_arguments(["--model_path", str(chat_model), "--output_dir", str(tmp_path / "out"), *options]))
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "export.json").read_text())["check"]
    assert record["is_chat"]
    assert record["answer_tokens"] == 5
    assert 0 < record["largest_logit_difference"] < record["largest_logit"] / 10
    for side in ("source", "export"):
        assert f"{side}: {record[f'{side}_answer']!r}" in printed
    assert "logits, each in its own dtype, differ by up to" in printed


def test_an_unchanged_export_answers_bit_for_bit_and_a_damaged_one_is_named(random_model_directory, tmp_path, capsys):
    out = tmp_path / "out"
    export(parse_arguments(["--model_path", str(random_model_directory), "--output_dir", str(out)]))
    source, options = open_source(str(random_model_directory), merge=False), CheckArguments(check=TEXT, check_tokens=3)
    record = check_export(options, source, out, None)
    assert record["largest_logit_difference"] == 0
    assert record["is_answer_equal"]
    assert not record["is_chat"]
    assert "equal bit for bit" in capsys.readouterr().out
    (out / "config.json").unlink()
    with pytest.raises(UserError, match=r"--check: the export cannot be loaded by transformers: \S+"):
        check_export(options, source, out, None)


def test_answers_that_differ_are_named_with_the_margin_of_the_source(random_model_directory, tmp_path, capsys):
    out = tmp_path / "out"
    export(parse_arguments(["--model_path", str(random_model_directory), "--output_dir", str(out)]))
    tensors = load_file(out / "model.safetensors")
    tensors["lm_head.weight"] *= -1  # the least probable token becomes the most probable one
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    source, options = open_source(str(random_model_directory), merge=False), CheckArguments(check=TEXT, check_tokens=3)
    record = check_export(options, source, out, None)
    assert not record["is_answer_equal"]
    assert record["equal_answer_tokens"] == 0
    answer = answer_of(options, "the source", source.base, None, source.tokenizer)
    best, second = np.sort(answer.logits[-1])[:-3:-1]
    assert record["margin_where_answers_differ"] == pytest.approx(best - second, abs=1e-5)
    assert "differ after 0 of 3 tokens, where the two most probable tokens are" in capsys.readouterr().out


@pytest.mark.slow
def test_transformers_5_opens_an_export_with_the_same_ids_and_answer(chat_model, project_root, tmp_path, monkeypatch):
    python = environment_or_skip("transformers5", ["transformers==5.24.0"])
    out = tmp_path / "out"
    words = ["--model_path", str(chat_model), "--output_dir", str(out), "--dtype", "float16"]
    export(parse_arguments([*words, "--max_shard_size", "300KB"]))
    source = open_source(str(out), merge=False)
    options = CheckArguments(check="你好, how are you?", check_tokens=16)
    pinned = answer_of(options, "the export", source.base, None, source.tokenizer)
    monkeypatch.delenv("PYTHONPATH", raising=False)  # would come before the environment's own packages
    monkeypatch.setattr(sys, "executable", python)
    newer = answer_of(options, "the export", source.base, None, source.tokenizer)
    assert newer.found["transformers"] == "5.24.0"
    for key in ("prompt_ids", "ids", "text", "is_chat"):
        assert newer.found[key] == pinned.found[key]
    assert np.abs(newer.logits - pinned.logits).max() < 0.01 * np.abs(pinned.logits).max()


@pytest.mark.slow
def test_llama_cpp_answers_from_the_gguf_file_as_transformers(chat_model, project_root, tmp_path):
    python = environment_or_skip("llama_cpp", ["xllamacpp==2026.10.11549", "gguf==0.19.0"])
    out = tmp_path / "out"
    words = ["--model_path", chat_model, "--output_dir", out, "--gguf", "f16", "--check", "Hi", "--check_tokens", "8"]
    command = [python, "colossal_llama/export/export_model.py", *map(str, words)]
    done = subprocess.run(command, cwd=project_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "export.json").read_text())
    assert (out / record["gguf"]["file"]).is_file()
    assert record["check"]["gguf"]["equal_answer_tokens"] == 8
    assert "GGUF (xllamacpp 2026.10.11549)" in done.stdout
