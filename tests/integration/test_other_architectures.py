"""Every architecture is trained as LLaMA is: by its own class, on every plugin, resumed, saved.

The losses to meet are transformers' own, of each document in a plain row.
"""

import itertools
import json
import os
import subprocess

import datasets
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from colossal_llama.export.arguments import parse_arguments
from colossal_llama.export.directory import export
from colossal_llama.inference.generation import Sampling, TextGenerator
from colossal_llama.model.pretrained import load_for_inference
from colossal_llama.utils.transformers_version import PINNED, TESTED_5, is_transformers_5
from tests.support import logits_probe
from tests.support.architectures import ONE_OF_EACH, VARIANTS, config_of, make_model, random_model
from tests.support.client_environments import environment_or_skip
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.slow  # the runs that all tests of the file share

ONE_STEP = ("--micro_batch_size", "33", "--num_epochs", "1", "--accumulation_steps", "1")
"""All rows in one step, whatever the order."""
DATA = {"spliced": (), "packed": (), "padded": ("--padding_mode", "longest")}
SFT = ("packed", "padded")
BATCH = ("--micro_batch_size", "2", "--accumulation_steps", "2", "--num_epochs", "1")
HALF = ("--mixed_precision", "bf16")
METHODS = {
    "zero2": (),
    "zero2_cpu": ("--plugin", "zero2_cpu"),
    "ddp": ("--plugin", "ddp"),
    "3d": ("--plugin", "3d", "--zero", "0"),
    "recomputed": ("--use_grad_checkpoint",),
}
"""Ways to the same weights."""
OTHERS = {
    "zero2_bf16": HALF,
    "3d_bf16": ("--plugin", "3d", "--zero", "2", *HALF),
    "lora": ("--lora_rank", "4", "--merge_lora"),
    "neft": ("--use_neft",),
    "frozen": ("--freeze_non_embeds_params",),
}
RESUMED = ("mistral-v0.1", "qwen2", "qwen3-small")
CLEAN = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
INTERVAL = ("--save_interval", "2", "--num_epochs", "2", "--use_neft", *HALF)


@pytest.fixture(scope="module")
def models(toy, tmp_path_factory):
    root = tmp_path_factory.mktemp("architectures")
    return {variant: make_model(root / variant, variant, toy.model) for variant in VARIANTS}


@pytest.fixture(scope="module")
def one_step(runner, models):
    """A first step of every variant on every kind of rows."""
    runner.run(
        [
            runner.command(
                f"{variant}_{kind}", *ONE_STEP, *options, "--pretrained", str(models[variant]), sft=kind in SFT
            )
            for variant in VARIANTS
            for kind, options in DATA.items()
        ],
        ranks=1,
    )
    return runner


@pytest.fixture(scope="module")
def two_ranks(runner, models):
    """Every plugin and method with one variant of each architecture, and runs to be resumed."""
    commands = [
        runner.command(f"{variant}_{name}", *BATCH, *options, "--pretrained", str(models[variant]))
        for variant in ONE_OF_EACH
        for name, options in {**METHODS, **OTHERS}.items()
    ]
    commands += [
        runner.command(f"{variant}_whole", *BATCH, *INTERVAL, "--pretrained", str(models[variant]))
        for variant in RESUMED
    ]
    runner.run(commands, ranks=2)
    again = [
        runner.command(f"{variant}_again", *BATCH, *INTERVAL, "--load_checkpoint", str(checkpoint), pretrained=False)
        for variant in RESUMED
        for checkpoint in [runner.workspace / f"{variant}_whole" / "save" / "epoch-0_step-4"]
    ]
    runner.run(again, ranks=2)
    return runner


def mean_loss(directory, parts) -> float:
    """Mean cross-entropy of all targets, each document alone in a row of its own."""
    model = AutoModelForCausalLM.from_pretrained(directory, torch_dtype=torch.float32)
    total, targets = 0.0, 0
    for part in parts:
        for row in datasets.load_from_disk(str(part)):
            begin = 0
            for length in row["document_lengths"]:
                ids, labels = (torch.tensor(row[key][begin : begin + length]) for key in ("input_ids", "labels"))
                with torch.no_grad():
                    logits = model(input_ids=ids.unsqueeze(0)).logits[0]
                total += cross_entropy(logits[:-1], labels[1:], reduction="sum").item()
                targets += int((labels[1:] != -100).sum())
                begin += length
    return total / targets


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_first_loss_is_that_of_transformers(one_step, models, toy, variant, kind):
    parts = toy.sft_parts if kind in SFT else toy.parts
    assert one_step.losses(f"{variant}_{kind}")[0] == pytest.approx(mean_loss(models[variant], parts), abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("variant", ONE_OF_EACH)
def test_plugins_and_recomputation_lead_to_the_same_weights(two_ranks, variant, method):
    expected = two_ranks.weights(f"{variant}_zero2")
    assert two_ranks.losses(f"{variant}_{method}") == pytest.approx(two_ranks.losses(f"{variant}_zero2"), rel=2e-4)
    for name, tensor in two_ranks.weights(f"{variant}_{method}").items():
        torch.testing.assert_close(tensor, expected[name], rtol=2e-4, atol=5e-5, msg=name)


@pytest.mark.parametrize("method", OTHERS)
@pytest.mark.parametrize("variant", ONE_OF_EACH)
def test_every_method_learns(two_ranks, variant, method):
    losses = two_ranks.losses(f"{variant}_{method}")
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("variant", ONE_OF_EACH)
def test_frozen_layers_stay_as_they_are(two_ranks, models, variant):
    before = AutoModelForCausalLM.from_pretrained(models[variant]).state_dict()
    after = two_ranks.weights(f"{variant}_frozen")
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"model.embed_tokens.weight", "lm_head.weight"}


