"""The examples of docs/python.md are run, each line of them, on a tiny model."""

import pytest
import torch

from tests.inference.test_cli import CHATML
from tests.support.documented import python_blocks


@pytest.fixture
def documented_place(random_model_directory, tmp_path, monkeypatch):
    """A working directory in which the names of the document exist."""
    for name in ("checkpoints", "sft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "modelling").symlink_to(random_model_directory)
    (tmp_path / "chat.jinja").write_text(CHATML)
    monkeypatch.chdir(tmp_path)


def test_the_examples_for_inference_run(project_root, documented_place, capsys):
    blocks = python_blocks(project_root / "docs" / "python.md")
    assert len(blocks) >= 6
    before, variables = torch.get_rng_state(), {}
    for block in blocks:
        on_the_cpu = block.replace("open_model(", "open_model(device='cpu', model_path=")
        exec(compile(on_the_cpu, "docs/python.md", "exec"), variables)
    assert torch.equal(torch.get_rng_state(), before)
    roles = [message["role"] for message in variables["history"]]  # a long first answer drops its exchange
    assert roles in ([*("system", "user", "assistant"), *("user", "assistant") * count] for count in (0, 1))
    assert len(variables["texts"]) == 2
    assert variables["whole"].text.startswith(variables["first"])
    printed = capsys.readouterr()
    assert printed.out.rstrip().endswith("prompt_style='chat': choose from pretrained, sft")
    assert "dtype='float8': choose from auto" in printed.out
