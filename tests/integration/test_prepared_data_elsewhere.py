"""docs/prepared_data.md: its columns and keys are those that are written, its examples run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from datasets import load_from_disk
from transformers import AutoModelForCausalLM

from tests.support.client_environments import environment_or_skip
from tests.support.documented import python_blocks
from tests.support.forked import run_forked

ENVIRONMENTS = {
    "transformers5": ["transformers==5.24.0"],
    "trl": ["trl==1.16.0", "transformers==5.24.0"],
    "tables": ["polars==1.35.2", "duckdb==1.4.2"],
}
MAX_LENGTH = 128


@pytest.fixture(scope="module")
def place(project_root, made_data, random_model_directory, tmp_path_factory) -> Path:
    """A working directory in which the names of the document exist: `data` and `model`."""
    directory = tmp_path_factory.mktemp("elsewhere")
    (directory / "model").symlink_to(random_model_directory)
    options = ("--tokenizer_dir", directory / "model", "--max_length", MAX_LENGTH, "--num_workers", 1)
    for script, folder, output, limit in (
        ("prepare_pretrain_dataset.py", "pretrain/zh_poetry", "data", 40),
        ("prepare_pretrain_dataset.py", "pretrain/en_docs", "long", 40),
        ("prepare_sft_dataset.py", "sft/kdconv", "sft", 40),
    ):
        version = ("--llama_version", 2) if output == "sft" else ()
        named = ("--data_input_dirs", made_data / folder, "--data_output_dirs", directory / output, "--limit", limit)
        done = run_forked(project_root, script, *options, *named, "--num_spliced_dataset_bins", 1, *version)
        assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture(scope="module")
def blocks(project_root) -> list[str]:
    """The examples of the document."""
    return python_blocks(project_root / "docs" / "prepared_data.md")


def with_text(blocks: list[str], text: str) -> str:
    """The one example that has this text."""
    (found,) = [block for block in blocks if text in block]
    return found


def environment_of(name: str) -> Path:
    """The interpreter of other programs' environment."""
    return environment_or_skip(name, ENVIRONMENTS[name])


def run_in(interpreter: Path | str, code: str, place: Path) -> str:
    """What a program prints."""
    settings = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [interpreter, "-c", code],
        cwd=place,
        capture_output=True,
        text=True,
        env={**os.environ, **settings},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# the columns


@pytest.mark.parametrize("name", ["data", "long", "sft"])
def test_rows_are_as_documented(place, name):
    rows = load_from_disk(str(place / name / "arrow" / "part-00000"))
    lines = [json.loads(line) for line in (place / name / "jsonl" / "part-00000.jsonl").read_text().splitlines()]
    assert lines == list(rows)
    begins = 0
    for row in rows:
        at = 0
        assert sum(row["document_lengths"]) == len(row["input_ids"]) == len(row["labels"]) <= MAX_LENGTH
        assert len(row["document_categories"]) == len(row["document_lengths"])
        for length in row["document_lengths"]:
            ids, labels = row["input_ids"][at : at + length], row["labels"][at : at + length]
            assert labels[0] == -100
            assert all(label in (-100, token_id) for label, token_id in zip(labels, ids, strict=True))
            begins += ids[0] == 1
            at += length
    part = json.loads((place / name / "arrow" / "part-00000" / "part.json").read_text())
    assert part["segments"] == sum(len(row["document_lengths"]) for row in rows)
    assert begins == part["documents"]
    assert (part["documents"] < part["segments"]) is (name == "long")
    assert part["categories"] == rows.features["document_categories"].feature.names


def test_every_key_is_documented(project_root, place):
    text = (project_root / "docs" / "prepared_data.md").read_text("utf-8")
    for file in ("part.json", "manifest.json"):
        table = text.partition(f"| key of {file} |")[2].partition("\n\n")[0]
        first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| ")]
        named = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
        for name in ("data", "sft"):
            path = place / name / ("arrow/part-00000/part.json" if file == "part.json" else "manifest.json")
            written = set(json.loads(path.read_text()))
            assert written <= named, file
            absent = {"chat_template_date", "conversation_format", "category_target_tokens", "mixture"}
            absent |= {"unread_members", "grouped_chunks", "divided_files"}
            assert named - written <= absent, file


# examples


