"""Models are named apart, and refused where they cannot fit, before one is loaded."""

import shutil
from pathlib import Path

import pytest
import torch

from colossal_llama.evaluation import models
from colossal_llama.evaluation.models import check_memory, device_of, directory_names, find_models
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.hub.names import ModelName


def test_directories_are_named_apart_and_as_they_would_be_alone():
    given = [
        Path("/a/llama"),
        Path("/b/llama"),
        Path("/b/LLAMA"),
        Path("/runs/sft/modelling"),
        Path("/runs/sft/epoch-0_step-200/modelling"),
        ModelName("org/llama", "v1"),
        Path("/x/table.md"),
        Path("/"),
    ]
    names = directory_names(given)
    assert names == ["llama", "b-llama", "LLAMA_2", "sft", "sft-epoch-0_step-200", "org-llama", "x-table.md", "model"]
    assert directory_names([given[3]]) == ["sft"]
    assert len({name.casefold() for name in directory_names([Path("/m")] * 3)}) == 3


def test_a_link_has_the_name_that_was_given(tmp_path, monkeypatch):
    (tmp_path / "v2").mkdir()
    (tmp_path / "newest").symlink_to("v2")
    assert directory_names([tmp_path / "newest"]) == ["newest"]
    monkeypatch.chdir(tmp_path / "v2")
    assert directory_names([Path()]) == ["v2"]


def test_the_fingerprint_is_of_contents_not_of_places(random_model_directory, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(random_model_directory, copy)
    first, second = find_models(random_model_directory, [copy], 400)
    assert first.identity() == second.identity()
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert find_models(copy, [], 400)[0].fingerprint != first.fingerprint


def test_all_models_that_cannot_be_evaluated_are_named_at_once(random_model_directory, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as raised:
        find_models(random_model_directory, [tmp_path / "empty"], 401)
    first, second = raised.value.problems
    assert first == f"--model_path: {random_model_directory} has 400 positions: give --max_length 400, or less"
    assert second.startswith("--compare: ")
    assert str(tmp_path / "empty") in second


def test_a_model_that_does_not_fit_is_refused_with_both_sizes(random_model_directory, monkeypatch):
    (model,) = find_models(random_model_directory, [], 400)
    monkeypatch.setattr(models, "_free_host_memory", lambda: model.weights * 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    check_memory(model, torch.device("cpu"), "fp32")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    check_memory(model, torch.device("cpu"), "bf16")
    with pytest.raises(UserError, match=r"GiB in fp32, and this host has .* GiB free for each process: use a host"):
        check_memory(model, torch.device("cpu"), "fp32")


def test_a_gpu_is_used_whole_or_not_at_all(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    free = (10 * 2**30, 80 * 2**30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: free)
    large = models.EvaluatedModel("m", Path("m"), Path("m"), 70 * 10**9, "", "")
    with pytest.raises(UserError, match=r"m take 130.4 GiB in bf16, and cuda:0 has 10.0 GiB free: evaluate.py puts a"):
        check_memory(large, torch.device("cuda:0"), "bf16")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="this host has 1 GPUs for 2 processes"):
        device_of(None, 1)
    with pytest.raises(UserError, match="--device cuda:0 would be shared by 2 processes"):
        device_of("cuda:0", 1)
