"""The commands of docs/data.md are run, on small stand-ins for the data that they name."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from tests.support.data_files import csv_table, json_lines
from tests.support.format_scripts import command_of
from tests.support.public_forms import CONVERSATION_FORMS, DOCUMENT_FORMS

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "data.md"
MAIN_FUNCTIONS = {
    "prepare_pretrain_dataset.py": "colossal_llama.dataset.prepare.cli:prepare_pretrain",
    "prepare_sft_dataset.py": "colossal_llama.dataset.prepare.cli:prepare_sft",
    "colossal_llama/tokenizer/report.py": "colossal_llama.tokenizer.report:main",
}


def documented_commands() -> list[list[str]]:
    """Words of each command after `python`."""
    blocks = re.findall(r"^```bash\n(.*?)^```", DOCUMENT.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("python ")]


def form(name: str):
    """The published form of this name."""
    return next(form for form in (*DOCUMENT_FORMS, *CONVERSATION_FORMS) if form.name == name)


@pytest.fixture
def stand_ins(tmp_path, monkeypatch, made_data) -> Path:
    """A working directory with everything that the document names."""
    (tmp_path / "model").symlink_to(made_data / "tokenizers" / "llama3-instruct")
    for directory, name in (
        ("texts", "documents with `text`"),
        (".", "ShareGPT, one array"),
        ("wiki", "a folder of Markdown"),
        ("saved", "a data set of Hugging Face on disk"),
    ):
        (tmp_path / directory).mkdir(exist_ok=True)
        form(name).write(tmp_path / directory)
    roles = zip(("customer", "agent", "note"), ("q", "a", "n"), strict=True)
    ticket = {"messages": [{"role": role, "content": text} for role, text in roles]}
    (tmp_path / "tickets.jsonl").write_bytes(json_lines([ticket]))
    questions = [{"frage": "Wann fährt das Schiff?", "antwort": "Um zwölf.", "thema": "Hafen"}]
    (tmp_path / "fragen.csv").write_bytes(csv_table(questions))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", documented_commands(), ids=lambda words: " ".join(words)[:80])
def test_the_commands_run(words, stand_ins):
    script, *options = (word.replace("$PWD", str(stand_ins)) for word in words)
    module, name = MAIN_FUNCTIONS[script].split(":")
    printed = command_of(getattr(importlib.import_module(module), name), script, *options)
    assert "Traceback" not in printed
