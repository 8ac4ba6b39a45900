"""Inference as users run it: prompts as in preparation, whole characters, a cache that changes nothing, three ways to ask."""

import functools
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from colossal_llama.dataset.chat_template import ChatTemplate
from colossal_llama.dataset.conversation import ConversationTemplate, Message
from colossal_llama.dataset.records import conversation_of
from colossal_llama.inference.batch import answer_all
from colossal_llama.inference.chat import chat
from colossal_llama.inference.prompts import (
    PretrainedPrompt,
    conversation_prompt_ids,
    messages_of,
    pretrained_prompt,
    within_positions,
)
from colossal_llama.model.adapter_files import adapter_base_path, adapter_settings
from colossal_llama.model.generation import Sampling, StreamingDecoder, TextGenerator, find_model, load_for_inference
from colossal_llama.tokenizer.encoding import TextEncoder
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.errors import UserError

GREEDY = Sampling(do_sample=False, temperature=1.0, top_k=0, top_p=1.0)
FAMILIES = ("llama2", "llama3-base")
TEXTS = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("你好人工智能 ，龘😀👩‍👩‍👧 ▁é\n")), max_size=30)

cached_tokenizer = functools.cache(load_tokenizer)
cached_encoder = functools.cache(lambda directory: TextEncoder(cached_tokenizer(directory)))


@pytest.fixture(scope="module")
def llama2(shared_data: Path) -> Path:
    return shared_data / "tokenizers" / "llama2"


@pytest.fixture(scope="module")
def model_directory(llama2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaMA of two layers with LLaMA-2's tokenizer: what it says is noise, and full of broken characters."""
    directory = tmp_path_factory.mktemp("model") / "random"
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32000, max_position_embeddings=400, initializer_range=0.3, **shape))
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(llama2).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def model(model_directory: Path) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(model_directory).eval()


def run_script(project_root: Path, *options: object, stdin: str = "") -> subprocess.CompletedProcess:
    command = [sys.executable, project_root / "inference_example.py", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, input=stdin, cwd="/", check=False)


# ------------------------------------------------------------------------------------------------------ streaming


@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_text_is_the_text_in_whole_characters(shared_data, family):
    tokenizer = cached_tokenizer(shared_data / "tokenizers" / family)
    encoder = cached_encoder(shared_data / "tokenizers" / family)

    @settings(max_examples=150, deadline=None)
    @given(TEXTS)
    def holds(text: str) -> None:
        decoder = StreamingDecoder(tokenizer)
        pieces = [decoder.push(i) for i in encoder.encode_continuation([text])[0]]
        # A replacement character of the text's own may be held back at its end, like bytes that are not whole yet.
        assert "".join(pieces) == text.rstrip("\ufffd") or "".join(pieces) == text
        if "\ufffd" not in text:
            assert not any("\ufffd" in piece for piece in pieces)

    holds()


def test_a_character_is_shown_when_its_last_byte_is_there(llama2):
    tokenizer = cached_tokenizer(llama2)
    ids = tokenizer.convert_tokens_to_ids(["好", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "<0xE9>", "<0xBE>", "▁", "▁x"])
    decoder = StreamingDecoder(tokenizer)
    assert [decoder.push(i) for i in ids[:7]] == ["好", "", "", "", "😀", "", ""]
    assert decoder.push(ids[7]).endswith(" ")  # the two bytes will never be a character, and do not block what follows
    assert decoder.push(ids[8]) == " x"


# ------------------------------------------------------------------------------------------------ generation, cache


def test_answers_equal_plain_generation(model, llama2):
    tokenizer = cached_tokenizer(llama2)
    generator = TextGenerator(model, tokenizer, {tokenizer.eos_token_id}, GREEDY, max_new_tokens=40)
    prompt = PretrainedPrompt(tokenizer).ids(pretrained_prompt("明月松间照，"))
    shown: list[str] = []
    answer = generator.generate(prompt, shown.append)
    plain = model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)[0, len(prompt) :].tolist()
    assert answer.token_ids == plain
    assert "".join(shown) == answer.text
    assert (answer.stopped, len(answer.token_ids)) == ("length", 40)


