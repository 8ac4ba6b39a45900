"""Attention of sequences that share a prefix, whose keys and values are there once.

Prompts of a benchmark's subject begin with the same examples. Their prefix goes through the model
once; then many prompts are packed into one row behind it:

    prefix     p p p p
    row                [a a a b b c c c c]        positions 4 5 6, 4 5, 4 5 6 7

A token attends to the whole prefix and to earlier tokens of its own sequence. The variable-length
kernel computes the two parts apart, the first as one sequence of queries, so that the prefix is
neither copied nor padded for each sequence. Their outputs are joined by the log-sum-exp of the
scores, as flash attention joins blocks of keys.

Where the kernel is missing (CPU, fp32) each sequence is one `scaled_dot_product_attention` over its
prefix and itself. Decoding has a form of its own: one new token for each sequence.

The functions are reached through transformers' `AttentionInterface`. A forward pass runs within
`packed`, which tells them what is where.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

SHARED_PREFIX = "shared_prefix"
"""Name of the attention function in transformers' `AttentionInterface`."""

KeysAndValues = tuple[torch.Tensor, torch.Tensor]


class Layout(Protocol):
    """The tokens of a forward pass and what they attend to: `PackedSequences` or `DecodedRows`."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attention of a layer; (tokens, heads, width) in and out, of keys fewer heads."""
        ...


_layout: ContextVar[Layout] = ContextVar("layout of the forward pass")


@contextmanager
def packed(model: Any, layout: Layout) -> Iterator[None]:
    """Within it a model's forward pass attends as the layout says.

    Args:
        model: of an architecture of model.architectures; its configuration is restored afterwards.
        layout: of the tokens of the one row that the model is given.
    """
    before = model.config._attn_implementation
    token = _layout.set(layout)
    model.config._attn_implementation = SHARED_PREFIX
    try:
        yield
    finally:
        model.config._attn_implementation = before
        _layout.reset(token)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention of the one row (1, heads, tokens, width), as transformers calls it."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
    layer: int = module.layer_idx  # type: ignore[assignment]
    return _layout.get().attend(layer, queries, keys, values, scale).unsqueeze(0), None


AttentionInterface.register(SHARED_PREFIX, _attention)


@dataclass
class PackedSequences:
    """Sequences one after the other in a row, all behind the same prefix.

    Attributes:
        lengths: tokens of each sequence.
        prefix: keys and values of the prefix by layer, (tokens, key-value heads, width); empty for
            none.
        keep: receives each layer's keys and values of the sequences.
    """

    lengths: Sequence[int]
    prefix: dict[int, KeysAndValues] = field(default_factory=dict)
    keep: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None
    _cu_seqlens: dict[int, torch.Tensor] = field(default_factory=dict)
    _masks: list[torch.Tensor] = field(default_factory=list)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """As `Layout` says."""
        if self.keep:
            self.keep(layer, key, value)
        shape = (query.shape[1], key.shape[1], query.shape[2])
        prefix = self.prefix.get(layer)
        if kernel_unavailable_reason(query.device, query.dtype, *shape) is None:
            return self._by_kernel(query, key, value, prefix, scale)
        return self._one_by_one(query, key, value, prefix, scale)

    def _by_kernel(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        prefix: KeysAndValues | None,
        scale: float,
    ) -> torch.Tensor:
        """Two calls of the variable-length kernel, joined."""
        query, key, value = (states.contiguous() for states in (query, key, value))
        own, longest = self._offsets(self.lengths, query.device), max(self.lengths)
        outputs, scores = _varlen(query, key, value, own, own, longest, longest, scale, is_causal=True)
        if prefix is None:
            return outputs
        tokens, prefix_tokens = query.shape[0], prefix[0].shape[0]
        all_queries = self._offsets([tokens], query.device)
        all_keys = self._offsets([prefix_tokens], query.device)
        shared, shared_scores = _varlen(query, *prefix, all_queries, all_keys, tokens, prefix_tokens, scale)
        weight = (scores - shared_scores).sigmoid_().t().unsqueeze(-1)
        return torch.lerp(shared.float(), outputs.float(), weight).to(query.dtype)

    def _offsets(self, lengths: Sequence[int], device: torch.device) -> torch.Tensor:
        """Cumulative lengths on the device, copied once for all layers."""
        key = hash(tuple(lengths))
        if key not in self._cu_seqlens:
            offsets = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
            self._cu_seqlens[key] = offsets.to(device, non_blocking=True)
        return self._cu_seqlens[key]

    def _one_by_one(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        prefix: KeysAndValues | None,
        scale: float,
    ) -> torch.Tensor:
        """One call of PyTorch's attention for each sequence."""
        groups = query.shape[1] // key.shape[1]
        if query.is_cuda and groups > 1:  # where grouped heads have no kernel that takes a mask
            key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
            prefix = prefix and (prefix[0].repeat_interleave(groups, 1), prefix[1].repeat_interleave(groups, 1))
            groups = 1
        prefix_tokens = prefix[0].shape[0] if prefix else 0
        outputs = []
        for begin, end in itertools.pairwise([0, *itertools.accumulate(self.lengths)]):
            keys, values = key[begin:end], value[begin:end]
            if prefix:
                keys, values = torch.cat([prefix[0], keys]), torch.cat([prefix[1], values])
            output = scaled_dot_product_attention(
                query[begin:end].transpose(0, 1)[None],
                keys.transpose(0, 1)[None],
                values.transpose(0, 1)[None],
                attn_mask=self._mask(end - begin, prefix_tokens, query.device) if prefix else None,
                is_causal=prefix is None,
                scale=scale,
                enable_gqa=groups > 1,
            )
            outputs.append(output[0].transpose(0, 1))
        return torch.cat(outputs)

    def _mask(self, length: int, prefix_tokens: int, device: torch.device) -> torch.Tensor:
        """The causal mask behind a prefix: a corner of that of the longest sequence."""
        if not self._masks:
            longest = max(self.lengths)
            ones = torch.ones(longest, prefix_tokens + longest, dtype=torch.bool, device=device)
            self._masks.append(ones.tril(prefix_tokens))
        return self._masks[0][:length, : prefix_tokens + length]


