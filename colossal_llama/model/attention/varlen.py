"""Attention by document: the documents spliced into one row do not see each other.

The boundaries of a batch's documents reach every layer as the model's `attention_mask`:
transformers and ColossalAI (tensor parallel and gradient checkpointing included) hand a 4-D mask
through to the attention function untouched, and the function registered here reads boundaries where
others read a mask. So no mask of length × length is ever built.

    rows    [a a a b b]        boundaries, over the flattened rows: 0 3 5 8 10
            [c c c . .]        padding (.) is a document of its own that nobody labels

Four functions are registered with transformers' `AttentionInterface`
(https://huggingface.co/docs/transformers/attention_interface): `documents_cudnn`
(model.attention.cudnn), `documents_varlen` (`torch.nn.attention.varlen`) and `documents_flash` (the
flash-attn package) compute all documents in a variable-length kernel, `documents_sdpa` calls
`scaled_dot_product_attention` document by document, on any device.

Where every row is one whole document all of them call the plain causal kernel once. Measured on an
H200, 8 rows of 4,096 tokens, 32 heads of 64, 4 of keys, forward and backward, in ms: one document a
row: cuDNN 5.1, PyTorch's flash kernel 7.7, its variable-length one 8.0; sixteen documents a row:
1.9 in the last; real pre-training rows (51 to 115 documents): 6.2 to 7.0.
"""

import importlib.util
import inspect
import itertools
from collections.abc import Sequence

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from colossal_llama.model.attention import cudnn
from colossal_llama.model.attention.cudnn import LONG_TOKENS

FLASH = "documents_flash"
VARLEN = "documents_varlen"
CUDNN = "documents_cudnn"
SDPA = "documents_sdpa"


def boundaries_of(lengths: Sequence[Sequence[int]], row_length_tokens: int) -> torch.Tensor:
    """Boundaries of the documents of a batch, in the form in which the model takes them as `attention_mask`.

    Args:
        lengths: the lengths in tokens of each row's documents, in order; what is missing to
            `row_length_tokens` is padding.
        row_length_tokens: the padded length of every row.

    Returns:
        int32, shape (1, longest, 1 + long, 3 documents + 1). The last dimension holds the offsets
            of the documents in the flattened
        batch and its end; then where they start and how long they are, in order of falling length.
            The others repeat that without
        taking memory: their sizes carry the longest document and the number of documents longer
            than `LONG_TOKENS` to the
        kernel, which needs both as host numbers: reading them from a GPU tensor would stop the host
            once a layer.

    >>> boundaries_of([[3, 2], [3]], row_length_tokens=5)[0, 0, 0]
    tensor([ 0,  3,  5,  8, 10,  0,  5,  3,  8,  3,  3,  2,  2], dtype=torch.int32)
    """
    segments: list[int] = []
    for row in lengths:
        segments.extend(row)
        padding = row_length_tokens - sum(row)
        if padding < 0:
            raise ValueError(f"documents of {sum(row)} tokens do not fit into a row of {row_length_tokens}")
        if padding:
            segments.append(padding)
    documents = torch.tensor(segments, dtype=torch.int32)
    offsets = torch.zeros(len(segments) + 1, dtype=torch.int32)
    torch.cumsum(documents, 0, out=offsets[1:])
    falling, order = torch.sort(documents, descending=True, stable=True)
    numbers = torch.cat([offsets, offsets[:-1][order], falling])
    long = sum(length > LONG_TOKENS for length in segments)
    return numbers.view(1, 1, 1, -1).expand(1, max(segments), 1 + long, -1)


def offsets_of(boundaries: torch.Tensor) -> torch.Tensor:
    """int32 (documents + 1,): where the documents begin in the flattened batch, and its end."""
    return boundaries[0, 0, 0, : _documents(boundaries) + 1]


def _documents(boundaries: torch.Tensor) -> int:
    return (boundaries.shape[3] - 1) // 3


def choose_attention(
    use_flash: bool,
    fast: bool,
    device: torch.device,
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    dropout: float = 0.0,
) -> tuple[str, str]:
    """Name of the attention function to use, and a sentence that says which kernel computes it.

    Args:
        use_flash: whether the user asked for flash attention: the flash-attn package is used where
            it is installed.
        fast: whether variable-length kernels are used without being asked for.
        device: where the model computes.
        dtype: of its activations; the kernels take fp16 and bf16.
        heads: query heads, key-value heads, width of a head.
        dropout: of the attention weights, in training; of the variable-length kernels flash-attn's
            alone has it.
    """
    able = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
    plain = "scaled_dot_product_attention, document by document"
    if (use_flash or (fast and dropout)) and able and _has_flash_attn():
        return FLASH, "attention: variable-length kernel of the flash-attn package"
    if (use_flash or fast) and able and dropout:
        return SDPA, (
            f"attention: {plain}, which is slower: attention_dropout is {dropout} in config.json, and the "
            "variable-length kernels of "
            "cuDNN and PyTorch have no dropout (flash-attn's has it; or set it to 0)"
        )
    if (use_flash or fast) and able:
        absent = "; the flash-attn package is not installed" if use_flash else ""
        reason = cudnn.why_not(device, dtype, *heads)
        if reason is None:
            return CUDNN, f"attention: cuDNN's variable-length kernel{absent}"
        if _has_torch_varlen():
            return VARLEN, f"attention: PyTorch's own variable-length kernel (cuDNN's: {reason}{absent})"
    if not use_flash:
        return SDPA, f"attention: PyTorch's {plain}"
    if able:
        return (
            SDPA,
            f"attention: neither flash-attn nor torch.nn.attention.varlen (PyTorch 2.10) is here; using {plain}",
        )
    return SDPA, (
        f"attention: --use_flash_attn needs a CUDA device and fp16 or bf16 (here: {device.type}, {dtype}); using "
        f"{plain}, which "
        "computes the same"
    )


