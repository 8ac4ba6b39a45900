"""Variable-length causal attention by cuDNN (package nvidia-cudnn-frontend).

On Hopper cuDNN's attention is about half again as fast as the flash kernel that PyTorch carries,
but PyTorch offers it for rows of equal length only; its variable-length form builds a new execution
plan in every call, 100 ms each. Here plans are cached, one for each (number of documents,
max_seqlen). Both are rounded up so that few plans are needed: documents of length 0 fill up the
number. Long and short documents are computed in separate calls, since the kernel's grid is sized as
if all were as long as the longest.

The flattened batch (tokens, heads, width) is described to cuDNN as a ragged tensor (documents,
heads, max_seqlen, width) whose documents begin at given offsets
(https://docs.nvidia.com/deeplearning/cudnn/frontend/latest/operations/Attention.html).
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch

LONG_TOKENS = 1024
"""Longer documents are computed in a call of their own."""
# max_seqlen and the numbers of documents are rounded up to these.
_LENGTH_STEP, _LONG_STEP, _SHORT_STEP = 1024, 8, 32
_QUERY, _KEY, _VALUE, _OUTPUT, _STATS, _GRADIENT, _LENGTHS, _OFFSETS = range(1, 9)
_KEY_OFFSETS, _STATS_OFFSETS, _QUERY_GRADIENT, _KEY_GRADIENT, _VALUE_GRADIENT = range(9, 14)


@functools.cache
def cudnn_unavailable_reason(
    device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, width: int
) -> str | None:
    """Names the reason why `varlen_attention` cannot be used; None when a trial on a few works.

    Args:
        device: where the model computes.
        dtype: of queries, keys and values.
        heads: query heads.
        key_heads: key-value heads.
        width: head dimension.
    """
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return "it needs a CUDA device and fp16 or bf16"
    if torch.cuda.get_device_capability(device) < (9, 0):
        return "it is faster on Hopper and later only"
    try:
        shapes = [(1100, count, width) for count in (heads, key_heads, key_heads)]
        states = [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes]
        starts, lengths = torch.tensor([[49, 0, 15], [1051, 15, 34]], dtype=torch.int32, device=device)
        query, key, value = states
        output = varlen_attention(query, key, value, Documents(starts, lengths, long=1, max_seqlen=1051))
        output.float().square().sum().backward()
        gradients = [state.grad for state in states if state.grad is not None]
        with torch.no_grad():
            query, key, value = (state.transpose(0, 1)[:, 15:49] for state in states)
            expected = torch.nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=heads != key_heads
            )
        if not all(bool(tensor.isfinite().all()) for tensor in (output, *gradients)):
            return "it gives non-finite values"
        if not torch.allclose(output[15:49].transpose(0, 1), expected, rtol=0.05, atol=0.05):
            return "it gives other values than PyTorch's attention"
    except Exception as error:  # the package, the library or a plan is missing: each raises its own
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


@dataclass(frozen=True)
class Documents:
    """Positions of the documents in a flattened batch, longest first."""

    starts: torch.Tensor
    """int32 (documents,), on the device: the offset of each document's first token."""
    lengths: torch.Tensor
    """int32 (documents,), on the device: tokens of each document."""
    long: int
    """Number of documents longer than `LONG_TOKENS`."""
    max_seqlen: int
    """Tokens of the longest document."""

    def groups(self) -> list["_Group"]:
        """Groups for separate calls: the long documents and the others."""
        bound = -(-self.max_seqlen // _LENGTH_STEP) * _LENGTH_STEP
        groups = [_group(self.starts[: self.long], self.lengths[: self.long], bound, _LONG_STEP)] if self.long else []
        if self.long < self.lengths.shape[0]:
            groups.append(_group(self.starts[self.long :], self.lengths[self.long :], LONG_TOKENS, _SHORT_STEP))
        return groups


@dataclass(frozen=True)
class _Group:
    """Documents of one call, padded with empty ones to a multiple."""

    starts: torch.Tensor
    """int32 (documents + 1,); cuDNN expects one more."""
    lengths: torch.Tensor
    """int32 (documents,)."""
    max_seqlen: int


def _group(starts: torch.Tensor, lengths: torch.Tensor, max_seqlen: int, step: int) -> _Group:
    missing = -lengths.shape[0] % step
    pad = torch.nn.functional.pad
    return _Group(pad(starts, (0, missing + 1)), pad(lengths, (0, missing)), max_seqlen)


def varlen_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: Documents, scaling: float | None = None
) -> torch.Tensor:
    """Causal attention with document masking.

    Args:
        query: (tokens, heads, width), fp16 or bf16.
        key: (tokens, key-value heads, width).
        value: as `key`.
        documents: must cover all tokens.
        scaling: factor on the scores; 1 / sqrt(width) when None.

    Returns:
        (tokens, heads, width).
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _Attention.apply(query.contiguous(), key.contiguous(), value.contiguous(), documents.groups(), scaling)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, groups, scaling):
        """Computes attention group by group; saves the log-sum-exp statistics, not the weights."""
        tokens, heads, _ = query.shape
        output = torch.empty_like(query)
        stats = torch.empty(tokens, heads, dtype=torch.float32, device=query.device)
        tensors = {_QUERY: query, _KEY: key, _VALUE: value, _OUTPUT: output, _STATS: stats}
        for group in groups:
            shape = _shape_of(query, key, group, scaling)
            _run(_forward_plan(shape), {**tensors, **_lengths_and_offsets(group, shape)})
        ctx.save_for_backward(query, key, value, output, stats)
        ctx.groups, ctx.scaling = groups, scaling
        return output

    @staticmethod
    def backward(ctx, gradient):
        """Computes the gradients of queries, keys and values, group by group."""
        query, key, value, output, stats = ctx.saved_tensors
        gradients = [torch.empty_like(tensor) for tensor in (query, key, value)]
        tensors = {_QUERY: query, _KEY: key, _VALUE: value, _OUTPUT: output, _STATS: stats}
        tensors |= {_GRADIENT: gradient.contiguous(), _QUERY_GRADIENT: gradients[0]}
        tensors |= {_KEY_GRADIENT: gradients[1], _VALUE_GRADIENT: gradients[2]}
        for group in ctx.groups:
            shape = _shape_of(query, key, group, ctx.scaling)
            _run(_backward_plan(shape), {**tensors, **_lengths_and_offsets(group, shape)})
        return *gradients, None, None


@dataclass(frozen=True)
class _Shape:
    """Parameters that identify an execution plan."""

    documents: int
    max_seqlen: int
    heads: int
    key_heads: int
    width: int
    dtype: torch.dtype
    device_index: int
    scaling: float


def _shape_of(query: torch.Tensor, key: torch.Tensor, group: _Group, scaling: float) -> _Shape:
    _, heads, width = query.shape
    count = group.lengths.shape[0]
    return _Shape(count, group.max_seqlen, heads, key.shape[1], width, query.dtype, query.device.index, scaling)


def _lengths_and_offsets(group: _Group, shape: _Shape) -> dict[int, torch.Tensor]:
    """Lengths of the documents in tokens, and their offsets in elements."""
    return {
        _LENGTHS: group.lengths,
        _OFFSETS: group.starts * (shape.heads * shape.width),
        _KEY_OFFSETS: group.starts * (shape.key_heads * shape.width),
        _STATS_OFFSETS: group.starts * shape.heads,
    }


def _run(graph: Any, tensors: dict[int, torch.Tensor]) -> None:
    import cudnn

    device = tensors[_QUERY].device
    handle = _handle(device.index)
    cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream(device).cuda_stream)
    workspace = torch.empty(graph.get_workspace_size(), dtype=torch.uint8, device=device)
    graph.execute(tensors, workspace, handle=handle)


@functools.cache
def _handle(device_index: int) -> Any:
    import cudnn

    return cudnn.create_handle()


@functools.lru_cache(maxsize=128)
def _forward_plan(shape: _Shape) -> Any:
    graph, tensors = _graph_with_inputs(shape)
    output, stats = graph.sdpa(
        name="attention",
        q=tensors[_QUERY],
        k=tensors[_KEY],
        v=tensors[_VALUE],
        generate_stats=True,
        **_settings(shape, tensors),
    )
    _set_output(output, _OUTPUT, shape, shape.heads, tensors[_OFFSETS])
    max_seqlen, heads = shape.max_seqlen, shape.heads
    stats.set_output(True).set_uid(_STATS).set_data_type(_types().FLOAT)
    stats.set_dim([shape.documents, heads, max_seqlen, 1]).set_stride([max_seqlen * heads, 1, heads, 1])
    stats.set_ragged_offset(tensors[_STATS_OFFSETS])
    return _built(graph)


@functools.lru_cache(maxsize=128)
def _backward_plan(shape: _Shape) -> Any:
    graph, tensors = _graph_with_inputs(shape)
    output = _ragged(graph, _OUTPUT, shape, shape.heads, tensors[_OFFSETS])
    gradient = _ragged(graph, _GRADIENT, shape, shape.heads, tensors[_OFFSETS])
    max_seqlen, heads = shape.max_seqlen, shape.heads
    stats = graph.tensor(
        dim=[shape.documents, heads, max_seqlen, 1],
        stride=[max_seqlen * heads, 1, heads, 1],
        data_type=_types().FLOAT,
        ragged_offset=tensors[_STATS_OFFSETS],
        uid=_STATS,
    )
    gradients = graph.sdpa_backward(
        name="attention_backward",
        q=tensors[_QUERY],
        k=tensors[_KEY],
        v=tensors[_VALUE],
        o=output,
        dO=gradient,
        stats=stats,
        **_settings(shape, tensors),
    )
    _set_output(gradients[0], _QUERY_GRADIENT, shape, shape.heads, tensors[_OFFSETS])
    _set_output(gradients[1], _KEY_GRADIENT, shape, shape.key_heads, tensors[_KEY_OFFSETS])
    _set_output(gradients[2], _VALUE_GRADIENT, shape, shape.key_heads, tensors[_KEY_OFFSETS])
    return _built(graph)


def _types() -> Any:
    import cudnn

    return cudnn.data_type


def _graph_with_inputs(shape: _Shape) -> tuple[Any, dict[int, Any]]:
    """Creates a graph with queries, keys, values, lengths and offsets."""
    import cudnn

    types = cudnn.data_type
    half = types.BFLOAT16 if shape.dtype == torch.bfloat16 else types.HALF
    graph = cudnn.pygraph(
        io_data_type=half,
        intermediate_data_type=types.FLOAT,
        compute_data_type=types.FLOAT,
        handle=_handle(shape.device_index),
    )

    def int32_vector(uid: int, count: int) -> Any:
        return graph.tensor(dim=[count, 1, 1, 1], stride=[1, 1, 1, 1], data_type=types.INT32, uid=uid)

    tensors = {_LENGTHS: int32_vector(_LENGTHS, shape.documents)}
    for uid in (_OFFSETS, _KEY_OFFSETS, _STATS_OFFSETS):
        tensors[uid] = int32_vector(uid, shape.documents + 1)
    tensors[_QUERY] = _ragged(graph, _QUERY, shape, shape.heads, tensors[_OFFSETS])
    tensors[_KEY] = _ragged(graph, _KEY, shape, shape.key_heads, tensors[_KEY_OFFSETS])
    tensors[_VALUE] = _ragged(graph, _VALUE, shape, shape.key_heads, tensors[_KEY_OFFSETS])
    return graph, tensors


def _layout(shape: _Shape, heads: int) -> tuple[list[int], list[int]]:
    """Sizes and strides of the ragged tensor (documents, heads, max_seqlen, width)."""
    row = heads * shape.width
    return [shape.documents, heads, shape.max_seqlen, shape.width], [shape.max_seqlen * row, shape.width, row, 1]


def _ragged(graph: Any, uid: int, shape: _Shape, heads: int, offsets: Any) -> Any:
    sizes, strides = _layout(shape, heads)
    return graph.tensor(dim=sizes, stride=strides, data_type=shape.dtype, ragged_offset=offsets, uid=uid)


def _set_output(tensor: Any, uid: int, shape: _Shape, heads: int, offsets: Any) -> None:
    sizes, strides = _layout(shape, heads)
    tensor.set_output(True).set_uid(uid).set_dim(sizes).set_stride(strides)
    tensor.set_ragged_offset(offsets)


def _settings(shape: _Shape, tensors: dict[int, Any]) -> dict[str, Any]:
    return {
        "attn_scale": shape.scaling,
        "diagonal_band_right_bound": 0,  # causal
        "use_padding_mask": True,
        "seq_len_q": tensors[_LENGTHS],
        "seq_len_kv": tensors[_LENGTHS],
    }


def _built(graph: Any) -> Any:
    import cudnn

    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    graph.check_support()
    graph.build_plans()
    return graph
