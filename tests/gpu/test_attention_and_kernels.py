"""On the GPU: documents in one row equal documents apart, and the fused kernels compute what the
plain ones do.
"""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from colossal_llama.model.activation_checkpointing import recompute_layers
from colossal_llama.model.attention.document_mask import encode_document_mask
from colossal_llama.model.attention.varlen import CUDNN, SDPA, VARLEN
from colossal_llama.model.kernels.apply import use_fused_kernels
from colossal_llama.training.memory.estimate import activation_bytes_per_layer

pytestmark = pytest.mark.gpu
LENGTHS = [[300, 17, 195], [512], [100, 130]]  # the third row is padded
WIDTH = 512


def make_model(attention: str, dtype: torch.dtype = torch.bfloat16) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).to("cuda", dtype)
    model.config._attn_implementation = attention
    return model


def spliced_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 1000, (len(LENGTHS), WIDTH), generator=generator)
    positions = torch.zeros_like(ids)
    for row, lengths in enumerate(LENGTHS):
        begin = 0
        for length in lengths:
            positions[row, begin : begin + length] = torch.arange(length)
            begin += length
    return ids.cuda(), positions.cuda()


def forward(
    model: LlamaForCausalLM, ids: torch.Tensor, positions: torch.Tensor, lengths: list[list[int]]
) -> torch.Tensor:
    document_mask = encode_document_mask(lengths, ids.shape[1]).cuda()
    return model(input_ids=ids, position_ids=positions, attention_mask=document_mask, use_cache=False).logits


@pytest.mark.parametrize("attention", [CUDNN, VARLEN, SDPA])
def test_spliced_documents_equal_documents_apart(attention):
    model = make_model(attention)
    ids, positions = spliced_batch()
    together = forward(model, ids, positions, LENGTHS)
    together.float().pow(2).mean().backward()
    gradient = model.model.layers[0].self_attn.q_proj.weight.grad.clone()
    model.zero_grad()
    apart = torch.zeros_like(together)
    for row, lengths in enumerate(LENGTHS):
        begin = 0
        for length in [*lengths, WIDTH - sum(lengths)]:
            if length:
                piece = slice(begin, begin + length)
                logits = forward(model, ids[row : row + 1, piece], positions[row : row + 1, piece], [[length]])
                (logits.float().pow(2).sum() / together.numel()).backward()
                apart[row, piece] = logits[0].detach()
                begin += length
    # Matrix products of other shapes may round differently: two units in the last place of bf16.
    torch.testing.assert_close(together, apart, rtol=2**-6, atol=2**-6)
    apart_gradient = model.model.layers[0].self_attn.q_proj.weight.grad
    assert (gradient - apart_gradient).float().norm() < 0.02 * gradient.float().norm()


def test_a_row_of_two_tokens():
    """A rank for which a step has no rows computes one of two tokens
    (dataset.collator.Collator).
    """
    model = make_model(CUDNN)
    ids, positions = (tensor[:1, :20] for tensor in spliced_batch())
    short = forward(model, ids[:, :2], positions[:, :2], [[2]])
    short.float().square().mean().backward()
    torch.testing.assert_close(short, forward(model, ids, positions, [[20]])[:, :2], rtol=2**-6, atol=2**-6)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_one_variable_length_kernel_equals_document_by_document():
    ids, positions = spliced_batch()
    flash = forward(make_model(VARLEN), ids, positions, LENGTHS)
    plain = forward(make_model(SDPA), ids, positions, LENGTHS)
    torch.testing.assert_close(flash, plain, rtol=2**-5, atol=2**-5)


def test_cudnn_equals_pytorchs_kernel_on_long_and_short_documents():
    """Forward and backward, with the documents out of the order of their lengths."""
    lengths = [[40, 1500, 3, 505], [1100, 948]]
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(3, 1000, (2, 2048), generator=generator).cuda()
    positions = torch.cat([torch.arange(length) for row in lengths for length in row]).view(2, 2048).cuda()
    results = []
    for attention in (CUDNN, VARLEN):
        model = make_model(attention)
        logits = forward(model, ids, positions, lengths)
        logits.float().pow(2).mean().backward()
        attention_layer = model.model.layers[0].self_attn
        results.append((logits, *(getattr(attention_layer, f"{name}_proj").weight.grad for name in "qkv")))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=2**-5, atol=2**-5)
    for mine, theirs in zip(results[0][1:], results[1][1:], strict=True):
        assert (mine - theirs).float().norm() < 0.03 * theirs.float().norm()


def test_whole_rows_equal_the_variable_length_kernel():
    """Rows of one document each take the plain causal kernel; the same documents as parts of one
    row do not.
    """
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 1000, (4, 256), generator=generator).cuda()
    positions = torch.arange(256).repeat(4, 1).cuda()
    model = make_model(VARLEN)
    rows = forward(model, ids, positions, [[256]] * 4)
    one_row = forward(model, ids.view(1, -1), positions.view(1, -1), [[256] * 4])
    torch.testing.assert_close(rows.view(-1), one_row.view(-1), rtol=2**-5, atol=2**-5)


