"""Parts are verified in the background; damage is raised when it is awaited, on all ranks."""

import json
import shutil
from contextlib import contextmanager

import pytest
import torch.distributed as dist

from colossal_llama.dataset.part_content import data_files
from colossal_llama.dataset.part_reader import open_parts
from colossal_llama.training.data_verification import DataVerification
from colossal_llama.training.distributed.consensus import CollectiveError
from colossal_llama.utils.fingerprint import fingerprint_file


@contextmanager
def single_rank(tmp_path):
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.fixture
def parts(toy, tmp_path):
    """Copies of two parts that record their checksums."""
    copies = [shutil.copytree(path, tmp_path / path.name) for path in toy.parts[:2]]
    for copy in copies:
        facts = json.loads((copy / "part.json").read_text())
        facts["arrow_sha256"] = fingerprint_file(data_files(copy)[0])
        (copy / "part.json").write_text(json.dumps(facts))
    return copies


def verify(parts, compare_checksums=True, vocabulary=203):
    half = len(parts) // 2
    opened = {"--dataset": open_parts(parts[:half], 96), "--eval_dataset": open_parts(parts[half:], 96)}
    DataVerification(opened, vocabulary, 203, compare_checksums).finish()


def damage(part):
    file = data_files(part)[0]
    file.write_bytes(file.read_bytes() + b"\0")


def test_all_damaged_parts_are_named_with_their_options(parts, tmp_path):
    with single_rank(tmp_path):
        verify(parts)
        for part in parts:
            damage(part)
        with pytest.raises(CollectiveError) as raised:
            verify(parts)
    assert [problem.split(" ")[0] for problem in raised.value.problems] == ["--dataset:", "--eval_dataset:"]
    assert all("has changed since it was written" in problem for problem in raised.value.problems)


def test_values_are_checked_without_the_checksums_too(parts, tmp_path, capsys):
    with single_rank(tmp_path):
        for part in parts:
            damage(part)
        verify(parts, compare_checksums=False)
        with pytest.raises(CollectiveError, match="none of the 9 of the vocabulary"):
            verify(parts, compare_checksums=False, vocabulary=9)
    assert "the checksums of the data are not compared (--verify_data False)" in capsys.readouterr().out


def test_parts_that_name_no_tokenizer_may_have_all_ids_of_the_model(parts, tmp_path):
    for part in parts:
        facts = json.loads((part / "part.json").read_text())
        (part / "part.json").write_text(json.dumps({**facts, "tokenizer_fingerprint": None}))
    with single_rank(tmp_path):
        verify(parts, vocabulary=9)


def test_parts_without_a_checksum_are_said(toy, tmp_path, capsys):
    with single_rank(tmp_path):
        verify(toy.parts[:2])
    assert "2 of 2 parts record no checksum" in capsys.readouterr().out


def test_other_processes_of_a_host_read_nothing(parts, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with single_rank(tmp_path):
        for part in parts:
            damage(part)
        verify(parts)
