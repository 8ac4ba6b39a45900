"""A model that a run has written is compared with its checksums wherever it is opened."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from colossal_llama.model.expansion.resize_embeddings import plan_expansion
from colossal_llama.model.pretrained import load_for_inference
from colossal_llama.model.weights.written_model import check_written_model
from colossal_llama.utils.checksums import CHECKSUMS, write_checksums
from colossal_llama.utils.errors import UserError


@pytest.fixture
def written(random_model_directory: Path, tmp_path: Path) -> Path:
    """A model of two shards, with checksums."""
    directory = shutil.copytree(random_model_directory, tmp_path / "written")
    model = AutoModelForCausalLM.from_pretrained(directory)
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory, max_shard_size=model.lm_head.weight.nbytes // 2)
    write_checksums(directory, {})
    return directory


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def open_for_inference(directory: Path) -> None:
    load_for_inference(directory, "auto", torch.device("cpu"))


def open_for_expansion(directory: Path) -> None:
    plan_expansion(directory, directory)


@pytest.mark.parametrize("open_model", [open_for_inference, open_for_expansion])
def test_a_changed_weight_is_named_by_every_script(written, open_model):
    open_model(written)
    shard = sorted(written.glob("*.safetensors"))[0]
    flip_a_bit(shard)
    with pytest.raises(UserError, match=rf"{shard.name} is not what was written .*delete checksums\.json there if"):
        open_model(written)
    (written / CHECKSUMS).unlink()
    open_model(written)


def test_edited_settings_are_said_and_a_moved_model_is_whole(written, tmp_path, capsys):
    moved = written.rename(tmp_path / "moved")
    (moved / "README.md").write_text("mine")
    check_written_model(moved)
    assert capsys.readouterr().out == ""
    (moved / "generation_config.json").write_text('{"eos_token_id": 2}')
    check_written_model(moved)
    assert "generation_config.json has 19 bytes" in capsys.readouterr().out


def test_weights_that_would_be_read_in_place_of_those_written_are_refused(written, random_model_directory):
    shutil.copy(random_model_directory / "model.safetensors", written)
    with pytest.raises(UserError, match=r"model\.safetensors was not written with it"):
        check_written_model(written)


def test_a_damaged_list_is_named(written):
    (written / CHECKSUMS).write_text("{")
    with pytest.raises(UserError, match=r"checksums\.json cannot be read"):
        check_written_model(written)
