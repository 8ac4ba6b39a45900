"""On the GPU: every architecture computes with fused kernels and in fp8 what it does without."""

import pytest
import torch
from transformers import PreTrainedModel

from colossal_llama.model.architectures import find_architecture
from colossal_llama.model.attention.document_mask import encode_document_mask
from colossal_llama.model.attention.varlen import CUDNN, SDPA, VARLEN
from colossal_llama.model.kernels.apply import use_fused_kernels
from colossal_llama.model.kernels.fp8_linear import fp8_unavailable_reason, use_fp8
from colossal_llama.model.kernels.per_token_loss import return_token_losses
from tests.support.architectures import ONE_OF_EACH, VARIANTS, config_of, make_model, random_model
from tests.support.training_runs import BF16_BATCH as BATCH

pytestmark = pytest.mark.gpu

SIZES = {
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "attention_dropout": 0.0,
}
LENGTHS = [[300, 17, 195], [512], [100, 130]]  # the third row is padded
WIDTH = 512
WINDOW = 128
PLUGINS = {
    "zero2": (),
    "plain": ("--fused_kernels", "False"),
    "recomputed": ("--use_grad_checkpoint",),
    "one_recomputed": ("--use_grad_checkpoint", "--recompute_layers", "1"),
    "zero2_cpu": ("--plugin", "zero2_cpu"),
    "ddp": ("--plugin", "ddp"),
    "3d": ("--plugin", "3d"),
    "gemini": ("--plugin", "gemini"),
    "fp8": ("--fp8",),
}
TOLERANCE = {"rel": 1e-2, "abs": 1e-2}  # bf16 weights, other kernels


def model_of(variant: str, attention: str) -> PreTrainedModel:
    # As `load_config` has it: transformers 4.51 masks by a window even if it is switched off.
    settings = {**SIZES, "sliding_window": WINDOW if variant == "mistral-v0.1" else None}
    model = random_model(config_of(variant, **settings)).to("cuda", torch.bfloat16)
    model.config._attn_implementation = attention
    model.config.use_cache = False
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, 1000, (len(LENGTHS), WIDTH), generator=torch.Generator().manual_seed(1))
    positions = torch.zeros_like(ids)
    for row, lengths in enumerate(LENGTHS):
        positions[row, : sum(lengths)] = torch.cat([torch.arange(length) for length in lengths])
    return ids.cuda(), positions.cuda()


def computed(model: PreTrainedModel) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the packed batch."""
    ids, positions = batch()
    labels = ids.clone()
    labels[2, sum(LENGTHS[2]) :] = -100
    mask = encode_document_mask(LENGTHS, WIDTH).cuda()
    loss = model(input_ids=ids, position_ids=positions, attention_mask=mask, labels=labels).loss
    loss.backward()
    return loss.item(), {name: parameter.grad.float() for name, parameter in model.named_parameters()}


def assert_close(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], share: float) -> None:
    """Each gradient differs by less than a share of its norm."""
    for name, gradient in theirs.items():
        assert (mine[name] - gradient).norm() < share * gradient.norm() + 1e-6, name


@pytest.mark.parametrize("attention", [CUDNN, VARLEN, SDPA])
@pytest.mark.parametrize("variant", ONE_OF_EACH)
def test_packed_documents_equal_documents_apart(variant, attention):
    """With a window shorter than most documents where the architecture has one."""
    model = model_of(variant, attention)
    ids, positions = batch()
    with torch.no_grad():
        mask = encode_document_mask(LENGTHS, WIDTH).cuda()
        packed = model(input_ids=ids, position_ids=positions, attention_mask=mask).logits
        model.config._attn_implementation = "eager"
        for row, lengths in enumerate(LENGTHS):
            begin = 0
            for length in lengths:
                alone = model(input_ids=ids[row : row + 1, begin : begin + length]).logits[0]
                # Eager attention rounds its scores to bf16: single logits differ by up to 0.12.
                difference = packed[row, begin : begin + length].float() - alone.float()
                assert difference.norm() < 0.03 * alone.float().norm()
                begin += length


@pytest.mark.parametrize("fuse_loss", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_fused_kernels_compute_what_the_plain_ones_do(variant, fuse_loss):
    plain, fused = model_of(variant, VARLEN), model_of(variant, VARLEN)
    for model in (plain, fused):
        return_token_losses(model)
    use_fused_kernels(fused, fuse_loss=fuse_loss)
    (loss, gradients), (fused_loss, fused_gradients) = computed(plain), computed(fused)
    assert fused_loss == pytest.approx(loss, rel=2e-3)
    assert_close(fused_gradients, gradients, share=0.04)


@pytest.mark.parametrize("variant", ONE_OF_EACH)
def test_fp8_computes_the_same_within_its_error(variant):
    model, in_fp8 = model_of(variant, VARLEN), model_of(variant, VARLEN)
    if reason := fp8_unavailable_reason(torch.device("cuda"), model.config):
        pytest.skip(reason)
    for each in (model, in_fp8):
        return_token_losses(each)
        use_fused_kernels(each)
    use_fp8(in_fp8)
    (loss, gradients), (fp8_loss, fp8_gradients) = computed(model), computed(in_fp8)
    assert fp8_loss == pytest.approx(loss, rel=2e-2)
    assert_close(fp8_gradients, gradients, share=0.3)


@pytest.fixture(scope="module")
def models(toy, tmp_path_factory):
    root = tmp_path_factory.mktemp("architectures")
    return {variant: make_model(root / variant, variant, toy.model, head_dim=16) for variant in ONE_OF_EACH}


@pytest.mark.parametrize("variant", ONE_OF_EACH)
def test_every_plugin_trains_alike(runner, models, variant):
    """A launch for each plugin, since some keep state in the process."""
    assert find_architecture(VARIANTS[variant]["model_type"]) is not None
    model = ("--pretrained", str(models[variant]))
    for name, options in PLUGINS.items():
        checkpoint = runner.workspace / f"{variant}_{name}" / "save" / "epoch-0_step-4"
        again = ("--load_checkpoint", str(checkpoint))
        runner.run(
            [
                runner.command(f"{variant}_{name}", *BATCH, *options, *model),
                runner.command(f"{variant}_{name}_again", *BATCH, *options, *again, pretrained=False),
            ],
            ranks=1,
        )
        losses, expected = runner.losses(f"{variant}_{name}"), runner.losses(f"{variant}_zero2")
        tolerance = {"rel": 5e-2, "abs": 5e-2} if name == "fp8" else TOLERANCE
        assert losses == pytest.approx(expected, **tolerance), name
        assert runner.losses(f"{variant}_{name}_again") == losses[4:], name
