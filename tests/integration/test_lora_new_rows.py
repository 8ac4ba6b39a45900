"""LoRA with the new rows of an expansion (`--lora_new_rows`): trained as PyTorch does, resumed bit
for bit, and one model to every program that opens the adapter.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM

from benchmarks.clients.programs import TRANSFORMERS_5
from colossal_llama.inference.api import open_model
from colossal_llama.model.lora import lora_config
from colossal_llama.model.weights.adapter_files import EMBEDDINGS
from colossal_llama.model.weights.generation_config import save_model
from colossal_llama.training.arguments import LORA_LAYERS
from colossal_llama.utils.errors import UserError
from tests.support.adapter_probe import IDS, logits_by_way
from tests.support.client_environments import environment_or_skip
from tests.support.plain_training import BETAS, mean_loss, rows_of, train_plainly
from tests.support.scripts import run_script
from tests.support.training_runs import torchrun

pytestmark = pytest.mark.slow  # the runs that all tests of the file share

FIRST, ROWS = 150, 203
WARNING = "no run has trained them"
EXPORT = "colossal_llama/export/export_model.py"
PEAK, NEW_ROW_RATIO = 1e-2, 0.5
RUN = ("--lora_rank", "4", "--lora_new_rows", "--new_row_lr", str(PEAK * NEW_ROW_RATIO))
RUN += ("--micro_batch_size", "2", "--accumulation_steps", "2", "--shuffle", "none", "--num_epochs", "2")
RUN += ("--save_interval", "4", "--skip_save_each_epoch", "--merge_lora")
BF16 = ("--mixed_precision", "bf16")
PLUGINS = {
    "zero2": (),
    "zero2_cpu": ("--plugin", "zero2_cpu"),
    "ddp": ("--plugin", "ddp"),
    "3d": ("--plugin", "3d", "--zero", "0"),
}
BF16_PLUGINS = {
    "bf16": BF16,
    "bf16_zero1": ("--plugin", "3d", "--zero", "1", *BF16),
    "bf16_zero2": ("--plugin", "3d", "--zero", "2", *BF16),
}
KINDS = {"tied": ("zero2", "ddp", "bf16_zero1"), "untied": (*PLUGINS, *BF16_PLUGINS)}
RUNS = [f"{plugin}_{kind}" for kind, plugins in KINDS.items() for plugin in plugins]
EXACT = [name for name in RUNS if not name.startswith("bf16")]


def base_of(runner, kind: str) -> Path:
    return runner.workspace / f"base_{kind}"


def make_base(toy, directory: Path, tied: bool) -> None:
    """The toy model as init_model.py would have left it: its last rows are new."""
    model = AutoModelForCausalLM.from_pretrained(toy.model, tie_word_embeddings=tied)
    shutil.copytree(toy.model, directory)
    (directory / "model.safetensors").unlink()
    save_model(model, directory)
    shutil.copy(toy.model / "generation_config.json", directory)
    report = {"rows": {"kept": FIRST, "new": ROWS - FIRST, "total": ROWS}}
    (directory / "init_report.json").write_text(json.dumps(report))


@pytest.fixture(scope="module")
def runs(runner, toy):
    """Each run on two ranks, and again from its checkpoint after step 4."""
    commands = []
    for kind, plugins in KINDS.items():
        base = base_of(runner, kind)
        make_base(toy, base, tied=kind == "tied")
        for plugin in plugins:
            name, options = f"{plugin}_{kind}", (*RUN, *(PLUGINS | BF16_PLUGINS)[plugin])
            begin = ("--pretrained", str(base), "--eval_dataset", str(toy.parts[0]))
            resume = ("--load_checkpoint", str(runner.workspace / name / "save" / "epoch-0_step-4"))
            commands.append(runner.command(name, *options, *begin, pretrained=False))
            commands.append(runner.command(f"{name}_again", *options, *resume, pretrained=False))
    assert WARNING not in runner.run(commands, ranks=2, timeout_s=600)
    return runner


def adapter_of(runs, name: str) -> Path:
    return runs.workspace / name / "save" / "modelling"


def base_weights(runs, name: str) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(base_of(runs, name.rsplit("_")[-1])).state_dict()


@pytest.mark.parametrize("name", RUNS)
def test_new_rows_alone_are_trained_and_saved_whole(runs, name):
    saved, base = runs.weights(name), base_weights(runs, name)
    for tensor in EMBEDDINGS.values():
        whole = base[tensor.removeprefix("base_model.model.")].to(saved[tensor].dtype)
        assert torch.equal(saved[tensor][:FIRST], whole[:FIRST])
        assert (saved[tensor][FIRST:] != whole[FIRST:]).any(dim=1).all()
    assert {key for key in saved if "lora_" not in key} == set(EMBEDDINGS.values())
    assert (name.rsplit("_")[-1] == "tied") == torch.equal(*(saved[tensor] for tensor in EMBEDDINGS.values()))
    card = (adapter_of(runs, name) / "README.md").read_text("utf-8")
    assert f"and the rows from {FIRST} on of embed_tokens and lm_head" in card


class NewRows(torch.nn.Module):
    """A matrix whose first rows are fixed."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.register_buffer("old", weight.detach()[:FIRST].clone())

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Fixed rows, then those of the parameter."""
        return torch.cat([self.old, weight[FIRST:]])


@pytest.mark.parametrize("name", EXACT)
def test_the_same_as_plain_pytorch(runs, toy, name):
    model = AutoModelForCausalLM.from_pretrained(base_of(runs, name.rsplit("_")[-1]))
    torch.manual_seed(42)
    adapted = get_peft_model(model, lora_config(4, 8.0, 0.0, LORA_LAYERS))
    factors = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    matrices = [model.get_input_embeddings(), model.get_output_embeddings()]
    for matrix in matrices:
        matrix.requires_grad_(True)
        parametrize.register_parametrization(matrix, "weight", NewRows(matrix.weight))
    originals = [matrix.parametrizations.weight.original for matrix in matrices]
    if model.config.tie_word_embeddings:
        matrices[1].parametrizations.weight.original = originals[0]
        del originals[1]
    groups = [{"params": factors}, {"params": originals, "lr_ratio": NEW_ROW_RATIO}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=BETAS, weight_decay=0.1)
    rows = rows_of(toy.parts)
    batches = [rows[begin : begin + 8] for begin in range(0, len(rows), 8)] * 2
    rates = [entry["learning_rate"] for entry in runs.metrics(name)]
    losses = train_plainly(adapted, optimizer, batches, rates)
    assert runs.losses(name) == pytest.approx(losses, rel=5e-4)
    saved = runs.weights(name)
    for key, matrix in zip(EMBEDDINGS.values(), matrices, strict=True):
        torch.testing.assert_close(saved[key], matrix.weight.detach(), rtol=1e-3, atol=1e-3)
    for key, tensor in adapted.state_dict().items():
        if "lora_" in key:
            torch.testing.assert_close(saved[key.replace(".default", "")], tensor, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", RUNS)
def test_resuming_changes_nothing(runs, name):
    assert len(runs.losses(name)) == 10
    assert runs.losses(f"{name}_again") == runs.losses(name)[4:]
    expected = runs.weights(name)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in runs.weights(f"{name}_again").items())


OPENED = ("zero2_tied", "zero2_untied", "bf16_untied")


def our_logits(directory: Path) -> torch.Tensor:
    model = open_model(directory, device="cpu", dtype="float32").model
    with torch.no_grad():
        return model(input_ids=torch.tensor(IDS)).logits[0]


def assert_close(logits: list | torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(logits), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", OPENED)
def test_peft_computes_what_we_compute(runs, name):
    expected = our_logits(adapter_of(runs, name))
    base = base_of(runs, name.rsplit("_")[-1])
    assert (expected - our_logits(base)).abs().max() > 0.05
    for logits in logits_by_way(str(base), str(adapter_of(runs, name))).values():
        assert_close(logits, expected)


@pytest.mark.parametrize("name", OPENED)
def test_peft_021_with_transformers_5_computes_what_we_compute(runs, name, project_root):
    python = environment_or_skip("transformers5", TRANSFORMERS_5)
    probe = project_root / "tests" / "support" / "adapter_probe.py"
    words = [python, probe, base_of(runs, name.rsplit("_")[-1]), adapter_of(runs, name)]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (by_way,) = json.loads(done.stdout)
    for logits in by_way.values():
        assert_close(logits, our_logits(adapter_of(runs, name)))


@pytest.mark.parametrize("name", ["zero2_tied", "zero2_untied"])
def test_what_is_saved_is_the_model_that_was_trained(runs, toy, name):
    opened = open_model(adapter_of(runs, name), device="cpu").model
    with torch.no_grad():
        loss = mean_loss(opened, rows_of(toy.parts[:1])).item()
    assert loss == pytest.approx(runs.metrics(name)[-1]["eval_loss"], rel=1e-4)


@pytest.mark.parametrize("name", OPENED)
def test_merged_models_are_the_adapter_on_its_base(runs, name, project_root):
    adapter = adapter_of(runs, name)
    exported = runs.workspace / f"exported_{name}"
    done = run_script(
        project_root, EXPORT, "--model_path", adapter, "--output_dir", exported, "--merge", "--dtype", "float32"
    )
    assert done.returncode == 0, done.stderr
    tolerance = 2e-2 if name.startswith("bf16") else 1e-4  # merged in the base's dtype, rounded once more
    for merged in (adapter.parent / "modelling_merged", exported):
        torch.testing.assert_close(our_logits(merged), our_logits(adapter), rtol=tolerance, atol=tolerance)
        assert json.loads((merged / "new_rows.json").read_text()) == {"first_new_row": FIRST, "trained": True}
        tensors = {key for file in merged.glob("*.safetensors") for key in load_file(file)}
        assert ("lm_head.weight" in tensors) == name.endswith("untied")


def test_the_next_stage_continues_the_adapter_with_its_rows(runs, project_root):
    adapter = adapter_of(runs, "zero2_untied")
    load = ("--load_checkpoint", str(adapter), "--max_steps", "1", "--lr", "1e-12", "--new_row_lr", "1e-12")
    command = runs.command("next", *RUN, *load, pretrained=False)
    runs.run([command], ranks=2)
    before, after = runs.weights("zero2_untied"), runs.weights("next")
    assert before.keys() == after.keys()
    for key, tensor in after.items():
        torch.testing.assert_close(tensor, before[key], rtol=1e-6, atol=1e-6)
    assert runs.losses("next")[0] < runs.losses("zero2_untied")[0]


def refusal(runs, project_root, name: str, *options: str) -> str:
    done = torchrun("train.py", runs.command(name, *options), 1, project_root)
    assert done.returncode != 0
    return done.stderr


def test_what_does_not_belong_together_is_refused(runs, project_root, toy, tmp_path):
    adapter = adapter_of(runs, "zero2_untied")
    load = ("--load_checkpoint", str(adapter), "--lora_rank", "4")
    assert "was trained with --lora_new_rows: give it again" in refusal(runs, project_root, "without", *load)
    never = refusal(runs, project_root, "never", "--lora_rank", "4", "--lora_new_rows")
    assert "--lora_new_rows" in never
    assert "--first_new_row" in never
    small = tmp_path / "small"
    shutil.copytree(base_of(runs, "untied"), small)
    model = AutoModelForCausalLM.from_pretrained(toy.model)
    model.resize_token_embeddings(ROWS + 5)
    save_model(model, small)
    copy = tmp_path / "adapter"
    shutil.copytree(adapter, copy)
    settings = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(small)}))
    sentence = f"has embeddings of {ROWS} rows, the model in {small} has {ROWS + 5}"
    assert sentence in refusal(
        runs, project_root, "other", "--load_checkpoint", str(copy), *RUN, "--pretrained", str(small)
    )
    with pytest.raises(UserError, match=re.escape(sentence)):
        open_model(copy, device="cpu")
    done = run_script(project_root, EXPORT, "--model_path", copy, "--output_dir", tmp_path / "out", "--merge")
    assert (done.returncode, sentence in done.stderr) == (2, True)
    weights = {
        key: tensor for key, tensor in load_file(adapter / "adapter_model.safetensors").items() if "lm_head" not in key
    }
    shutil.copy(adapter / "adapter_config.json", copy)
    save_file(weights, copy / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"has no base_model\.model\.lm_head\.weight"):
        open_model(copy, device="cpu")


def test_an_adapter_without_rows_is_continued_with_them(runs):
    """Also where the rows' beginning is known from the adapter alone, not from its base."""
    base, place = runs.workspace / "unrecorded", runs.workspace
    shutil.copytree(base_of(runs, "untied"), base)
    (base / "init_report.json").unlink()
    lora = ("--lora_rank", "4", "--max_steps", "1")
    first = runs.command("first", "--pretrained", str(base), *lora, "--first_new_row", str(FIRST), pretrained=False)
    load = ("--load_checkpoint", str(place / "first" / "save" / "modelling"))
    runs.run([first, runs.command("second", *load, *lora, "--lora_new_rows", pretrained=False)], ranks=1)
    before, after = runs.weights("first"), runs.weights("second")
    assert after.keys() - before.keys() == set(EMBEDDINGS.values())
    weights = AutoModelForCausalLM.from_pretrained(base).state_dict()
    for name in EMBEDDINGS.values():
        assert torch.equal(after[name][:FIRST], weights[name.removeprefix("base_model.model.")][:FIRST])


