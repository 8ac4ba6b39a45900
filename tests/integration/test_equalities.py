"""What must not change the result does not: plugins, ranks, accumulation, recomputation, padding,
splicing.
"""

import json

import pytest
import torch
from transformers import AutoTokenizer

from tests.support.training_runs import GENERATION_SETTINGS

# Sums in another order: fp32 rounding, amplified by a few AdamW steps at a large rate.
FP32 = {"rtol": 2e-4, "atol": 2e-5}
# Half-precision weights and gradients, whose last bit is 2^-8.
BF16 = {"rtol": 1e-2, "atol": 1e-2}

BATCH = ("--micro_batch_size", "2", "--accumulation_steps", "2")


@pytest.fixture(scope="module")
def evaluation(toy) -> tuple[str, ...]:
    """Options for a validation loss; it changes nothing of the training (test_watching.py)."""
    return ("--eval_dataset", str(toy.parts[1]), "--eval_interval", "2")


@pytest.fixture(scope="module")
def two_ranks(runner, evaluation):
    """All runs of this module on two ranks, in one launch."""
    command = runner.command
    runner.run(
        [
            command("zero2", *BATCH, *evaluation),
            command("zero2_cpu", *BATCH, "--plugin", "zero2_cpu"),
            command("ddp", *BATCH, "--plugin", "ddp"),
            command("3d", *BATCH, "--plugin", "3d", "--zero", "0"),
            command("one_micro_batch", "--micro_batch_size", "4", "--accumulation_steps", "1"),
            command("four_micro_batches", "--micro_batch_size", "1", "--accumulation_steps", "4"),
            command("recomputed", *BATCH, "--use_grad_checkpoint"),
            command("padded", *BATCH, "--padding_mode", "max_length", "--pad_token", "unk"),
            command("zero2_bf16", *BATCH, "--mixed_precision", "bf16"),
            command("3d_zero1_bf16", *BATCH, "--mixed_precision", "bf16", "--plugin", "3d"),
            command("3d_zero2_bf16", *BATCH, "--mixed_precision", "bf16", "--plugin", "3d", "--zero", "2"),
            command("ddp_bf16", *BATCH, "--mixed_precision", "bf16", "--plugin", "ddp"),
            command("zero2_cpu_bf16", *BATCH, "--mixed_precision", "bf16", "--plugin", "zero2_cpu"),
            command("zero2_fp16", *BATCH, "--mixed_precision", "fp16"),
            command("neft", *BATCH, "--use_neft"),
            command("mean_of_means", *BATCH, "--loss_average", "micro_batch"),
            command("seeing_others", *BATCH, "--cross_document_attention"),
            command("frozen", *BATCH, "--freeze_non_embeds_params"),
            command("sft", sft=True),
            command("sft_alone", "--padding_mode", "longest", sft=True),
        ],
        ranks=2,
    )
    return runner


@pytest.fixture(scope="module")
def one_rank(runner, evaluation):
    """One rank, the same rows a step."""
    runner.run([runner.command("alone", "--micro_batch_size", "4", "--accumulation_steps", "2", *evaluation)], ranks=1)
    return runner


@pytest.fixture(scope="module")
def four_ranks(runner, evaluation):
    """Four ranks, the same rows a step."""
    runner.run([runner.command("four", "--micro_batch_size", "2", "--accumulation_steps", "1", *evaluation)], ranks=4)
    return runner


def assert_same(runner, name: str, reference: str, tolerance: dict) -> None:
    """Losses of every step and final weights agree within the tolerance."""
    assert runner.losses(name) == pytest.approx(runner.losses(reference), rel=tolerance["rtol"], abs=tolerance["atol"])
    weights, expected = runner.weights(name), runner.weights(reference)
    assert weights.keys() == expected.keys()
    for key, tensor in expected.items():
        assert weights[key].shape == tensor.shape
        torch.testing.assert_close(
            weights[key].float(), tensor.float(), rtol=tolerance["rtol"], atol=10 * tolerance["atol"]
        )


@pytest.mark.parametrize(
    "name", ["zero2_cpu", "ddp", "3d", "one_micro_batch", "four_micro_batches", "recomputed", "padded"]
)
def test_same_losses_and_weights_in_fp32(two_ranks, name):
    assert_same(two_ranks, name, "zero2", FP32)


def test_generation_settings_are_those_of_the_model(two_ranks):
    saved = json.loads((two_ranks.workspace / "zero2" / "save" / "modelling" / "generation_config.json").read_text())
    assert saved.items() >= GENERATION_SETTINGS.items()


