"""Files go both ways: transformers 5 opens what the suite writes, and the suite what 5 writes.

transformers 5 runs in an environment of its own (benchmarks/clients). Ids and greedy answers are
those that it gives itself by AutoTokenizer and `generate`.
"""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.clients.__main__ import ask
from benchmarks.clients.compare import our_reference, write_requests
from benchmarks.clients.models import ModelMaker, TriedModel, random_models, read_conversations, read_texts
from benchmarks.clients.programs import CLIENTS, TRANSFORMERS_5
from colossal_llama.model.pretrained import load_for_inference
from colossal_llama.utils.transformers_version import is_transformers_5
from tests.support.client_environments import environment_or_skip
from tests.support.scripts import run_script

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(is_transformers_5(), reason="opens in transformers 5 what the pinned version writes"),
]

TEXTS, PROMPTS, NEW_TOKENS = 2000, 40, 24
WRITTEN_BY_5 = """
import json, sys
import torch
from pathlib import Path
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
tokenizers, target, texts = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text())
YARN = {"rope_theta": 1e3, "rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
LINEAR = {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}
KINDS = {"llama2": ("llama2", YARN, False, "float32"), "llama3": ("llama3-base", LLAMA3, True, "float32"),
         "instruct": ("llama3-instruct", LINEAR, False, "float32")}
for name, (source, rope, tied, dtype) in KINDS.items():
    tokenizer = AutoTokenizer.from_pretrained(tokenizers / source)
    tokenizer.chat_template = {"default": "{{ messages[0].content }}", "tools": "{{ tools }}"}
    tokenizer.save_pretrained(target / name)
    tokenizer = AutoTokenizer.from_pretrained(target / name)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        initializer_range=0.2, tie_word_embeddings=tied, rope_parameters=rope, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id)).to(getattr(torch, dtype))
    model.save_pretrained(target / name)
    model = LlamaForCausalLM.from_pretrained(target / name, dtype="float32").eval()
    ids = [tokenizer(text)["input_ids"] for text in texts]
    logits = [model(torch.tensor([row[:300]])).logits for row in ids[:8]]
    torch.save({"ids": ids, "logits": logits}, target / f"{name}.pt")
"""


@pytest.fixture(scope="module")
def python_5() -> Path:
    """The interpreter of the environment; skips without a package index."""
    return environment_or_skip("transformers5", TRANSFORMERS_5)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("name", ["LLaMA-2 expanded", "LLaMA-3 base expanded", "LLaMA-3 instruct expanded"])
def test_transformers_5_gives_our_ids_and_answers(name, python_5, shared_data, work):
    texts, conversations = read_texts(shared_data, TEXTS), read_conversations(shared_data, PROMPTS)
    model = dict(random_models(ModelMaker(work, shared_data.resolve())))[name]()
    assert_same(model, texts, conversations, work / "requests" / name)


def assert_same(model: TriedModel, texts: list[str], conversations: list, requests: Path) -> None:
    reference = our_reference(model, texts, conversations, PROMPTS, NEW_TOKENS)
    write_requests(requests, texts, conversations, reference)
    row = ask(CLIENTS["transformers5"], model, reference, requests, NEW_TOKENS)
    assert row.get("ids") == f"{len(texts):,} of {len(texts):,}", row
    equal, _, ties = row["greedy"].partition(" + ")
    assert int(equal.split()[0]) + int(ties.split()[0] if ties else 0) == len(reference.prompts), row


@pytest.fixture(scope="module")
def texts(made_data) -> list[str]:
    files = sorted(made_data.glob("pretrain/*/*.jsonl"))
    records = [json.loads(line) for file in files for line in file.read_text().splitlines()[:40]]
    odd = ["a  the", "def f():\n    return 12345", " x", "<s>你好</s>", "<|eot_id|> and <unk>", "👍🏽 é ③"]
    return [*odd, *((record["source"] + record["target"])[:1500] for record in records)]


@pytest.fixture(scope="module")
def written_by_5(python_5, made_data, work, texts) -> Path:
    """Three models that transformers 5 has written, and what it computes with them."""
    (work / "texts.json").write_text(json.dumps(texts))
    words = [python_5, "-c", WRITTEN_BY_5, made_data / "tokenizers", work / "five", work / "texts.json"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return work / "five"


@pytest.mark.parametrize("name", ["llama2", "llama3", "instruct"])
def test_a_directory_of_transformers_5_is_opened_as_5_opens_it(written_by_5, name, texts):
    model, tokenizer = load_for_inference(written_by_5 / name, "float32", torch.device("cpu"))
    expected = torch.load(written_by_5 / f"{name}.pt")
    assert [tokenizer(text)["input_ids"] for text in texts] == expected["ids"]
    with torch.inference_mode():
        for ids, logits in zip(expected["ids"], expected["logits"], strict=False):
            torch.testing.assert_close(model(torch.tensor([ids[:300]])).logits, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama2", "llama3", "instruct"])
def test_every_script_takes_it_and_transformers_5_takes_the_results(
    written_by_5, name, made_data, texts, work, project_root
):
    """Expansion, new rows, preparation, a step of training, an answer; each result in 5 as here."""
    source, out = written_by_5 / name, work / f"from-{name}"
    pieces = min(made_data.glob("pieces_zh_*.jsonl"))

    def run(script: str, **options: object) -> None:
        words = [word for key, value in options.items() for word in (f"--{key}", value)]
        done = run_script(project_root, script, *words, timeout=300)
        assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]

    tokenizer = "colossal_llama/tokenizer"
    run(f"{tokenizer}/learn_pieces.py", source_tokenizer_dir=source, data_input_dirs=made_data / "pretrain",
        num_pieces=20, output_dir=work / f"pieces-{name}")  # fmt: skip
    run(f"{tokenizer}/report.py", tokenizers=f"five={source}", data_input_dirs=made_data / "pretrain")
    run(f"{tokenizer}/init_tokenizer.py", source_tokenizer_dir=source, target_tokenizer_dir=out / "tokenizer",
        expand_tokens_file=pieces)  # fmt: skip
    run("colossal_llama/model/init_model.py", source_model_and_tokenizer_path=source,
        target_tokenizer_path=out / "tokenizer", target_model_path=out / "model")  # fmt: skip
    assert (out / "model" / "additional_chat_templates" / "tools.jinja").is_file()
    run("prepare_pretrain_dataset.py", data_input_dirs=made_data / "pretrain" / "zh_docs", tokenizer_dir=out / "model",
        data_output_dirs=out / "data", max_length=128, num_spliced_dataset_bins=1)  # fmt: skip
    run("train.py", pretrained=out / "model", dataset=out / "data" / "arrow" / "part-00000", save_dir=out / "run",
        tensorboard_dir=out / "logs", config_file=out / "run.json", plugin="ddp", mixed_precision="bf16",
        max_length=128, max_steps=2)  # fmt: skip
    # Ours takes a control token that is spelt out in a text as text.
    plain = [text for text in texts if not any(token in text for token in ("<s>", "<unk>", "<|"))]
    for directory in (out / "model", out / "run" / "modelling"):
        assert_same(TriedModel(name, directory), plain, [], work / "requests" / f"{name}-{directory.name}")
    run("inference_example.py", model_path=out / "run" / "modelling", device="cpu", max_new_tokens=3, do_sample=False,
        input_txt="你好")  # fmt: skip