def warned_of(output: str) -> list[str]:
    """Models of which a run has said that their new rows are untrained and frozen."""
    return re.findall(rf"warning: {ROWS - FIRST} embedding rows of (\S+) \(from {FIRST} on\) [^\n]*{WARNING}", output)


def test_a_run_warns_exactly_where_untrained_rows_are_frozen(runs, toy, project_root):
    base, place = base_of(runs, "untied"), runs.workspace
    lora = ("--lora_rank", "2", "--max_steps", "1", "--merge_lora")

    def run(name: str, option: str, path: Path, *options: str) -> list[str]:
        return runs.command(name, option, str(path), "--max_steps", "1", *options, pretrained=False)

    output = runs.run(
        [
            run("frozen", "--pretrained", base, *lora),  # warns
            run("frozen_again", "--pretrained", place / "frozen" / "save" / "modelling_merged", *lora),  # warns
            run("continued", "--load_checkpoint", place / "frozen" / "save" / "modelling", *lora),  # warns
            run("whole", "--pretrained", base),
            run("rows", "--pretrained", base, "--train_only", "new_rows"),
            run("on_whole", "--load_checkpoint", place / "whole" / "save" / "modelling", *lora),
            run("on_rows", "--pretrained", place / "rows" / "save" / "modelling", *lora),
            run("on_on_whole", "--pretrained", place / "on_whole" / "save" / "modelling_merged", *lora),
            run("on_merged", "--pretrained", adapter_of(runs, "zero2_untied").parent / "modelling_merged", *lora),
            run("never_expanded", "--pretrained", toy.model, *lora),
        ],
        ranks=1,
    )
    assert warned_of(output) == [str(base), str(place / "frozen" / "save" / "modelling_merged"), str(base)]
    for model in (base, place / "whole" / "save" / "modelling"):
        done = run_script(project_root, EXPORT, "--model_path", model, "--output_dir", place / f"of_{model.name}")
        assert done.returncode == 0, done.stderr
    exported = [place / f"of_{name}" for name in (base.name, "modelling")]
    output = runs.run([run(f"on_{path.name}", "--pretrained", path, *lora) for path in exported], ranks=1)
    assert warned_of(output) == [str(exported[0])]
