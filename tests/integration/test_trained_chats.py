"""A fine-tuned model tells every program how it is spoken to, and stops by itself: plain
transformers, of the pinned version and of version 5, whatever the stage it comes from.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from colossal_llama.dataset.conversation import ConversationTemplate, Message
from colossal_llama.dataset.template_presets import PRESETS
from colossal_llama.dataset.trained_format import builtin_version
from colossal_llama.inference.api import open_model
from colossal_llama.inference.arguments import Sampling
from colossal_llama.inference.prompts import open_template
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.checksums import differences, read_checksums
from tests.dataset.test_trained_format import conversations, listed
from tests.support.client_environments import environment_or_skip

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SYSTEM = "A chat between a curious traveller and a guide. The guide's answers are short."
QUESTION, ANSWER = "What is green?", "Green is a colour."
ONE_PART = ("--num_spliced_dataset_bins", 1, "--max_length", 256)
BASES = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"
CLIENT = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
directory, asked = sys.argv[1], json.loads(open(sys.argv[2], encoding="utf-8").read())
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForCausalLM.from_pretrained(directory)
ids = [tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) for messages in asked]
inputs = tokenizer.apply_chat_template(asked[0], add_generation_prompt=True, return_dict=True, return_tensors="pt")
output = model.generate(**inputs)[0, inputs["input_ids"].shape[1]:].tolist()
print("RESULT" + json.dumps([ids, output, tokenizer.decode(output, skip_special_tokens=True)]))
"""


def run(*words, python=sys.executable, path: str = "") -> str:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, *map(str, words)], env=environment, capture_output=True, text=True, check=False, cwd=path or None
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def place(made_data, project_root, tmp_path_factory) -> Path:
    """A random model of LLaMA-3's base kind, with a template that it was not trained with, and one
    conversation, in the built-in format (`data`) and in LLaMA-3's own (`preset`).
    """
    place = tmp_path_factory.mktemp("chats")
    tokenizer = load_tokenizer(made_data / "tokenizers" / "llama3-base")
    tokenizer.chat_template = BASES
    tokenizer.save_pretrained(place / "base")
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape, **ids)).save_pretrained(place / "base")
    (place / "input").mkdir()
    messages = [{"from": "human", "content": QUESTION}, {"from": "assistant", "content": ANSWER}]
    (place / "input" / "one.jsonl").write_text((json.dumps({"messages": messages}) + "\n") * 4)
    formats = {"data": (), "preset": ("--chat_template", "llama3-instruct"), "guided": ("--system", SYSTEM)}
    formats["guided_preset"] = (*formats["preset"], *formats["guided"])
    for name, options in formats.items():
        common = ("--data_input_dirs", "input", "--tokenizer_dir", "base", "--data_output_dirs", name)
        run(
            project_root / "prepare_sft_dataset.py",
            *common,
            "--max_length",
            256,
            "--num_spliced_dataset_bins",
            1,
            *options,
            path=str(place),
        )
    return place


def train(project_root, place: Path, name: str, base: str | Path, data: str, *options) -> Path:
    words = ["--pretrained", base, "--dataset", f"{data}/arrow/part-00000", "--plugin", "ddp"]
    words += ["--mixed_precision", "fp32", "--max_length", 256, "--accumulation_steps", 1, "--micro_batch_size", 4]
    words += ["--weight_decay", 0, "--lr", 1e-2, "--num_epochs", 30, "--skip_save_each_epoch", "--save_interval", 1000]
    words += ["--save_dir", name, "--tensorboard_dir", f"{name}/logs", "--config_file", f"{name}.json", *options]
    run(project_root / "train.py", *words, path=str(place))
    return place / name


@pytest.fixture(scope="module")
def tuned(place, project_root) -> Path:
    return train(project_root, place, "tuned", "base", "data", "--save_interval", 20)


def check_answer(result: list, directory: Path) -> None:
    _, output, text = result
    assert text == ANSWER
    assert output[-1] == load_tokenizer(directory).convert_tokens_to_ids("<|eot_id|>")


def ask(directory: Path, asked: Path, python=sys.executable) -> list:
    said = run("-c", CLIENT, directory, asked, python=python)
    return json.loads(said.partition("RESULT")[2])


@pytest.fixture(scope="module")
def asked(place) -> Path:
    """Conversations that other programs shall make ids of; the first is the one that is known."""
    known = [{"role": "user", "content": QUESTION}]
    (place / "asked.json").write_text(json.dumps([known, *map(listed, conversations(300))]), encoding="utf-8")
    return place / "asked.json"


@pytest.mark.parametrize("client", ["pinned", "transformers5"])
def test_a_model_stops_at_the_turns_end_without_any_argument(tuned, asked, client):
    python = sys.executable
    if client == "transformers5":
        python = environment_or_skip("transformers5", ["transformers==5.24.0"])
    directory = tuned / "modelling"
    result = ask(directory, asked, python)
    check_answer(result, directory)
    template = ConversationTemplate.for_llama(load_tokenizer(directory), 3)
    known = [template.prompt_ids(messages) for messages in conversations(300)]
    assert result[0][1:] == known


