"""LoRA through the plugins: the adapter alone is trained and saved, resumes bit for bit, and merges
to the same model.
"""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.support.training_runs import GENERATION_SETTINGS

LORA = (
    "--lora_rank",
    "4",
    "--micro_batch_size",
    "2",
    "--accumulation_steps",
    "2",
    "--num_epochs",
    "2",
    "--save_interval",
    "4",
)
PLUGINS = {"zero2": (), "ddp": ("--plugin", "ddp"), "3d": ("--plugin", "3d", "--zero", "0")}


@pytest.fixture(scope="module")
def runs(runner):
    command = runner.command
    commands = [command(name, *LORA, *options, "--merge_lora") for name, options in PLUGINS.items()]
    for name, options in PLUGINS.items():
        load = ("--load_checkpoint", str(runner.workspace / name / "save" / "epoch-0_step-4"))
        commands.append(command(f"{name}_again", *LORA, *options, *load, pretrained=False))
    runner.run(commands, ranks=2)
    return runner


@pytest.mark.parametrize("name", PLUGINS)
def test_only_the_adapter_is_trained_and_saved(runs, name, toy):
    saved = runs.weights(name)
    assert all("lora_" in key for key in saved)
    # 2 layers: q and o 64+64, k and v 64+32, three of the MLP 64+96, times rank 4
    assert sum(tensor.numel() for tensor in saved.values()) == 2 * 4 * (2 * 128 + 2 * 96 + 3 * 160)
    assert runs.losses(name)[-1] < runs.losses(name)[0]
    card = (runs.workspace / name / "save" / "modelling" / "README.md").read_text("utf-8")
    assert "rank 4" in card
    assert "Needed" not in card


def test_plugins_agree(runs):
    for name in ("ddp", "3d"):
        assert runs.losses(name) == pytest.approx(runs.losses("zero2"), rel=2e-4)


@pytest.mark.parametrize("name", PLUGINS)
def test_resuming_changes_nothing(runs, name):
    assert runs.losses(f"{name}_again") == runs.losses(name)[4:]
    expected = runs.weights(name)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in runs.weights(f"{name}_again").items())


def test_merged_model_equals_base_with_adapter(runs, toy):
    save = runs.workspace / "zero2" / "save"
    settings = json.loads((save / "modelling_merged" / "generation_config.json").read_text())
    assert settings.items() >= GENERATION_SETTINGS.items()
    merged = AutoModelForCausalLM.from_pretrained(save / "modelling_merged")
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(toy.model), save / "modelling")
    base = AutoModelForCausalLM.from_pretrained(toy.model)
    ids = torch.arange(3, 40).unsqueeze(0)
    with torch.no_grad():
        expected, got, plain = (model.eval()(ids).logits for model in (adapted, merged, base))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert (expected - plain).abs().max() > 0.05


def test_a_checkpoint_of_another_rank_and_a_pickled_one_are_refused(runs, project_root):
    from tests.support.training_runs import torchrun

    copy = runs.workspace / "copy"
    shutil.copytree(runs.workspace / "zero2" / "save" / "epoch-0_step-4", copy)
    weights = copy / "modelling" / "adapter_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    load = ("--load_checkpoint", str(copy / "modelling"), "--lora_rank", "8")
    done = torchrun("train.py", runs.command("refused", *LORA, *load), 1, project_root)
    assert done.returncode != 0
    assert "LoRA adapter of rank 4: give --lora_rank 4" in done.stderr
    assert "pickled adapters are not loaded" in done.stderr
