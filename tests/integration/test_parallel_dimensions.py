"""The dimensions of plugin 3d, pipeline, tensor, sequence and ZeRO parallel, train what one process
trains.

33 rows, 8 a step, 4 epochs: 20 steps, of which every fifth has a single row (fewer micro-batches
than pipeline stages, ranks without rows). The vocabulary of 203 is divided by no tensor parallel
size.
"""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from colossal_llama.dataset.dummy_dataset import random_rows
from colossal_llama.model.weights.generation_config import save_model
from tests.support.training_runs import Runner, make_toy
from tests.support.versions import NEEDS_SHARD_POLICIES

pytestmark = [pytest.mark.slow, NEEDS_SHARD_POLICIES]  # slow: the runs that all tests of the file share

# Sums in another order. Half precision (which ZeRO needs): fp16, whose last bit is 2^-11. Of the
# weights each tensor's whole change is compared, in half precision without one element in fifty:
# AdamW turns a tiny gradient of the other sign into a step of full size in single elements, and
# which they are depends on the processor (one of a norm's 64, 13 % of its change, where oneDNN has
# AVX512-FP16 to use).
FP32 = {"loss": 1e-5, "gradient_norm": 1e-5, "change": 1e-4, "left_out": 0.0}
FP16 = {"loss": 1e-3, "gradient_norm": 1e-2, "change": 5e-2, "left_out": 0.02}

RUN = ("--num_epochs", "4", "--lr", "3e-3", "--warmup_steps", "4", "--skip_save_each_epoch", "--save_interval", "1000")
SHORT = ("--num_epochs", "1", "--lr", "3e-3", "--skip_save_each_epoch", "--save_interval", "1000")
PLAIN, HALF = ("--plugin", "3d", "--zero", "0"), ("--plugin", "3d", "--mixed_precision", "fp16")
ROWS8 = ("--micro_batch_size", "4", "--accumulation_steps", "2")
ROWS4 = ("--micro_batch_size", "1", "--accumulation_steps", "4")
PP2, TP2 = ("--pp", "2"), ("--tp", "2")
SPLIT, RING, ALL = (("--sp", "2", "--sp_mode", mode) for mode in ("split_gather", "ring", "all_to_all"))

ON_TWO = {
    "pp2": (*PLAIN, *ROWS8, *PP2, "--microbatch_size", "2"),
    "tp2": (*PLAIN, *ROWS8, *TP2),
    "sp2_split_gather": (*PLAIN, *ROWS8, *TP2, *SPLIT),
    "sp2_ring": (*PLAIN, *ROWS8, *TP2, *RING),
    "sp2_all_to_all": (*PLAIN, *ROWS8, *ALL),
}
ON_FOUR = {
    "pp2_tp2": (*PLAIN, *ROWS8, *PP2, *TP2),
    "pp2_zero1": (*HALF, *ROWS4, *PP2),
    "tp2_zero2": (*HALF, *ROWS4, *TP2, "--zero", "2"),
}
# One epoch of five steps.
FURTHER = {
    "pp2_all_to_all": (*PLAIN, *ROWS8, *PP2, *ALL),
    "pp2_split_gather_zero1": (*HALF, *ROWS8, *PP2, *TP2, *SPLIT),
    "split_gather_zero2": (*HALF, *ROWS4, *TP2, *SPLIT, "--zero", "2"),
}
# One micro-batch at a time, so that NEFTune's noise and the mean of means have the same
# micro-batches everywhere.
ONE_BY_ONE = ("--micro_batch_size", "1", "--accumulation_steps", "8")
METHODS = {
    "methods": (
        *ONE_BY_ONE,
        "--use_neft",
        "--use_grad_checkpoint",
        "--loss_average",
        "micro_batch",
        "--grad_clip",
        "0.2",
    ),
    "frozen": (*ONE_BY_ONE, "--freeze_non_embeds_params", "--cross_document_attention"),
}
# From the checkpoint after step 10 of `pp2`: everything, and the weights alone.
GOES_ON = {
    "tp2_goes_on": (*PLAIN, *ROWS8, *TP2),
    "all_to_all_goes_on": (*PLAIN, *ROWS8, *ALL),
    "zero2_goes_on": ("--micro_batch_size", "2", "--accumulation_steps", "2"),
}
# Four-fold divisions and offload, on four layers and rows that use the whole of a vocabulary that
# four divides, or does not.
VOCABULARIES = (49_953, 69_104)
LARGE = {
    "tp4_49953": (*PLAIN, *ROWS8, "--tp", "4"),
    "tp4_69104": (*PLAIN, *ROWS8, "--tp", "4"),
    "pp4_69104": (*PLAIN, *ROWS8, "--pp", "4"),
    "sp4_all_to_all_49953": (*PLAIN, *ROWS8, "--sp", "4", "--sp_mode", "all_to_all"),
    "sp4_split_gather_49953": (*PLAIN, *ROWS8, "--tp", "4", "--sp", "4", "--sp_mode", "split_gather"),
    "pp2_offload_69104": (*HALF, *ROWS4, *PP2, "--zero_cpu_offload"),
    "tp2_offload_49953": (*HALF, *ROWS4, *TP2, "--zero_cpu_offload"),
}
BEGINS = {f"{name.split('_goes')[0]}_begins": options for name, options in GOES_ON.items()}
LAYOUTS = {"pp2": PP2, "split_gather": (*TP2, *SPLIT), "all_to_all": ALL}


