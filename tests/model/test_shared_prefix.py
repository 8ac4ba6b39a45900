"""Attention behind a shared prefix, in its two forms, is that over each sequence by itself."""

import itertools

import pytest
import torch

from colossal_llama.model.attention import shared_prefix
from colossal_llama.model.attention.shared_prefix import DecodedRows, PackedSequences, kernel_unavailable_reason

LENGTHS = [7, 1, 12, 3]
HEADS, KEY_HEADS, WIDTH, SCALE = 6, 2, 16, 0.3


def random_states(tokens: int, seed: int = 0) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, heads, WIDTH, generator=source) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]


def plain(query, key, value) -> torch.Tensor:
    """Attention of the last tokens over all, in the formula's words; (tokens, heads, width)."""
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1).transpose(0, 1) for states in (key, value))
    scores = query.transpose(0, 1) @ key.transpose(1, 2) * SCALE
    seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril(key.shape[1] - query.shape[0])
    return (scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value).transpose(0, 1)


def kernel_of_pytorch(query, key, value, cu_queries, cu_keys, max_queries, max_keys, scale, is_causal=False):
    """The variable-length kernel's outputs and its log-sum-exp, on the CPU."""
    outputs, sums = [], []
    borders = [list(itertools.pairwise(offsets.tolist())) for offsets in (cu_queries, cu_keys)]
    assert max_queries == max(end - begin for begin, end in borders[0])
    assert max_keys == max(end - begin for begin, end in borders[1])
    groups = query.shape[1] // key.shape[1]
    for (begin, end), (first, last) in zip(*borders, strict=True):
        keys, values = (states[first:last].repeat_interleave(groups, 1).transpose(0, 1) for states in (key, value))
        scores = query[begin:end].transpose(0, 1) @ keys.transpose(1, 2) * scale
        if is_causal:
            seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril()
            scores = scores.masked_fill(~seen, float("-inf"))
        outputs.append((scores.softmax(-1) @ values).transpose(0, 1))
        sums.append(scores.logsumexp(-1))
    return torch.cat(outputs), torch.cat(sums, dim=1)


@pytest.mark.parametrize("form", ["kernel", "one by one"])
@pytest.mark.parametrize("prefix_tokens", [0, 1, 30])
def test_packed_sequences_attend_to_the_prefix_and_themselves(form, prefix_tokens, monkeypatch):
    if form == "kernel":
        monkeypatch.setattr(shared_prefix, "_varlen", kernel_of_pytorch)
        monkeypatch.setattr(shared_prefix, "kernel_unavailable_reason", lambda *_: None)
    query, key, value = random_states(sum(LENGTHS))
    _, prefix_keys, prefix_values = random_states(prefix_tokens, seed=1)
    kept = {}
    prefix = {5: (prefix_keys, prefix_values)} if prefix_tokens else {}
    packed = PackedSequences(LENGTHS, prefix, lambda layer, *states: kept.update({layer: states}))
    found = packed.attend(5, query, key, value, SCALE)
    for begin, end in itertools.pairwise([0, *itertools.accumulate(LENGTHS)]):
        keys, values = torch.cat([prefix_keys, key[begin:end]]), torch.cat([prefix_values, value[begin:end]])
        torch.testing.assert_close(found[begin:end], plain(query[begin:end], keys, values), atol=1e-5, rtol=1e-5)
    assert kept == {5: (key, value)}


@pytest.mark.parametrize("prefix_tokens", [0, 30])
def test_a_decoded_token_attends_to_the_prefix_and_its_own_row(prefix_tokens):
    query, key, value = random_states(len(LENGTHS))
    _, prefix_keys, prefix_values = random_states(prefix_tokens, seed=1)
    stores = [torch.zeros(len(LENGTHS), KEY_HEADS, 20, WIDTH) for _ in range(2)]
    rows = [random_states(length, seed=2 + length)[1:] for length in LENGTHS]
    for row, states in enumerate(rows):
        for store, state in zip(stores, states, strict=True):
            store[row, :, : state.shape[0]] = state.transpose(0, 1)
            store[row, :, state.shape[0] + 1 :] = 7.0  # of rows that are longer: never looked at
    prefix = {0: (prefix_keys, prefix_values)} if prefix_tokens else {}
    columns = torch.tensor(LENGTHS)
    layout = DecodedRows(columns, max(LENGTHS) + 1, prefix, {0: stores[0]}, {0: stores[1]})
    found = layout.attend(0, query, key, value, SCALE)
    for row, (keys, values) in enumerate(rows):
        all_keys = torch.cat([prefix_keys, keys, key[row : row + 1]])
        all_values = torch.cat([prefix_values, values, value[row : row + 1]])
        expected = plain(query[row : row + 1], all_keys, all_values)
        torch.testing.assert_close(found[row : row + 1], expected, atol=1e-5, rtol=1e-5)


def test_where_there_is_no_kernel_the_reason_is_named():
    assert "needs a CUDA device" in kernel_unavailable_reason(torch.device("cpu"), torch.bfloat16, 4, 2, 64)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("heads", [(32, 32, 128), (32, 8, 128), (9, 3, 64)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernel_is_used_on_a_gpu(heads, dtype):
    assert kernel_unavailable_reason(torch.device("cuda", 0), dtype, *heads) is None