def test_only_the_command_line_decides_how_tokens_are_chosen(model, llama2, monkeypatch):
    prompt = PretrainedPrompt(cached_tokenizer(llama2)).ids("x")
    generator = TextGenerator(model, cached_tokenizer(llama2), {2}, GREEDY, max_new_tokens=8)
    expected = generator.generate(prompt).token_ids
    forbidden = [[token] for token in expected]
    monkeypatch.setattr(model.generation_config, "bad_words_ids", forbidden)
    assert generator.generate(prompt).token_ids == expected
    assert not set(expected) & set(model.generate(torch.tensor([prompt]), max_new_tokens=8)[0, len(prompt) :].tolist())


def test_the_cache_is_reused_and_changes_nothing(model, llama2):
    """Turns of a chat: the second prompt continues the first one's tokens; then one that shares the opening only."""
    tokenizer = cached_tokenizer(llama2)
    template = ConversationTemplate.for_llama(tokenizer, 2)
    stop_ids = {tokenizer.eos_token_id, template.turn_end_id}
    kept = TextGenerator(model, tokenizer, stop_ids, GREEDY, max_new_tokens=12)
    messages: list[Message] = []
    for question in ("你好，你是谁？", "And what can you do?", "谢谢"):
        messages.append(Message("human", question))
        prompt = template.prompt_ids(messages)
        answer = kept.generate(prompt)
        fresh = TextGenerator(model, tokenizer, stop_ids, GREEDY, max_new_tokens=12).generate(prompt)
        assert answer.token_ids == fresh.token_ids
        assert fresh.reused_tokens == 0
        if len(messages) > 1:
            assert answer.reused_tokens >= len(template.prompt_ids(messages[:-2]))
        messages.append(Message("assistant", answer.text))
    other = template.prompt_ids([Message("human", "something else")])
    answer = kept.generate(other)
    assert 0 < answer.reused_tokens < len(other)
    assert answer.token_ids == TextGenerator(model, tokenizer, stop_ids, GREEDY, 12).generate(other).token_ids
    again = kept.generate(other)
    assert again.reused_tokens == len(other) - 1
    assert again.token_ids == answer.token_ids


def test_a_stop_token_ends_the_answer_and_is_not_shown(model, llama2):
    tokenizer = cached_tokenizer(llama2)
    prompt = PretrainedPrompt(tokenizer).ids("x")
    free = TextGenerator(model, tokenizer, {tokenizer.eos_token_id}, GREEDY, 8).generate(prompt)
    stop = free.token_ids[3]
    first = free.token_ids.index(stop)
    stopped = TextGenerator(model, tokenizer, {stop}, GREEDY, 8).generate(prompt)
    assert stopped.token_ids == free.token_ids[: first + 1]
    assert stopped.stopped == "end"
    assert free.text.startswith(stopped.text)


def test_an_interrupted_answer_leaves_no_trace(model, llama2):
    tokenizer = cached_tokenizer(llama2)
    prompt, other = (PretrainedPrompt(tokenizer).ids(text) for text in ("x y z", "x y and something else"))
    generator = TextGenerator(model, tokenizer, {2}, GREEDY, 8)
    expected = generator.generate(other).token_ids
    generator.generate(prompt)

    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generator.generate(prompt, interrupt)
    again = generator.generate(other)
    assert again.token_ids == expected
    assert again.reused_tokens > 0


def test_a_prompt_beyond_the_models_positions_is_refused(model, llama2):
    generator = TextGenerator(model, cached_tokenizer(llama2), {2}, GREEDY, 8)
    with pytest.raises(UserError, match="400 positions"):
        generator.generate([1] * 400)
    assert len(generator.generate([1] * 398).token_ids) == 2