@pytest.mark.parametrize("reader", ["features[", "import pyarrow", "import pandas", "tokenizer.decode"])
def test_readers_run(blocks, place, reader, monkeypatch, capsys):
    monkeypatch.chdir(place)
    exec(compile(with_text(blocks, reader), "docs/prepared_data.md", "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["import polars", "import duckdb"])
def test_other_readers_count_the_same_tokens(blocks, place, reader):
    rows = load_from_disk(str(place / "data" / "arrow" / "part-00000"))
    printed = run_in(environment_of("tables"), with_text(blocks, reader), place)
    assert str(sum(map(len, rows["input_ids"]))) in printed


# documents apart


def first_loss_of(
    blocks: list[str], example: str, interpreter: Path | str, place: Path, collator: bool = True
) -> float:
    """Loss of the first step of a trainer's example, with all rows in one batch, in fp32."""
    code = with_text(blocks, "def keep_documents_apart") + "\n\n" + with_text(blocks, example)
    if not collator:
        code = code.replace(", data_collator=keep_documents_apart", "")
    options = "per_device_train_batch_size=64, use_cpu=True, bf16=False, save_strategy='no', disable_tqdm=True"
    code = code.replace("per_device_train_batch_size=8", options)
    loss = "[entry['loss'] for entry in trainer.state.log_history if 'loss' in entry][0]"
    code = code.replace("trainer.train()", f"assert len(rows) <= 64\ntrainer.train()\nprint('loss', repr({loss}))")
    return float(re.search(r"^loss (.+)$", run_in(interpreter, code, place), flags=re.MULTILINE)[1])


@pytest.fixture(scope="module")
def our_first_loss(project_root, place) -> float:
    """Loss of train.py's first step on the same rows."""
    options = ("--plugin", "zero2", "--mixed_precision", "fp32", "--micro_batch_size", 64, "--max_steps", 1)
    paths = ("--pretrained", place / "model", "--dataset", place / "data" / "arrow" / "part-00000")
    done = run_forked(project_root, "train.py", *options, *paths, "--save_dir", place / "run", cwd=place)
    assert done.returncode == 0, done.stderr
    (metrics,) = place.rglob("metrics.jsonl")
    return json.loads(metrics.read_text().splitlines()[0])["loss"]


@pytest.mark.engine
def test_the_trainer_of_transformers_begins_with_our_loss(blocks, place, our_first_loss):
    assert (
        abs(first_loss_of(blocks, "TrainingArguments", sys.executable, place) - our_first_loss) < 1e-5 * our_first_loss
    )


@pytest.mark.engine
@pytest.mark.slow
def test_transformers_5_and_trl_begin_with_our_loss(blocks, place, our_first_loss):
    for name, example in (("transformers5", "TrainingArguments"), ("trl", "SFTTrainer")):
        loss = first_loss_of(blocks, example, environment_of(name), place)
        assert abs(loss - our_first_loss) < 1e-5 * our_first_loss, name
    apart = first_loss_of(blocks, "SFTTrainer", environment_of("trl"), place, collator=False)
    assert abs(apart - our_first_loss) > 1e-4  # documents attend to each other


MEASURED = """
import torch, transformers
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
model = LlamaForCausalLM(LlamaConfig(vocab_size=200, initializer_range=0.3, max_position_embeddings=96, **shape))
lengths = (7, 12, 5)
documents = [torch.randint(3, 200, (length,)).tolist() for length in lengths]
flat = sum(documents, [])
row = {"input_ids": flat, "labels": flat, "document_lengths": lengths}
batch = keep_documents_apart([row, row])
ids, positions, mask = batch["input_ids"], batch["position_ids"], batch["attention_mask"]
offsets = torch.tensor([0, 7, 19, 24], dtype=torch.int32)
flash = {"cu_seq_lens_q": offsets, "cu_seq_lens_k": offsets, "max_length_q": 12, "max_length_k": 12}
cases = (
    {},
    {"use_cache": False},
    {"attention_mask": torch.ones_like(ids)},
    flash,
    {"attention_mask": mask},
    {"attention_mask": torch.where(mask, 0.0, torch.finfo(torch.float32).min)},
)
for case in cases:
    for kind in ("sdpa", "eager"):
        model.config._attn_implementation = kind
        with torch.no_grad():
            alone = torch.cat([model(input_ids=torch.tensor([document])).logits[0] for document in documents])
            difference = (model(input_ids=ids, position_ids=positions, **case).logits[1] - alone).abs().max()
        assert difference < 1e-3 or difference > 1, difference
        print("yes" if difference < 1e-3 else "no")
print(transformers.__version__)
"""


@pytest.mark.parametrize(
    "version", [pytest.param("4.51.3", id="4"), pytest.param("5.24.0", id="5", marks=pytest.mark.slow)]
)
def test_what_keeps_documents_apart_is_as_measured(project_root, blocks, place, version):
    installed = transformers.__version__ == version
    if not installed and version == "4.51.3":
        pytest.skip("another version of transformers is installed")
    text = (project_root / "docs" / "prepared_data.md").read_text("utf-8")
    header, _, *lines = text.partition("| what the model is given |")[2].partition("\n\n")[0].splitlines()
    columns = [number for number, name in enumerate(header.split("|")) if version in name]
    documented = [line.split("|")[number + 2].strip() for line in lines for number in columns]
    code = with_text(blocks, "def keep_documents_apart") + MEASURED
    printed = run_in(
        sys.executable if installed else environment_of("transformers5"),
        code,
        place,
    ).split()
    assert printed == [*documented, version]


def test_the_loss_of_packed_rows_is_that_of_their_documents(blocks, place):
    """In one batch with padding: the mean over all targets, and the gradient."""
    variables: dict = {}
    exec(compile(with_text(blocks, "def keep_documents_apart"), "docs/prepared_data.md", "exec"), variables)
    rows = list(load_from_disk(str(place / "data" / "arrow" / "part-00000")))[:6]
    assert any(len(row["document_lengths"]) > 1 for row in rows)
    model = AutoModelForCausalLM.from_pretrained(place / "model")
    packed = model(**variables["keep_documents_apart"](rows)).loss
    total, targets = torch.zeros(()), 0
    for row in rows:
        at = 0
        for length in row["document_lengths"]:
            ids, labels = (torch.tensor([row[name][at : at + length]]) for name in ("input_ids", "labels"))
            count = int((labels[:, 1:] != -100).sum())
            total = total + model(input_ids=ids, labels=labels).loss * count
            targets += count
            at += length
    assert abs(packed - total / targets) < 1e-5 * packed