def test_every_directory_of_the_run_carries_both(tuned, place):
    (checkpoint,) = tuned.glob("epoch-*")
    eos = GenerationConfig.from_pretrained(place / "base").eos_token_id
    for directory in (tuned / "modelling", checkpoint / "modelling"):
        tokenizer = AutoTokenizer.from_pretrained(directory)
        assert builtin_version(tokenizer.chat_template) == 3
        stops = GenerationConfig.from_pretrained(directory).eos_token_id
        assert stops == [eos, tokenizer.convert_tokens_to_ids("<|eot_id|>")]
        assert differences(directory, read_checksums(directory)) == []


def test_later_stages_keep_it_right(tuned, place, project_root, asked):
    """Resumed; LoRA on the base, merged; then on another format; then on documents."""
    (checkpoint,) = tuned.glob("epoch-*")
    resumed = train(project_root, place, "resumed", "base", "data", "--load_checkpoint", checkpoint)
    check_answer(ask(resumed / "modelling", asked), resumed / "modelling")

    lora = train(project_root, place, "lora", "base", "data", "--lora_rank", 4, "--merge_lora")
    for directory in (lora / "modelling", lora / "modelling_merged"):
        assert builtin_version(AutoTokenizer.from_pretrained(directory).chat_template) == 3
        assert len(GenerationConfig.from_pretrained(directory).eos_token_id) == 2
        assert differences(directory, read_checksums(directory)) == []

    second = train(project_root, place, "second", "tuned/modelling", "preset")
    assert AutoTokenizer.from_pretrained(second / "modelling").chat_template == PRESETS["llama3-instruct"].source
    check_answer(ask(second / "modelling", asked), second / "modelling")

    records = [{"source": "", "target": "Some text.", "category": "text"}] * 4
    (place / "documents").mkdir()
    (place / "documents" / "text.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    common = (
        "--data_input_dirs",
        "documents",
        "--tokenizer_dir",
        "second/modelling",
        "--data_output_dirs",
        "text",
        "--max_length",
        256,
    )
    run(project_root / "prepare_pretrain_dataset.py", *common, *ONE_PART, path=str(place))
    third = train(project_root, place, "third", "second/modelling", "text", "--num_epochs", 1)
    for name in ("chat_template", "init_kwargs"):
        pair = [getattr(AutoTokenizer.from_pretrained(run / "modelling"), name) for run in (second, third)]
        if name == "init_kwargs":
            pair = [values["trained_chat_template_fingerprint"] for values in pair]
        assert pair[0] == pair[1]
    kept = [GenerationConfig.from_pretrained(run / "modelling").eos_token_id for run in (second, third)]
    assert kept[0] == kept[1]

    words = ("--load_checkpoint", "lora/modelling", "--lora_rank", 4, "--num_epochs", 1)
    continued = train(project_root, place, "continued", "base", "text", *words)
    assert builtin_version(AutoTokenizer.from_pretrained(continued / "modelling").chat_template) == 3
    assert len(GenerationConfig.from_pretrained(continued / "modelling").eos_token_id) == 2


def test_a_model_is_continued_with_the_system_prompt_of_its_own_suite(place, project_root, asked):
    """Full training and LoRA, in both kinds of formats: other programs and ours ask with it."""
    chat = [Message("human", QUESTION)]
    for data, options in (("guided", ()), ("guided_preset", ("--lora_rank", 4, "--lr", 3e-2, "--merge_lora"))):
        run = train(project_root, place, f"tuned_{data}", place / "base", data, *options)
        merged = run / ("modelling_merged" if options else "modelling")
        check_answer(ask(merged, asked), merged)
        for directory in {run / "modelling", merged}:
            tokenizer = load_tokenizer(directory)
            theirs = tokenizer.apply_chat_template(listed(chat), add_generation_prompt=True, return_dict=False)
            assert open_template(tokenizer, None, None).prompt_ids(chat) == theirs
            assert tokenizer.decode(theirs).count(SYSTEM) == 1
            model = open_model(directory, device="cpu", prompt_style="sft", warn=pytest.fail)
            assert model.complete(QUESTION, Sampling(do_sample=False, max_new_tokens=40)) == ANSWER
            without = open_model(directory, device="cpu", prompt_style="sft", system="", warn=pytest.fail)
            assert SYSTEM not in tokenizer.decode(without._encode(QUESTION)[0])


def test_the_saved_template_prepares_the_same_rows(tuned, place, project_root):
    """Others train with it, and so may we: `--chat_template tokenizer` gives the built-in rows."""
    common = (
        "--data_input_dirs",
        "input",
        "--tokenizer_dir",
        "tuned/modelling",
        "--data_output_dirs",
        "again",
        "--max_length",
        256,
    )
    options = (*ONE_PART, "--chat_template", "tokenizer")
    run(project_root / "prepare_sft_dataset.py", *common, *options, path=str(place))
    rows = [(place / name / "jsonl" / "part-00000.jsonl").read_text() for name in ("data", "again")]
    assert rows[0] == rows[1]


def test_a_model_of_the_base_does_not_stop_there(tuned, place):
    """The check above fails without the written settings."""
    model = AutoModelForCausalLM.from_pretrained(tuned / "modelling")
    model.generation_config = GenerationConfig.from_pretrained(place / "base")
    tokenizer = AutoTokenizer.from_pretrained(tuned / "modelling")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt"
    )
    output = model.generate(ids, max_new_tokens=40)[0, ids.shape[1] :].tolist()
    assert tokenizer.convert_tokens_to_ids("<|eot_id|>") in output[:-1]