def test_the_saved_tokenizer_names_the_padding_asked_for(two_ranks):
    names = {
        name: AutoTokenizer.from_pretrained(two_ranks.workspace / name / "save" / "modelling").pad_token
        for name in ("padded", "zero2")
    }
    assert names == {"padded": "<unk>", "zero2": None}


@pytest.mark.parametrize(
    "name", ["zero2_bf16", "3d_zero1_bf16", "3d_zero2_bf16", "ddp_bf16", "zero2_cpu_bf16", "zero2_fp16"]
)
def test_half_precision_follows_fp32(two_ranks, name):
    assert two_ranks.losses(name) == pytest.approx(two_ranks.losses("zero2"), rel=BF16["rtol"], abs=BF16["atol"])


def test_one_rank_equals_two(one_rank, two_ranks):
    assert_same(one_rank, "alone", "zero2", FP32)


def test_four_ranks_equal_two(four_ranks, two_ranks):
    assert_same(four_ranks, "four", "zero2", FP32)


@pytest.mark.parametrize("name", ["alone", "four"])
def test_ranks_change_no_loss_of_categories_or_of_validation(one_rank, two_ranks, four_ranks, name):
    """11 rows of validation data: no number of ranks but one has them in equal shares."""
    kinds = ("loss_by_category", "eval_loss", "eval_loss_by_category")
    for some, two in zip(two_ranks.metrics(name), two_ranks.metrics("zero2"), strict=True):
        for kind in kinds:
            assert (kind in some) == (kind in two)
            if kind in two:
                assert some[kind] == pytest.approx(two[kind], rel=FP32["rtol"]), kind
    assert [entry["step"] for entry in two_ranks.metrics(name) if "eval_loss" in entry] == [2, 4, 5]


def test_the_loss_falls_and_every_row_is_seen(two_ranks):
    entries = two_ranks.metrics("zero2")
    assert len(entries) == 5  # 33 rows, 8 a step: four full steps and one of a single row
    assert entries[-1]["samples_seen"] == 33
    assert entries[-1]["loss"] < entries[0]["loss"] - 0.2


def test_options_that_must_change_the_result_do(two_ranks):
    plain = two_ranks.losses("zero2")
    for name in ("neft", "mean_of_means", "seeing_others", "frozen"):
        assert two_ranks.losses(name) != plain, name


def test_gradient_norm_is_that_of_the_unscaled_gradients(two_ranks):
    norms = {
        name: [entry["gradient_norm"] for entry in two_ranks.metrics(name)]
        for name in ("zero2", "zero2_fp16", "ddp", "3d")
    }
    for name in ("zero2_fp16", "ddp", "3d"):
        assert norms[name] == pytest.approx(norms["zero2"], rel=0.05), name


def test_frozen_parameters_stay_as_they_were(two_ranks, toy):
    from safetensors.torch import load_file

    before = load_file(toy.model / "model.safetensors")
    after = two_ranks.weights("frozen")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"model.embed_tokens.weight", "lm_head.weight"}


def test_conversations_accumulate_eight_micro_batches_by_default(two_ranks):
    (entry,) = two_ranks.metrics("sft_alone")  # 12 conversations: one short step of 16
    assert entry["samples_seen"] == 12


def test_packed_conversations_equal_conversations_apart(two_ranks):
    """All twelve are in one step either way: the mean over their targets and its gradient are the
    same.
    """
    assert two_ranks.metrics("sft")[0]["samples_seen"] == 12
    assert_same(two_ranks, "sft", "sft_alone", FP32)


def test_the_final_model_opens_with_transformers_alone(two_ranks, toy):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name in ("zero2", "3d"):
        path = two_ranks.workspace / name / "save" / "modelling"
        model = AutoModelForCausalLM.from_pretrained(path)
        assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == 203
        assert model.config.use_cache
        assert len(AutoTokenizer.from_pretrained(path)) == 203
        assert (path / "generation_config.json").is_file()


def test_learning_rate_follows_the_schedule_in_every_plugin(two_ranks):
    rates = [entry["learning_rate"] for entry in two_ranks.metrics("zero2")]
    assert rates[0] == pytest.approx(1e-2)
    assert rates[-1] == pytest.approx(1e-3)
    assert rates == sorted(rates, reverse=True)
    for name in ("zero2_cpu", "ddp", "3d", "four_micro_batches"):
        assert [entry["learning_rate"] for entry in two_ranks.metrics(name)] == rates