# --------------------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("family", FAMILIES)
def test_pretrained_prompt_is_the_beginning_of_the_prepared_document(project_root, shared_data, tmp_path, family):
    directory = shared_data / "tokenizers" / family
    sources = [pretrained_prompt(text) for text in ("明月松间照，", " two words", "a <s> b", "")]
    (tmp_path / "in").mkdir()
    records = [{"source": source, "target": "清泉石上流。", "category": "poems"} for source in sources]
    (tmp_path / "in" / "poems.jsonl").write_text("\n".join(json.dumps(record) for record in records), "utf-8")
    command = [sys.executable, project_root / "prepare_pretrain_dataset.py", "--tokenizer_dir", directory]
    command += ["--data_input_dirs", tmp_path / "in", "--data_output_dirs", tmp_path / "out"]
    subprocess.run([*command, "--num_spliced_dataset_bins", "1"], check=True, capture_output=True)
    row = json.loads((tmp_path / "out" / "jsonl" / "part-00000.jsonl").read_text("utf-8"))
    tokenizer = cached_tokenizer(directory)
    starts = [i for i, token in enumerate(row["input_ids"]) if token == tokenizer.bos_token_id]
    documents = [row["input_ids"][a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
    assert len(documents) == len(sources)
    for source in sources:
        prompt = PretrainedPrompt(tokenizer).ids(source)
        assert any(document[: len(prompt)] == prompt for document in documents), source


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"from": "human", "content": "Q1"}, {"from": "assistant", "content": "A1"}]},
        {
            "conversations": [
                {"role": "user", "value": "Q1"},
                {"role": "gpt", "value": "A1"},
                {"role": "user", "value": "Q2"},
            ]
        },
        {"instruction": "Q1", "input": "more", "output": "A1", "system": "Be brief."},
        {"instruction": "Q1"},
    ],
)
def test_sft_prompt_is_the_beginning_of_the_prepared_conversation(llama2, record):
    template = ConversationTemplate.for_llama(cached_tokenizer(llama2), 2)
    messages = messages_of(record)
    assert messages[-1].role == "human"
    prompt = template.prompt_ids(messages)
    answered = [*messages, Message("assistant", "A1")]
    assert template.encode(answered).input_ids[: len(prompt)] == prompt
    if "output" in record:
        assert template.encode(list(conversation_of(record).messages)).input_ids[: len(prompt)] == prompt


def test_a_long_chat_forgets_its_oldest_exchanges(llama2):
    template = ConversationTemplate.for_llama(cached_tokenizer(llama2), 2)
    exchange = [Message("human", "What is this? " * 5), Message("assistant", "A long answer. " * 5)]
    messages = [Message("system", "Be brief."), *exchange * 6, Message("human", "And now?")]
    kept, left_out = within_positions(template, messages, 200)
    assert (kept[0], kept[-1]) == (messages[0], messages[-1])
    assert len(template.prompt_ids(kept)) <= 200 < len(template.prompt_ids([kept[0], *exchange, *kept[1:]]))
    assert left_out == len(messages) - len(kept)
    assert left_out % 2 == 0
    assert within_positions(template, messages, 10**6) == (messages, 0)


def test_a_question_that_is_too_long_leaves_the_conversation_as_it_was(model, llama2, monkeypatch):
    template = ConversationTemplate.for_llama(cached_tokenizer(llama2), 2)
    generator = TextGenerator(model, cached_tokenizer(llama2), {2}, GREEDY, 4)
    prompts = []
    generate = generator.generate
    monkeypatch.setattr(generator, "generate", lambda ids, show: (prompts.append(ids), generate(ids, show))[1])
    too_long = "word " * generator.max_positions
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"first\n{too_long}\nthird\n"))
    said = []
    first, _ = chat(generator, template, None, lambda text: None, said.append)
    assert any("positions" in text for text in said)
    messages = [Message("human", "first"), Message("assistant", first.text), Message("human", "third")]
    assert prompts[-1] == conversation_prompt_ids(template, messages)


# ------------------------------------------------------------------------------------------------------ the script


def test_script_completes_and_answers(project_root, model_directory, model, llama2):
    common = ("--model_path", model_directory, "--device", "cpu", "--do_sample", "no", "--max_new_tokens", 12)
    tokenizer = cached_tokenizer(llama2)
    template = ConversationTemplate.for_llama(tokenizer, 2)
    cases = {
        "pretrained": PretrainedPrompt(tokenizer).ids(pretrained_prompt("床前明月光")),
        "sft": template.prompt_ids([Message("human", "床前明月光")]),
    }
    for style, prompt in cases.items():
        done = run_script(project_root, *common, "--input_txt", "床前明月光", "--prompt_style", style)
        assert done.returncode == 0, done.stderr
        assert done.stdout == TextGenerator(model, tokenizer, {2}, GREEDY, 12).generate(prompt).text + "\n"
        assert "12 tokens in" in done.stderr
        assert "tokens/s" in done.stderr