@pytest.fixture(scope="module")
def tied(tmp_path_factory, project_root):
    """A model whose output layer is its embedding, and which a pipeline therefore has on its first
    and its last stage.
    """
    root = tmp_path_factory.mktemp("tied")
    toy = make_toy(root)
    model = AutoModelForCausalLM.from_pretrained(toy.model, tie_word_embeddings=True)
    for file in toy.model.glob("*.safetensors"):
        file.unlink()
    save_model(model, toy.model)
    return ("--pretrained", str(toy.model))


@pytest.fixture(scope="module")
def large(tmp_path_factory, toy) -> dict[int, tuple[str, ...]]:
    """Options by vocabulary: a random model of it with four layers, heads and key-value heads, and
    12 rows of its tokens.
    """
    options, root = {}, tmp_path_factory.mktemp("large")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    for size in VOCABULARIES:
        model, part = root / f"model-{size}", root / f"part-{size}"
        shutil.copytree(toy.model, model, ignore=shutil.ignore_patterns("*.safetensors"))
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(vocab_size=size, num_key_value_heads=4, **shape)).save_pretrained(model)
        random_rows(12, 64, size, documents_per_row=2).save_to_disk(str(part))
        note = {"kind": "pretrain", "max_length": 64, "tokens": 12 * 64, "fingerprint": f"random {size}"}
        (part / "part.json").write_text(json.dumps(note))
        options[size] = ("--pretrained", str(model), "--dataset", str(part))
    return options


@pytest.fixture(scope="module")
def runs(runner: Runner, tied, large) -> Runner:
    """All runs, in three launches."""
    command = runner.command
    one = {"alone": (*RUN, *ROWS8), "alone_short": (*SHORT, *ROWS8), "tied": (*SHORT, *ROWS8, *tied)}
    one |= {name: (*SHORT, *options) for name, options in METHODS.items()}
    two = {name: (*RUN, *options) for name, options in ON_TWO.items()}
    two |= {
        f"{layout}_{name}": (*SHORT, *PLAIN, *options, *dimensions)
        for name, options in METHODS.items()
        for layout, dimensions in LAYOUTS.items()
    }
    two["pp2_tied"] = (*SHORT, *PLAIN, *ROWS8, *PP2, *tied)
    checkpoint = runner.workspace / "pp2" / "save" / "epoch-1_step-10"
    # All micro-batches of an evaluation have one shape, and the step before it another: stages must
    # not take its tensors, which want no gradient, for those of the step after it.
    evaluation = ("--padding_mode", "max_length", "--eval_dataset", str(runner.toy.parts[0]), "--eval_interval", "5")
    two["pp2"] = (*two["pp2"], "--save_interval", "10", *evaluation)
    two |= {name: (*RUN, *options, "--load_checkpoint", str(checkpoint)) for name, options in GOES_ON.items()}
    weights = ("--max_steps", "2", "--warmup_steps", "1", "--load_checkpoint", str(checkpoint / "modelling"))
    two |= {name: (*RUN, *options, *weights) for name, options in BEGINS.items()}
    four = {name: (*RUN, *options) for name, options in ON_FOUR.items()}
    four |= {name: (*SHORT, *options) for name, options in FURTHER.items()}
    one |= {f"alone_{size}": (*SHORT, *ROWS8, *model) for size, model in large.items()}
    four |= {name: (*SHORT, *options, *large[vocabulary_of(name)]) for name, options in LARGE.items()}
    for ranks, group in ((1, one), (2, two), (4, four)):
        runner.run([command(name, *options) for name, options in group.items()], ranks=ranks)
    return runner