@pytest.mark.parametrize("variant", RESUMED)
def test_resumed_equals_uninterrupted_bit_for_bit(two_ranks, variant):
    resumed, whole = (two_ranks.weights(f"{variant}_{name}") for name in ("again", "whole"))
    assert two_ranks.losses(f"{variant}_again") == two_ranks.losses(f"{variant}_whole")[4:]
    assert resumed.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


@pytest.mark.parametrize("folder", ["zero2/save/modelling", "lora/save/modelling_merged"])
@pytest.mark.parametrize("variant", ONE_OF_EACH)
def test_a_saved_directory_opens_as_its_own_class(two_ranks, models, variant, folder):
    name, rest = folder.split("/", 1)
    directory = two_ranks.workspace / f"{variant}_{name}" / rest
    source, saved = (AutoModelForCausalLM.from_pretrained(path) for path in (models[variant], directory))
    assert type(saved) is type(source)
    assert saved.config.architectures == [type(source).__name__]
    assert not torch.equal(saved.lm_head.weight, source.lm_head.weight) or name == "lora"


@pytest.mark.parametrize("variant", ONE_OF_EACH)
def test_a_saved_model_is_exported_and_answers(two_ranks, variant, tmp_path):
    """Also an adapter, merged by the export as the run merged it."""
    save_dir = two_ranks.workspace / f"{variant}_lora" / "save"
    words = ["--model_path", str(save_dir / "modelling"), "--output_dir", str(tmp_path / "out"), "--merge"]
    export(parse_arguments([*words, "--dtype", "bfloat16"]))
    exported, merged = (
        load_for_inference(path, "auto", torch.device("cpu"))[0]
        for path in (tmp_path / "out", save_dir / "modelling_merged")
    )
    assert type(exported).__name__ == type(merged).__name__ == exported.config.architectures[0]
    for name, tensor in merged.state_dict().items():
        assert torch.equal(exported.state_dict()[name], tensor.bfloat16()), name
    answer = exported.generate(torch.tensor([[1, 5, 6]]), max_new_tokens=4, do_sample=False)
    assert answer.shape[1] > 3


@pytest.mark.parametrize("variant", VARIANTS)
def test_answers_are_those_of_whole_forward_passes(variant, llama2):
    """With the key-value cache, which the second prompt reuses, beyond the window."""
    tokenizer = AutoTokenizer.from_pretrained(llama2)
    model = random_model(config_of(variant, vocab_size=len(tokenizer), initializer_range=0.3)).eval()
    generator = TextGenerator(model, tokenizer)
    for prompt in ([1, *range(30, 50)], [1, *range(30, 44), 77, 78]):
        answer = generator.answer(prompt, (), Sampling(max_new_tokens=12, do_sample=False))
        assert "".join(answer) == answer.completion.text
        ids = list(prompt)
        for _ in range(12):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        assert answer.completion.token_ids == ids[len(prompt) :]


def test_memory_is_estimated_as_counted(runner, models, project_root):
    options = ("--micro_batch_size", "8", "--padding_mode", "max_length", "--max_steps", "2", *HALF)
    methods = {"zero2": (), "recomputed": ("--use_grad_checkpoint",), "ddp": ("--plugin", "ddp")}
    cases = list(itertools.product(("mistral-nemo", "qwen2", "qwen3"), methods))
    commands = [
        runner.command(f"{variant}_{name}_memory", *options, *methods[name], "--pretrained", str(models[variant]))
        for variant, name in cases
    ]
    listing, output = runner.workspace / "counted.json", runner.workspace / "counts.json"
    listing.write_text(json.dumps(commands))
    done = run_ranks("tests.support.count_memory", [str(listing), str(output)], 2, project_root)
    assert done.returncode == 0, done.stdout[-6000:]
    for case, counts in zip(cases, json.loads(output.read_text()), strict=True):
        for phase, parts in counts["estimated"].items():
            assert sum(parts.values()) == pytest.approx(counts["counted"][phase], rel=0.05), (case, phase)


def test_saved_directories_give_the_same_logits_in_the_other_version_of_transformers(two_ranks):
    version = PINNED if is_transformers_5() else TESTED_5
    python = environment_or_skip(f"transformers{version[0]}", [f"transformers=={version}"])
    directories = [
        str(two_ranks.workspace / f"{variant}_{folder}")
        for variant in ONE_OF_EACH
        for folder in ("zero2/save/modelling", "lora/save/modelling_merged")
    ]
    done = subprocess.run(
        [python, logits_probe.__file__, *directories], capture_output=True, text=True, check=False, env=CLEAN
    )
    assert done.returncode == 0, done.stderr
    for directory, (name, logits) in zip(directories, json.loads(done.stdout), strict=True):
        own_name, own_logits = logits_probe.logits_of(directory)
        assert name == own_name
        torch.testing.assert_close(torch.tensor(logits), torch.tensor(own_logits), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [("--tp", "2"), ("--pp", "2"), ("--sp", "2", "--sp_mode", "all_to_all")], ids=str)
def test_parallel_dimensions_are_refused_by_name(runner, models, options):
    command = runner.command(
        "refused", *BATCH, "--plugin", "3d", "--zero", "0", *options, "--pretrained", str(models["qwen3"])
    )
    # Under transformers 5 the version is refused first.
    with pytest.raises(AssertionError, match=r"--tp, --pp and --sp (divide models of type llama|need transformers)"):
        runner.run([command], ranks=2)