def documents_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document, one `scaled_dot_product_attention` a document.

    Args:
        module: the attention layer (unused; part of the interface).
        query: (rows, heads, length, width).
        key, value: (rows, key-value heads, length, width).
        attention_mask: what `boundaries_of` gives.
        dropout: probability of dropping an attention weight.
        scaling: factor on the scores; 1 / sqrt(width) when None.

    Returns:
        (rows, length, heads, width), and None in place of the weights.
    """
    rows, heads, length, width = query.shape
    if is_one_document_a_row(attention_mask, rows, length):
        return _whole_rows(query, key, value, dropout, scaling), None
    # (1, heads, rows * length, width): documents never cross rows, so each is one slice of the
    # flattened batch.
    flat = [states.transpose(0, 1).reshape(1, states.shape[1], rows * length, width) for states in (query, key, value)]
    offsets = offsets_of(attention_mask).tolist()
    with sdpa_kernel(_BACKENDS_WITHOUT_PLANS, set_priority=True):
        outputs = [
            scaled_dot_product_attention(
                *(states[:, :, begin:end] for states in flat),
                dropout_p=dropout,
                is_causal=True,
                scale=scaling,
                enable_gqa=heads != key.shape[1],
            )
            for begin, end in itertools.pairwise(offsets)
        ]
    return torch.cat(outputs, dim=2).view(heads, rows, length, width).permute(1, 2, 0, 3), None


def documents_flash(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document by the flash-attn package; arguments and result as `documents_sdpa`."""
    return _variable_length(_flash_attn_package, query, key, value, attention_mask, dropout, scaling), None


def documents_cudnn(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document by cuDNN's variable-length kernel; arguments and result as `documents_sdpa`."""
    return _variable_length(_cudnn_varlen, query, key, value, attention_mask, dropout, scaling), None


def documents_varlen(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document by PyTorch's variable-length kernel; arguments and result as `documents_sdpa`."""
    return _variable_length(_torch_varlen, query, key, value, attention_mask, dropout, scaling), None


def is_one_document_a_row(boundaries: torch.Tensor, rows: int, length: int) -> bool:
    """Whether every row is one document from end to end, read off the shape of `boundaries_of`, so without a look at the device.

    As many documents as rows, the longest as long as a row: since they add up to all rows, all are
    that long.
    """
    return boundaries.shape[1] == length and _documents(boundaries) == rows


def _whole_rows(query, key, value, dropout, scaling):
    """Plain causal attention; (rows, heads, length, width) in, (rows, length, heads, width) out."""
    with sdpa_kernel(_BACKENDS, set_priority=True):
        output = scaled_dot_product_attention(
            query,
            key,
            value,
            dropout_p=dropout,
            is_causal=True,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    return output.transpose(1, 2)


_BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]  # in this order where the device has them
_BACKENDS_WITHOUT_PLANS = _BACKENDS[1:]
"""For lengths that keep changing, for each of which cuDNN seems to plan anew. With PyTorch's own
choice, steps of 190 M parameters on real rows took 1.8 s at first and 0.7 after 200 steps on an
H200, when most lengths had been seen; in a process that had seen them all, 0.3 s."""


def _variable_length(kernel, query, key, value, boundaries, dropout, scaling):
    rows, heads, length, width = query.shape
    if is_one_document_a_row(boundaries, rows, length):
        return _whole_rows(query, key, value, dropout, scaling)
    flat = [states.transpose(1, 2).reshape(rows * length, states.shape[1], width) for states in (query, key, value)]
    return kernel(*flat, boundaries, dropout, scaling).view(rows, length, heads, width)


def _flash_attn_package(query, key, value, boundaries, dropout, scaling):
    from flash_attn import flash_attn_varlen_func

    offsets, longest = offsets_of(boundaries), boundaries.shape[1]
    return flash_attn_varlen_func(
        query, key, value, offsets, offsets, longest, longest, dropout_p=dropout, softmax_scale=scaling, causal=True
    )


def _torch_varlen(query, key, value, boundaries, dropout, scaling):
    from torch.nn.attention.varlen import varlen_attn

    _refuse_dropout(dropout)
    settings = {"scale": scaling, "window_size": (-1, 0)}
    if query.shape[1] != key.shape[1] and "enable_gqa" in inspect.signature(varlen_attn).parameters:
        settings["enable_gqa"] = True  # PyTorch 2.11 has no such option and takes fewer key heads without it
    offsets, longest = offsets_of(boundaries), boundaries.shape[1]
    return varlen_attn(query, key, value, offsets, offsets, longest, longest, **settings)


def _cudnn_varlen(query, key, value, boundaries, dropout, scaling):
    _refuse_dropout(dropout)
    documents = _documents(boundaries)
    starts, lengths = boundaries[0, 0, 0, documents + 1 :].split(documents)
    places = cudnn.Documents(starts, lengths, long=boundaries.shape[2] - 1, longest=boundaries.shape[1])
    return cudnn.varlen_attention(query, key, value, places, scaling)


def _refuse_dropout(dropout: float) -> None:
    if dropout:
        raise NotImplementedError(
            "the variable-length kernels have no dropout: set attention_dropout to 0 in config.json, or "
            "--fused_kernels False"
        )


def _has_flash_attn() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


def _has_torch_varlen() -> bool:
    return importlib.util.find_spec("torch.nn.attention.varlen") is not None


AttentionInterface.register(FLASH, documents_flash)
AttentionInterface.register(VARLEN, documents_varlen)
AttentionInterface.register(CUDNN, documents_cudnn)
AttentionInterface.register(SDPA, documents_sdpa)
