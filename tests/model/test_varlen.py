"""Document masking: logits and gradients of a packed row are those of separate documents."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from colossal_llama.model.attention import cudnn, varlen
from colossal_llama.model.attention.backends import attention_without_plans
from colossal_llama.model.attention.document_mask import cu_seqlens_of, encode_document_mask
from colossal_llama.model.attention.varlen import CUDNN, FLASH, SDPA, choose_attention


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    made = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **shape))
    made.config._attn_implementation = SDPA
    return made.double()


def positions(lengths: list[int], width: int) -> torch.Tensor:
    restarted = [torch.arange(length) for length in lengths]
    return torch.cat([*restarted, torch.zeros(width - sum(lengths), dtype=torch.long)])


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=3), st.randoms())
def test_together_equals_apart(model, rows_of_lengths, random):
    width = max(map(sum, rows_of_lengths)) + random.randint(0, 3)
    ids = torch.randint(0, 64, (len(rows_of_lengths), width))
    where = torch.stack([positions(lengths, width) for lengths in rows_of_lengths])
    model.zero_grad()
    together = model(
        input_ids=ids, position_ids=where, attention_mask=encode_document_mask(rows_of_lengths, width)
    ).logits
    kept = [(row, begin, length) for row, lengths in enumerate(rows_of_lengths) for begin, length in spans(lengths)]
    torch.stack([together[row, begin : begin + length].square().sum() for row, begin, length in kept]).sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for row, begin, length in kept:
        piece = ids[row : row + 1, begin : begin + length]
        alone = model(input_ids=piece, attention_mask=encode_document_mask([[length]], length)).logits[0]
        torch.testing.assert_close(together[row, begin : begin + length], alone)
        alone.square().sum().backward()
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def spans(lengths: list[int]) -> list[tuple[int, int]]:
    return [(sum(lengths[:index]), length) for index, length in enumerate(lengths)]


def test_one_document_equals_plain_causal_attention(model):
    ids = torch.randint(0, 64, (2, 11))
    ours = model(input_ids=ids, attention_mask=encode_document_mask([[11], [11]], 11)).logits
    model.config._attn_implementation = "eager"
    theirs = model(input_ids=ids).logits
    model.config._attn_implementation = SDPA
    torch.testing.assert_close(ours, theirs)


def test_the_mask_carries_the_longest_document_without_taking_memory():
    mask = encode_document_mask([[3, 2], [3]], 5)
    assert cu_seqlens_of(mask).tolist() == [0, 3, 5, 8, 10]
    assert mask.shape == (1, 3, 1, 13)
    assert mask.untyped_storage().nbytes() == 13 * 4


def test_the_mask_lists_the_long_documents_first():
    mask = encode_document_mask([[3, 1500, 40], [2000]], 2100)
    assert mask.shape[2] == 1 + 2
    starts, lengths = mask[0, 0, 0, 7:].view(2, 6).tolist()
    assert lengths == [2000, 1500, 557, 100, 40, 3]
    assert starts == [2100, 3, 1543, 4100, 1503, 0]


def test_documents_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match="do not fit"):
        encode_document_mask([[3, 3]], 5)


def test_flash_attention_on_a_cpu_falls_back_and_says_so():
    name, note = choose_attention(True, True, torch.device("cpu"), torch.bfloat16, (4, 2, 16))
    assert name == SDPA
    assert "--use_flash_attn" in note
    assert FLASH != SDPA


def test_dropout_takes_a_kernel_that_has_it(monkeypatch):
    monkeypatch.setattr(cudnn, "cudnn_unavailable_reason", lambda *_: None)
    setting = (torch.device("cuda"), torch.bfloat16, (4, 2, 16))
    for has_flash_attn, without, with_dropout in ((False, CUDNN, SDPA), (True, CUDNN, FLASH)):
        monkeypatch.setattr(varlen, "_has_flash_attn", lambda has=has_flash_attn: has)
        assert choose_attention(False, True, *setting, dropout=0.0)[0] == without
        name, note = choose_attention(False, True, *setting, dropout=0.1)
        assert name == with_dropout
        assert ("attention_dropout is 0.1" in note) is (name == SDPA)
    assert choose_attention(False, False, *setting, dropout=0.1) == choose_attention(False, False, *setting)


def test_texts_of_varying_lengths_are_not_given_to_cudnn():
    """It builds an execution plan for each shape."""
    assert torch.backends.cuda.cudnn_sdp_enabled()
    with attention_without_plans():
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled()