@pytest.mark.parametrize("share", [0.1, 0.6, 1.0])
def test_fused_loss_gives_the_plain_loss_and_gradients(share):
    """Against fp32 arithmetic on the same bf16 numbers, with and without the positions of the
    targets.
    """
    from colossal_llama.model.kernels.linear_cross_entropy import linear_cross_entropy

    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(9000, 256, generator=generator).cuda().bfloat16()
    weight = (torch.randn(5003, 256, generator=generator) * 0.1).cuda().bfloat16()
    labels = torch.randint(0, 5003, (9000,), generator=generator)
    labels[torch.rand(9000, generator=generator) > share] = -100
    labels = labels.cuda()
    exact = hidden.float().requires_grad_(), weight.float().requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact[0] @ exact[1].t(), labels)
    expected.backward()
    for positions in (None, (labels != -100).nonzero().squeeze(1)):
        inputs = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss, token_losses = linear_cross_entropy(*inputs, labels, positions)
        loss.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
        assert token_losses.sum().item() / (labels != -100).sum().item() == pytest.approx(loss.item(), rel=1e-5)
        for mine, theirs in zip(inputs, exact, strict=True):
            assert (mine.grad.float() - theirs.grad).norm() < 0.01 * theirs.grad.norm()


@pytest.mark.parametrize("width", [2048, 1000])
def test_norms_with_the_residual_stream_give_the_plain_results_and_gradients(width):
    """Against fp32 arithmetic on the same bf16 numbers."""
    from colossal_llama.model.kernels.rms_norm import add_rms_norm, rms_norm_with_residual

    generator = torch.Generator().manual_seed(5)
    tensors = [
        torch.randn(*shape, generator=generator).cuda().bfloat16() for shape in ((3000, width),) * 2 + ((width,),)
    ]
    factors = torch.randn(2, 3000, width, generator=generator).cuda()

    def fused(added, hidden, weight):
        first, hidden = rms_norm_with_residual(hidden, weight, eps=1e-6)
        second, total = add_rms_norm(added, hidden, weight, eps=1e-6)
        return first.float() + second.float() * factors[0] + total.float() * factors[1]

    def plain(added, hidden, weight):
        first, second = (
            weight * value * torch.rsqrt(value.square().mean(dim=-1, keepdim=True) + 1e-6)
            for value in (hidden, hidden + added)
        )
        return first + second * factors[0] + (hidden + added) * factors[1]

    inputs = [tensor.clone().requires_grad_() for tensor in tensors]
    exact = [tensor.float().requires_grad_() for tensor in tensors]
    mine, theirs = fused(*inputs), plain(*exact)
    (mine * factors[1]).sum().backward()
    (theirs * factors[1]).sum().backward()
    assert (mine - theirs).norm() < 0.01 * theirs.norm()
    for leaf, wanted in zip(inputs, exact, strict=True):
        assert (leaf.grad.float() - wanted.grad).norm() < 0.01 * wanted.grad.norm()


def test_fused_kernels_give_the_plain_loss_and_gradients():
    ids, positions = spliced_batch()
    labels = ids.clone()
    labels[:, ::3] = -100
    results = []
    for fused in (False, True):
        model = make_model(VARLEN).train()
        if fused:
            use_fused_kernels(model)
        document_mask = encode_document_mask(LENGTHS, WIDTH).cuda()
        loss = model(
            input_ids=ids, position_ids=positions, attention_mask=document_mask, labels=labels, use_cache=False
        ).loss
        loss.backward()
        results.append((loss.item(), {name: p.grad.float() for name, p in model.named_parameters()}))
    (plain_loss, plain), (fused_loss, fused_gradients) = results
    assert fused_loss == pytest.approx(plain_loss, rel=2e-3)
    for name, gradient in plain.items():
        assert (gradient - fused_gradients[name]).norm() < 0.03 * gradient.norm(), name


def test_selective_recomputation_computes_the_same():
    """In the memory that the estimate says, after the first time (Triton's compiler, cuBLAS's
    workspace).

    The same bits but for the attention kernel's, which adds in any order;
    tests/support/kernels_in_interpreter.py compares bits.
    """
    ids, positions = spliced_batch()
    settings = {
        "position_ids": positions,
        "attention_mask": encode_document_mask(LENGTHS, WIDTH).cuda(),
        "use_cache": False,
    }
    gradients, kept_bytes = [], []
    for selective in (True, False, True):
        model = make_model(VARLEN).train()
        use_fused_kernels(model)
        recompute_layers(model, 0, reentrant=False, selective=selective)
        before = torch.cuda.memory_allocated()
        loss = model(input_ids=ids, labels=ids, **settings).loss
        kept_bytes.append(torch.cuda.memory_allocated() - before)
        loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for mine, theirs in zip(gradients[2], gradients[1], strict=True):
        assert (mine - theirs).norm() < 0.01 * theirs.norm()
    everything, kept, _ = activation_bytes_per_layer(model.config, ids.numel(), fused_kernels=True)
    assert kept_bytes[1] - kept_bytes[2] == model.config.num_hidden_layers * (everything - kept)
