"""inference_example.py as users run it: kinds of prompts, adapters, templates, damaged models."""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from colossal_llama.dataset.chat_template import ChatTemplate
from colossal_llama.dataset.conversation import ConversationTemplate, Message
from colossal_llama.inference.arguments import Sampling
from colossal_llama.inference.generation import TextGenerator
from colossal_llama.inference.prompts import (
    PretrainedPrompt,
    pretrained_prompt,
)
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.checksums import write_checksums
from tests.support.forked import run_forked
from tests.support.scripts import run_script

SCRIPT = "inference_example.py"

cached_tokenizer = functools.cache(load_tokenizer)


def greedy_text(model, tokenizer, prompt_ids: list[int], max_new_tokens: int) -> str:
    sampling = Sampling(do_sample=False, max_new_tokens=max_new_tokens)
    return TextGenerator(model, tokenizer).answer(prompt_ids, {2}, sampling).finish().text


def infer(project_root: Path, *options: object, stdin: str = "") -> subprocess.CompletedProcess:
    return run_script(project_root, SCRIPT, *options, input=stdin)


def test_script_completes_and_answers(project_root, random_model_directory, random_model, llama2):
    common = ("--model_path", random_model_directory, "--device", "cpu", "--do_sample", "no", "--max_new_tokens", 12)
    tokenizer = cached_tokenizer(llama2)
    template = ConversationTemplate.for_llama(tokenizer, 2)
    cases = {
        "pretrained": PretrainedPrompt(tokenizer).ids(pretrained_prompt("床前明月光")),
        "sft": template.prompt_ids([Message("human", "床前明月光")]),
    }
    for style, prompt in cases.items():
        done = run_forked(project_root, SCRIPT, *common, "--input_txt", "床前明月光", "--prompt_style", style)
        assert done.returncode == 0, done.stderr
        assert done.stdout == greedy_text(random_model, tokenizer, prompt, 12) + "\n"
        assert "12 tokens in" in done.stderr
        assert "tokens/s" in done.stderr


def test_script_answers_a_file_repeatably(project_root, random_model_directory, tmp_path):
    records = [{"messages": [{"from": "human", "content": f"问题 {i}"}], "id": i} for i in range(3)]
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps(record) for record in records), "utf-8")
    common = ["--model_path", random_model_directory, "--device", "cpu", "--prompt_style", "sft", "--max_new_tokens", 6]
    outputs = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        files = ("--input_file", tmp_path / "in.jsonl", "--output_file", tmp_path / f"{name}.jsonl")
        done = run_forked(project_root, SCRIPT, *common, *files, "--seed", seed, "--temperature", 2)
        assert done.returncode == 0, done.stderr
        assert "tokens/s" in done.stderr
        outputs.append([json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text("utf-8").splitlines()])
    assert [{"messages": o["messages"], "id": o["id"]} for o in outputs[0]] == records
    assert outputs[0] == outputs[1]
    assert outputs[1] != outputs[2]
    report = json.loads((tmp_path / "a.report.json").read_text())
    assert report["generated_tokens"] == sum(o["generated_tokens"] for o in outputs[0])
    assert report["reused_prompt_tokens"] > 0  # the system sentence
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_script_says_apart_from_the_answer_what_was_edited_and_refuses_changed_weights(
    project_root, random_model_directory, tmp_path
):
    model = shutil.copytree(random_model_directory, tmp_path / "model")
    write_checksums(model, {})
    options = ("--model_path", model, "--device", "cpu", "--do_sample", "no", "--max_new_tokens", 4, "--input_txt", "a")
    whole = run_forked(project_root, SCRIPT, *options)
    (model / "generation_config.json").write_text('{"top_p": 0.9}')
    edited = run_forked(project_root, SCRIPT, *options)
    assert (edited.returncode, edited.stdout) == (0, whole.stdout)
    assert "was edited or is damaged: generation_config.json" in edited.stderr
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (model / "model.safetensors").write_bytes(content)
    changed = run_forked(project_root, SCRIPT, *options)
    assert (changed.returncode, changed.stdout) == (2, "")
    assert "the content of model.safetensors is not what was written" in changed.stderr


def test_chat_leaves_out_a_line_that_is_no_text(project_root, random_model_directory, tmp_path):
    """And says nothing of settings in the model's files that it does not use."""
    model = shutil.copytree(random_model_directory, tmp_path / "model")
    settings = {"do_sample": False, "temperature": 0.6, "top_p": 0.9}
    (model / "generation_config.json").write_text(json.dumps(settings))
    options = ("--device", "cpu", "--do_sample", "False", "--max_new_tokens", "4", "--interactive")
    command = [sys.executable, project_root / "inference_example.py", "--model_path", model, *options]
    environment = {**os.environ, "PYTHONUTF8": "1"}
    done = subprocess.run(command, input=b"hi \xff\nhello\n", capture_output=True, env=environment, check=False)
    said = done.stderr.decode()
    assert done.returncode == 0, said
    assert said.count("that line holds bytes that are not utf-8 and is left out") == 1
    assert "do_sample" not in said
    assert done.stdout.count(b"Assistant: ") == 1


def test_script_chats_with_history(project_root, random_model_directory, random_model, llama2):
    stdin = "你好\n\nsecond question\n/reset\n你好\n/exit\nnever read\n"
    options = ("--device", "cpu", "--do_sample", "False", "--max_new_tokens", 8, "--system", "Be brief.")
    done = run_forked(
        project_root, SCRIPT, "--model_path", random_model_directory, "--interactive", *options, stdin=stdin
    )
    assert done.returncode == 0, done.stderr

    tokenizer = cached_tokenizer(llama2)
    template = ConversationTemplate.for_llama(tokenizer, 2)

    def answer(*messages: Message) -> str:
        return greedy_text(random_model, tokenizer, template.prompt_ids(messages), 8)

    opening = (Message("system", "Be brief."), Message("human", "你好"))
    first = answer(*opening)
    second = answer(*opening, Message("assistant", first), Message("human", "second question"))
    assert done.stdout == f"Assistant: {first}\nAssistant: {second}\nAssistant: {first}\n"
    assert "a new conversation" in done.stderr


