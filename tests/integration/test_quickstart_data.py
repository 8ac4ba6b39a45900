"""The example's texts are whole, consistent with each other, and the base model made from them
stands where LLaMA-2 does.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

MAXIMUM_BYTES = 400_000


def read(directory: Path) -> dict[str, list[dict]]:
    files = sorted(directory.glob("*.jsonl"))
    return {file.stem: [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] for file in files}


@pytest.fixture(scope="module")
def pretraining(project_root: Path) -> dict[str, list[dict]]:
    return read(project_root / "examples" / "pretrain")


@pytest.fixture(scope="module")
def conversations(project_root: Path) -> dict[str, list[dict]]:
    return read(project_root / "examples" / "sft")


@pytest.fixture(scope="module")
def base_model(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base") / "model"
    script = project_root / "examples" / "make_base_model.py"
    subprocess.run([sys.executable, script, "--output_dir", directory], check=True, cwd=directory.parent)
    return directory


def test_pretraining_records_have_the_contract_s_fields(pretraining: dict[str, list[dict]]) -> None:
    for name, records in pretraining.items():
        for record in records:
            assert set(record) == {"source", "target", "category"}
            assert record["category"] == name
            assert record["target"].strip() == record["target"] != ""
            assert record["source"] == "" or re.fullmatch(r"[^\n]+\n\n->\n\n", record["source"])


def test_texts_are_in_the_language_that_the_file_name_says(pretraining: dict, conversations: dict) -> None:
    for name, records in {**pretraining, **conversations}.items():
        for record in records:
            text = json.dumps(record, ensure_ascii=False)
            assert bool(re.search("[一-鿿]", text)) == name.startswith("zh_"), text


def test_no_text_appears_twice_and_all_are_small(project_root: Path, pretraining: dict) -> None:
    targets = [record["target"] for records in pretraining.values() for record in records]
    assert len(targets) >= 300
    assert len(set(targets)) == len(targets)
    size = sum(file.stat().st_size for file in (project_root / "examples").rglob("*") if file.is_file())
    assert size < MAXIMUM_BYTES


def test_conversations_alternate_and_every_question_is_asked_once(conversations: dict[str, list[dict]]) -> None:
    questions = []
    for records in conversations.values():
        for record in records:
            speakers = [message["from"] for message in record["messages"]]
            assert speakers == ["human", "assistant"] * (len(speakers) // 2) != []
            assert all(message["content"].strip() for message in record["messages"])
            questions.append(record["messages"][0]["content"])
    assert len(questions) >= 40
    assert len(set(questions)) == len(questions)


@pytest.mark.parametrize("use_fast", [True, False])
def test_the_base_tokenizer_knows_english_and_spells_chinese_in_bytes(
    base_model: Path, pretraining: dict[str, list[dict]], use_fast: bool
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_model, use_fast=use_fast)
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>"]) == [0, 1, 2]
    assert tokenizer.tokenize("云") == ["▁", *(f"<0x{byte:02X}>" for byte in "云".encode())]
    assert tokenizer.tokenize("，。") == ["▁", "，", "。"]
    assert tokenizer.tokenize("\n\n") == ["▁", "<0x0A>", "<0x0A>"]
    for name, records in pretraining.items():
        for record in records[:5]:
            text = record["source"] + record["target"]
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.decode(ids).removeprefix(" ") == text
            assert 0 not in ids
            if name.startswith("en_"):
                assert len(ids) < len(text) / 2


def test_the_base_model_is_the_same_every_time_and_loads(project_root: Path, base_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base_model)
    assert model.config.vocab_size == 1000
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    script = project_root / "examples" / "make_base_model.py"
    again = tmp_path / "again"
    subprocess.run([sys.executable, script, "--output_dir", again], check=True, cwd=tmp_path)
    for name in ("tokenizer.model", "model.safetensors"):
        assert (again / name).read_bytes() == (base_model / name).read_bytes()


def test_make_base_model_refuses_an_existing_directory_and_bad_numbers(project_root: Path, tmp_path: Path) -> None:
    script = project_root / "examples" / "make_base_model.py"
    (tmp_path / "kept.txt").write_text("mine")
    refused = subprocess.run([sys.executable, script, "--output_dir", tmp_path], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "exists already" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    command = [
        sys.executable,
        script,
        "--output_dir",
        tmp_path / "new",
        "--hidden_size",
        "100",
        "--vocabulary_size",
        "9",
    ]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "--vocabulary_size" in refused.stderr
    assert "--hidden_size" in refused.stderr