def test_script_answers_a_file_repeatably(project_root, model_directory, tmp_path):
    records = [{"messages": [{"from": "human", "content": f"问题 {i}"}], "id": i} for i in range(3)]
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps(record) for record in records), "utf-8")
    common = ["--model_path", model_directory, "--device", "cpu", "--prompt_style", "sft", "--max_new_tokens", 6]
    outputs = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        files = ("--input_file", tmp_path / "in.jsonl", "--output_file", tmp_path / f"{name}.jsonl")
        done = run_script(project_root, *common, *files, "--seed", seed, "--temperature", 2)
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


def test_script_chats_with_history(project_root, model_directory, model, llama2):
    stdin = "你好\n\nsecond question\n/reset\n你好\n/exit\nnever read\n"
    options = ("--device", "cpu", "--do_sample", "False", "--max_new_tokens", 8, "--system", "Be brief.")
    done = run_script(project_root, "--model_path", model_directory, "--interactive", *options, stdin=stdin)
    assert done.returncode == 0, done.stderr

    tokenizer = cached_tokenizer(llama2)
    template = ConversationTemplate.for_llama(tokenizer, 2)

    def answer(*messages: Message) -> str:
        return TextGenerator(model, tokenizer, {2}, GREEDY, 8).generate(template.prompt_ids(messages)).text

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


def test_script_uses_a_chat_template(project_root, model_directory, model, llama2, tmp_path):
    (tmp_path / "chat.jinja").write_text(CHATML)
    tokenizer = cached_tokenizer(llama2)
    prompt = ChatTemplate.open(tokenizer, str(tmp_path / "chat.jinja")).prompt_ids([Message("human", "你好")])
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
    done = run_script(
        project_root, "--model_path", model_directory, *options, "--chat_template", tmp_path / "chat.jinja"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == TextGenerator(model, tokenizer, {2}, GREEDY, 8).generate(prompt).text + "\n"

    (tmp_path / "strict.jinja").write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system message, please') }}{% endif %}" + CHATML
    )
    strict = ("--chat_template", tmp_path / "strict.jinja", "--system", "Be brief.")
    done = run_script(project_root, "--model_path", model_directory, *options, *strict)
    assert done.returncode == 2
    assert "no system message, please" in done.stderr
    assert "Traceback" not in done.stderr