CHATML = (
    "{% for m in messages %}{{ bos_token }}{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token }}assistant\n{% endif %}"
)


def test_script_uses_a_chat_template(project_root, random_model_directory, random_model, llama2, tmp_path):
    (tmp_path / "chat.jinja").write_text(CHATML)
    tokenizer = cached_tokenizer(llama2)
    prompt = ChatTemplate.open(tokenizer, str(tmp_path / "chat.jinja"), date="2026-01-01").prompt_ids(
        [Message("human", "你好")]
    )
    options = (
        "--device",
        "cpu",
        "--do_sample",
        "False",
        "--max_new_tokens",
        8,
        "--prompt_style",
        "sft",
        "--input_txt",
        "你好",
    )
    done = run_forked(
        project_root,
        SCRIPT,
        "--model_path",
        random_model_directory,
        *options,
        "--chat_template",
        tmp_path / "chat.jinja",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == greedy_text(random_model, tokenizer, prompt, 8) + "\n"

    (tmp_path / "strict.jinja").write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system message, please') }}{% endif %}" + CHATML
    )
    strict = ("--chat_template", tmp_path / "strict.jinja", "--system", "Be brief.")
    done = run_forked(project_root, SCRIPT, "--model_path", random_model_directory, *options, *strict)
    assert done.returncode == 2
    assert "no system message, please" in done.stderr
    assert "Traceback" not in done.stderr


def test_script_runs_an_adapter(project_root, random_model_directory, random_model, llama2, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(random_model_directory)
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(base, config)
    adapted.peft_config["default"].base_model_name_or_path = str(random_model_directory)
    adapted.save_pretrained(tmp_path / "adapter")

    tokenizer = cached_tokenizer(llama2)
    prompt = PretrainedPrompt(tokenizer).ids(pretrained_prompt("abc"))
    with_adapter = greedy_text(adapted.eval(), tokenizer, prompt, 12)
    assert with_adapter != greedy_text(random_model, tokenizer, prompt, 12)
    options = ("--device", "cpu", "--do_sample", "0", "--max_new_tokens", 12, "--input_txt", "abc")
    done = run_forked(project_root, SCRIPT, "--model_path", tmp_path / "adapter", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout == with_adapter + "\n"
    assert isinstance(adapted, PeftModel)

    config_path = tmp_path / "adapter" / "adapter_config.json"
    config_path.write_text(config_path.read_text().replace(str(random_model_directory), "/gone/base"))
    done = run_forked(project_root, SCRIPT, "--model_path", tmp_path / "adapter", *options)
    assert done.returncode == 2
    assert "cannot be found: /gone/base" in done.stderr
    assert "Traceback" not in done.stderr


def test_script_says_that_it_runs_on_the_cpu(project_root, random_model_directory):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    options = ("--model_path", random_model_directory, "--input_txt", "x", "--max_new_tokens", 1)
    done = infer(project_root, *options)
    assert done.returncode == 0, done.stderr
    assert "running on the CPU" in done.stderr
    done = infer(project_root, *options, "--device", "cuda:0")
    assert done.returncode == 2
    assert "--device cuda:0 cannot be used here" in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_arguments_are_refused_together(project_root, tmp_path):
    (tmp_path / "taken.jsonl").touch()
    options = ("--temperature", "-1", "--do_sample", "perhaps", "--system", "x", "--input_txt", "y", "--interactive")
    done = infer(project_root, "--model_path", "m", *options, "--prompt_style", "pretrained")
    assert done.returncode == 2
    for part in ("--temperature", "'perhaps' is neither", "--input_txt and --interactive", "does not take turns"):
        assert part in done.stderr
    done = infer(project_root, "--model_path", "m", "--output_file", tmp_path / "taken.jsonl", "--llama_version", "2")
    for part in ("no prompt is given", "go together", "exists already", "--llama_version belongs to"):
        assert part in done.stderr


def test_bad_prompt_lines_are_named_before_the_model_is_loaded(project_root, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"source": "a"}\n{"text": "b"}\n\n{"source": 3}\n{', "utf-8")
    files = ("--input_file", tmp_path / "in.jsonl", "--output_file", tmp_path / "out.jsonl")
    done = infer(project_root, "--model_path", tmp_path / "nowhere", "--device", "cpu", *files)
    assert done.returncode == 2
    assert [f"line {n}:" in done.stderr for n in range(1, 6)] == [False, True, False, True, True]
    assert not (tmp_path / "out.jsonl").exists()


def test_hub_names_use_the_local_copy_and_are_refused_without_one(
    project_root, tmp_path, random_model_directory, monkeypatch
):
    """The hub's cache layout, offline: a name with a local copy runs, another is refused."""
    repository = tmp_path / "hub" / "models--someone--random"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(random_model_directory)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options = ("--device", "cpu", "--input_txt", "x", "--max_new_tokens", 1)
    done = infer(project_root, "--model_path", "someone/random", *options)
    assert done.returncode == 0, done.stderr
    done = infer(project_root, "--model_path", "someone/other", *options)
    assert done.returncode == 2
    assert "someone/other is neither a directory nor a model" in done.stderr
    assert "Traceback" not in done.stderr