def assert_same(
    runner: Runner, name: str, reference: str, tolerance: dict[str, float], start: Path | None = None
) -> None:
    """Losses, gradient norms and learning rates of every step, and what became of each weight of
    the model at the start.
    """
    start = start or runner.toy.model
    there, here = runner.metrics(reference), runner.metrics(name)
    for key in ("learning_rate", "samples_seen", "tokens_seen", "target_tokens_seen"):
        assert [step[key] for step in here] == [step[key] for step in there], key
    for key in ("loss", "gradient_norm"):
        assert [step[key] for step in here] == pytest.approx([step[key] for step in there], rel=tolerance[key]), key
    weights, expected, before = runner.weights(name), runner.weights(reference), load_file(start / "model.safetensors")
    assert weights.keys() == expected.keys() == before.keys()
    for key, tensor in expected.items():
        assert weights[key].shape == tensor.shape, key
        differences = (weights[key].float() - tensor).abs().flatten().sort().values
        compared = math.floor((1 - tolerance["left_out"]) * len(differences))
        difference, change = differences[:compared].norm(), (tensor - before[key]).norm()
        assert difference <= tolerance["change"] * change, (key, difference, change)


@pytest.mark.parametrize("name", [*ON_TWO, *ON_FOUR, *FURTHER])
def test_same_as_one_process(runs, name):
    steps, reference = (5, "alone_short") if name in FURTHER else (20, "alone")
    assert len(runs.metrics(name)) == steps
    options = (ON_TWO | ON_FOUR | FURTHER)[name]
    assert_same(runs, name, reference, FP16 if "fp16" in options else FP32)


@pytest.mark.parametrize("name", LARGE)
def test_four_processes_and_a_large_vocabulary(runs, large, name):
    """Two steps, of 8 and 4 rows; what is saved has the true size, without the rows that make the
    vocabulary divisible.
    """
    size, is_half = vocabulary_of(name), "fp16" in LARGE[name]
    assert len(runs.metrics(name)) == 2
    # AdamW's first steps are as long for a gradient near nothing; and an ulp of a norm's fp16
    # weight, 1, is a third of its change.
    tolerance = {**FP16, "change": 0.3} if is_half else {**FP32, "loss": 1e-6, "change": 1e-3}
    assert_same(runs, name, f"alone_{size}", tolerance, Path(large[size][1]))
    assert runs.weights(name)["lm_head.weight"].shape == (size, 32)


def vocabulary_of(name: str) -> int:
    return int(name.rpartition("_")[2])


@pytest.mark.parametrize("name", GOES_ON)
def test_a_run_goes_on_in_any_other_division(runs, name):
    assert runs.losses(name) == pytest.approx(runs.losses("alone")[10:], rel=FP32["loss"])


def test_a_new_stage_begins_with_the_weights_of_any_other_division(runs):
    losses = [runs.losses(name) for name in BEGINS]
    assert losses[0] == pytest.approx(losses[1], rel=FP32["loss"])
    assert losses[0] == pytest.approx(losses[2], rel=FP32["loss"])
    assert losses[0][0] < runs.losses("alone")[0] - 0.2


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_methods_do_the_same_in_every_dimension(runs, layout, method):
    assert_same(runs, f"{layout}_{method}", method, FP32)


def test_an_output_layer_tied_to_the_embedding_across_stages(runs, tied):
    assert_same(runs, "pp2_tied", "tied", FP32, Path(tied[1]))
    assert "lm_head.weight" not in runs.weights("pp2_tied")


@pytest.mark.parametrize("name", ["pp2_tp2", "pp2_split_gather_zero1", "sp2_all_to_all", "pp2_tied"])
def test_saved_models_open_with_transformers_alone(runs, name):
    path = runs.workspace / name / "save" / "modelling"
    model, report = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not any(report.values())
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == 203
    ids = torch.arange(3, 60).unsqueeze(0)
    alone = {"pp2_tied": "tied", "pp2_split_gather_zero1": "alone_short"}.get(name, "alone")
    reference = AutoModelForCausalLM.from_pretrained(runs.workspace / alone / "save" / "modelling")
    torch.testing.assert_close(
        model(ids).logits.float(), reference(ids).logits, rtol=0, atol=0.05 if "zero1" in name else 1e-3
    )