def test_script_runs_an_adapter(project_root, model_directory, model, llama2, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(model_directory)
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(base, config)
    adapted.peft_config["default"].base_model_name_or_path = str(model_directory)
    adapted.save_pretrained(tmp_path / "adapter")

    tokenizer = cached_tokenizer(llama2)
    prompt = PretrainedPrompt(tokenizer).ids(pretrained_prompt("abc"))
    with_adapter = TextGenerator(adapted.eval(), tokenizer, {2}, GREEDY, 12).generate(prompt).text
    assert with_adapter != TextGenerator(model, tokenizer, {2}, GREEDY, 12).generate(prompt).text
    options = ("--device", "cpu", "--do_sample", "0", "--max_new_tokens", 12, "--input_txt", "abc")
    done = run_script(project_root, "--model_path", tmp_path / "adapter", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout == with_adapter + "\n"
    assert isinstance(adapted, PeftModel)

    config_path = tmp_path / "adapter" / "adapter_config.json"
    config_path.write_text(config_path.read_text().replace(str(model_directory), "/gone/base"))
    done = run_script(project_root, "--model_path", tmp_path / "adapter", *options)
    assert done.returncode == 2
    assert "cannot be found: /gone/base" in done.stderr
    assert "Traceback" not in done.stderr


def test_script_says_that_it_runs_on_the_cpu(project_root, model_directory):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    options = ("--model_path", model_directory, "--input_txt", "x", "--max_new_tokens", 1)
    done = run_script(project_root, *options)
    assert done.returncode == 0, done.stderr
    assert "running on the CPU" in done.stderr
    done = run_script(project_root, *options, "--device", "cuda:0")
    assert done.returncode == 2
    assert "--device cuda:0 cannot be used here" in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_arguments_are_refused_together(project_root, tmp_path):
    (tmp_path / "taken.jsonl").touch()
    options = ("--temperature", "-1", "--do_sample", "perhaps", "--system", "x", "--input_txt", "y", "--interactive")
    done = run_script(project_root, "--model_path", "m", *options, "--prompt_style", "pretrained")
    assert done.returncode == 2
    for part in ("--temperature", "'perhaps' is neither", "--input_txt and --interactive", "does not take turns"):
        assert part in done.stderr
    done = run_script(
        project_root, "--model_path", "m", "--output_file", tmp_path / "taken.jsonl", "--llama_version", "2"
    )
    for part in ("no prompt is given", "go together", "exists already", "--llama_version belongs to"):
        assert part in done.stderr


def test_bad_prompt_lines_are_named_before_the_model_is_loaded(project_root, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"source": "a"}\n{"text": "b"}\n\n{"source": 3}\n{', "utf-8")
    files = ("--input_file", tmp_path / "in.jsonl", "--output_file", tmp_path / "out.jsonl")
    done = run_script(project_root, "--model_path", tmp_path / "nowhere", "--device", "cpu", *files)
    assert done.returncode == 2
    assert [f"line {n}:" in done.stderr for n in range(1, 6)] == [False, True, False, True, True]
    assert not (tmp_path / "out.jsonl").exists()


def test_weights_that_were_cut_off_are_named(model_directory, tmp_path):
    shutil.copytree(model_directory, tmp_path / "cut")
    os.truncate(tmp_path / "cut" / "model.safetensors", 100_000)
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read: it is incomplete or damaged"):
        load_for_inference(tmp_path / "cut", "auto", torch.device("cpu"))


def test_weights_that_are_missing_are_named(model, llama2, tmp_path):
    weights = {name: tensor for name, tensor in model.state_dict().items() if "layers.0.mlp.up_proj" not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    AutoTokenizer.from_pretrained(llama2).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"1 tensors are missing \(model\.layers\.0\.mlp\.up_proj\.weight\)"):
        load_for_inference(tmp_path, "auto", torch.device("cpu"))


def test_an_interrupted_file_of_answers_is_kept(model, llama2, tmp_path, monkeypatch):
    generator = TextGenerator(model, cached_tokenizer(llama2), {2}, GREEDY, 4)
    answers, generate = iter(range(2)), generator.generate

    def interrupted(prompt_ids):
        if next(answers, None) is None:
            raise KeyboardInterrupt
        return generate(prompt_ids)

    monkeypatch.setattr(generator, "generate", interrupted)
    records = [{"id": number} for number in range(4)]
    with pytest.raises(KeyboardInterrupt):
        answer_all(generator, records, [[1, 5, 6]] * 4, tmp_path / "out.jsonl", seed=0)
    (kept,) = tmp_path.iterdir()
    assert kept.name == "out.partial.jsonl"
    assert [json.loads(line)["id"] for line in kept.read_text("utf-8").splitlines()] == [0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"r": 4, "lora_alpha": 8}', "lora_dropout, target_modules is missing"),
    ],
)
def test_a_damaged_configuration_of_an_adapter_is_named(content, message, tmp_path):
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        adapter_settings(tmp_path)
    with pytest.raises(UserError, match=r"adapter_config\.json cannot be"):
        adapter_base_path(tmp_path)


def test_an_index_that_names_a_tensor_too_many_is_no_damage_and_a_shard_that_was_cut_off_is(model, llama2, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="5MB")
    AutoTokenizer.from_pretrained(llama2).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    last = index["weight_map"]["lm_head.weight"]
    index["weight_map"]["model.layers.0.self_attn.rotary_emb.inv_freq"] = last
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_for_inference(tmp_path, "auto", torch.device("cpu"))
    os.truncate(tmp_path / last, (tmp_path / last).stat().st_size - 1)
    with pytest.raises(UserError, match=rf"{re.escape(last)} cannot be read: it is incomplete or damaged"):
        load_for_inference(tmp_path, "auto", torch.device("cpu"))


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "nowhere"])
def test_a_missing_directory_is_named(name):
    with pytest.raises(UserError, match="is not a directory"):
        find_model(name)


def test_hub_names_use_the_local_copy_and_are_refused_without_one(project_root, tmp_path, model_directory, monkeypatch):
    """The hub's cache layout, offline: a name whose copy is there runs, another is refused with one message."""
    repository = tmp_path / "hub" / "models--someone--random"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(model_directory)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options = ("--device", "cpu", "--input_txt", "x", "--max_new_tokens", 1)
    done = run_script(project_root, "--model_path", "someone/random", *options)
    assert done.returncode == 0, done.stderr
    done = run_script(project_root, "--model_path", "someone/other", *options)
    assert done.returncode == 2
    assert "someone/other is neither a directory nor a model" in done.stderr
    assert "Traceback" not in done.stderr