@dataclass
class DecodedRows:
    """One new token for each sequence, behind a common prefix and the sequence's tokens so far.

    Attributes:
        columns: of each row, the index of its new token in `keys` and `values`, on the device.
        length_tokens: one more than the largest of them.
        prefix: as in `PackedSequences`.
        keys: by layer, (rows, key-value heads, capacity, width): the sequences without the prefix;
            the new tokens' are written.
        values: as `keys`.
    """

    columns: torch.Tensor
    length_tokens: int
    prefix: dict[int, KeysAndValues]
    keys: dict[int, torch.Tensor]
    values: dict[int, torch.Tensor]

    def __post_init__(self) -> None:
        places = torch.arange(self.length_tokens, device=self.columns.device)
        self._rows = torch.arange(self.columns.shape[0], device=self.columns.device)
        self._is_later = (places > self.columns[:, None])[:, None, None, :]

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """As `Layout` says; the softmax is computed in fp32 as transformers' is."""
        self.keys[layer][self._rows, :, self.columns] = key
        self.values[layer][self._rows, :, self.columns] = value
        keys, values = (states[layer][:, :, : self.length_tokens] for states in (self.keys, self.values))
        rows, heads, width = query.shape
        grouped = query.view(rows, key.shape[1], -1, width)
        scores = (grouped @ keys.transpose(2, 3)).float().mul_(scale).masked_fill_(self._is_later, float("-inf"))
        if layer not in self.prefix:
            return (scores.softmax(-1).to(query.dtype) @ values).reshape(rows, heads, width)
        shared_keys, shared_values = (states.transpose(0, 1) for states in self.prefix[layer])
        by_head = grouped.transpose(0, 1).reshape(key.shape[1], -1, width)
        shared = (by_head @ shared_keys.transpose(1, 2)).float().mul_(scale)
        shared = shared.view(key.shape[1], rows, -1, shared.shape[-1]).transpose(0, 1)
        prefix_tokens = shared.shape[-1]
        weights = torch.cat([shared, scores], -1).softmax(-1).to(query.dtype)
        of_prefix = weights[..., :prefix_tokens].transpose(0, 1).reshape(key.shape[1], -1, prefix_tokens)
        output = (of_prefix @ shared_values).view(key.shape[1], rows, -1, width).transpose(0, 1)
        return (output + weights[..., prefix_tokens:] @ values).reshape(rows, heads, width)


def _varlen(query, key, value, cu_queries, cu_keys, max_queries, max_keys, scale, is_causal=False):
    """PyTorch's variable-length attention; the output and its log-sum-exp (heads, tokens)."""
    from torch.nn.attention import varlen

    settings: dict[str, Any] = {"scale": scale, "window_size": (-1, 0 if is_causal else -1)}
    if query.shape[1] != key.shape[1] and "enable_gqa" in _varlen_options():
        settings["enable_gqa"] = True  # PyTorch 2.11 has no such option and takes fewer key heads without it
    return varlen.varlen_attn(
        query,
        key,
        value,
        cu_queries,
        cu_keys,
        max_queries,
        max_keys,
        return_aux=varlen.AuxRequest(lse=True),
        **settings,
    )


@functools.cache
def _varlen_options() -> frozenset[str]:
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


@functools.cache
def kernel_unavailable_reason(
    device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, width: int
) -> str | None:
    """Names the reason why the variable-length kernel is not used; None when a trial works.

    Args:
        device: where the model computes.
        dtype: of queries, keys and values.
        heads: query heads.
        key_heads: key-value heads.
        width: head dimension.
    """
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return "it needs a CUDA device and fp16 or bf16"
    trial = PackedSequences([19, 3])
    source = torch.Generator(device).manual_seed(0)

    def random_states(tokens: int, count: int) -> torch.Tensor:
        return torch.randn(tokens, count, width, generator=source, device=device, dtype=dtype)

    try:
        query, key, value = (random_states(22, count) for count in (heads, key_heads, key_heads))
        for prefix in (None, (random_states(45, key_heads), random_states(45, key_heads))):
            found = trial._by_kernel(query, key, value, prefix, 0.2)
            expected = trial._one_by_one(query, key, value, prefix, 0.2)
            if not torch.allclose(found, expected, rtol=0.05, atol=0.05):  # also where one is not finite
                return "it gives other values than PyTorch's attention"
    except Exception as error:  # PyTorch has no such kernel, or the device none: each raises its own
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None
