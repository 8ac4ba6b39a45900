"""Attention functions with document masking, and the choice among them.

Four functions are registered with transformers' `AttentionInterface`
(https://huggingface.co/docs/transformers/attention_interface) and read the document mask that
`model.attention.document_mask` encodes as the model's `attention_mask`. Three compute all documents
in one variable-length kernel: cuDNN's (model.attention.cudnn), PyTorch's
(`torch.nn.attention.varlen`) or the flash-attn package's. The fourth calls
`scaled_dot_product_attention` document by document, on any device.

A sliding window (Mistral) is obeyed where a document is longer than it: by the variable-length
kernels of PyTorch and flash-attn, and by a mask document by document; cuDNN's hands over to
PyTorch's. Shorter documents are computed without it, as they would be with it.

Where every row is one whole document all of them call the plain causal kernel once. Measured on an
H200, 8 rows of 4,096 tokens, 32 heads of 64, 4 key-value heads, forward and backward, in ms: one
document a row: cuDNN 5.1, PyTorch's flash kernel 7.7, its variable-length one 8.0; sixteen
documents a row: 1.9 in the last; real pre-training rows (51 to 115 documents): 6.2 to 7.0.
"""

import importlib.util
import inspect
import itertools
from collections.abc import Callable

import torch
from torch.nn.attention import sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from colossal_llama.model.attention import cudnn
from colossal_llama.model.attention.backends import BACKENDS, attention_without_plans
from colossal_llama.model.attention.document_mask import (
    cu_seqlens_of,
    documents_of,
    has_one_document_per_row,
    max_seqlen_of,
)

FLASH = "documents_flash"
VARLEN = "documents_varlen"
CUDNN = "documents_cudnn"
SDPA = "documents_sdpa"


def choose_attention(
    use_flash: bool,
    fast: bool,
    device: torch.device,
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    dropout: float = 0.0,
) -> tuple[str, str]:
    """Chooses the attention function; returns its registered name and a note that names its kernel.

    Args:
        use_flash: the user asked for flash attention: the flash-attn package is used where it is
            installed.
        fast: use variable-length kernels without being asked for them.
        device: where the model computes.
        dtype: of its activations; the kernels take fp16 and bf16.
        heads: query heads, key-value heads, head dimension.
        dropout: of the attention weights, in training. Of the variable-length kernels only
            flash-attn's has it.
    """
    supported = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
    plain = "scaled_dot_product_attention, document by document"
    if (use_flash or (fast and dropout)) and supported and _has_flash_attn():
        return FLASH, "attention: variable-length kernel of the flash-attn package"
    if (use_flash or fast) and supported and dropout:
        return SDPA, (
            f"attention: {plain}, which is slower: attention_dropout is {dropout} in config.json, and the "
            "variable-length kernels of cuDNN and PyTorch have no dropout (flash-attn's has it; or set it to 0)"
        )
    if (use_flash or fast) and supported:
        absent = "; the flash-attn package is not installed" if use_flash else ""
        reason = cudnn.cudnn_unavailable_reason(device, dtype, *heads)
        if reason is None:
            return CUDNN, f"attention: cuDNN's variable-length kernel{absent}"
        if _has_torch_varlen():
            return VARLEN, f"attention: PyTorch's own variable-length kernel (cuDNN's: {reason}{absent})"
    if not use_flash:
        return SDPA, f"attention: PyTorch's {plain}"
    if supported:
        return SDPA, (
            f"attention: neither flash-attn nor torch.nn.attention.varlen (PyTorch 2.10) is installed; using {plain}"
        )
    return SDPA, (
        f"attention: --use_flash_attn needs a CUDA device and fp16 or bf16 (here: {device.type}, {dtype}); using "
        f"{plain}, which computes the same"
    )


def sdpa_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention with document masking, one `scaled_dot_product_attention` a document.

    Args:
        module: the attention layer (unused; part of the interface).
        query: (rows, heads, length, head dimension).
        key: (rows, key-value heads, length, head dimension).
        value: as `key`.
        attention_mask: from `encode_document_mask`.
        dropout: probability of dropping an attention weight.
        scaling: factor on the scores; 1 / sqrt(head dimension) when None.
        sliding_window: tokens that a token attends to, itself included; None: all before it.

    Returns:
        (rows, length, heads, head dimension), and None in place of the attention weights.
    """
    rows, heads, length, width = query.shape
    window = _window_in_use(sliding_window, attention_mask)
    if window is None and has_one_document_per_row(attention_mask, rows, length):
        return _plain_causal(query, key, value, dropout, scaling), None
    # (1, heads, rows * length, width): documents never cross rows, so each is one slice of the
    # flattened batch.
    queries, keys, values = (
        states.transpose(0, 1).reshape(1, states.shape[1], rows * length, width) for states in (query, key, value)
    )
    offsets = cu_seqlens_of(attention_mask).tolist()
    with attention_without_plans():
        outputs = [
            scaled_dot_product_attention(
                queries[:, :, begin:end],
                keys[:, :, begin:end],
                values[:, :, begin:end],
                attn_mask=_window_mask(end - begin, window, query.device),
                dropout_p=dropout,
                is_causal=window is None or end - begin <= window,
                scale=scaling,
                enable_gqa=heads != key.shape[1],
            )
            for begin, end in itertools.pairwise(offsets)
        ]
    return torch.cat(outputs, dim=2).view(heads, rows, length, width).permute(1, 2, 0, 3), None


def _window_in_use(window: int | None, mask: torch.Tensor) -> int | None:
    """The window; None where no document is longer than it."""
    return window if window is not None and max_seqlen_of(mask) > window else None


def _window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Mask (length, length) of the pairs within the window; None where it leaves nothing out."""
    if window is None or length <= window:
        return None
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - window)


def _varlen_attention(kernel: Callable[..., torch.Tensor]) -> Callable[..., tuple[torch.Tensor, None]]:
    """Makes an attention function like `sdpa_attention` of a variable-length kernel.

    Args:
        kernel: takes queries, keys and values flattened to (rows * length, heads, head dimension),
            the document mask, dropout, scaling and the window (None where it is not in use).
    """

    def attention(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor,
        dropout: float = 0.0,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **_: object,
    ) -> tuple[torch.Tensor, None]:
        """As `sdpa_attention`."""
        rows, heads, length, width = query.shape
        window = _window_in_use(sliding_window, attention_mask)
        if window is None and has_one_document_per_row(attention_mask, rows, length):
            return _plain_causal(query, key, value, dropout, scaling), None
        flat = [states.transpose(1, 2).reshape(rows * length, states.shape[1], width) for states in (query, key, value)]
        return kernel(*flat, attention_mask, dropout, scaling, window).view(rows, length, heads, width), None

    return attention


def _plain_causal(query, key, value, dropout, scaling):
    """Plain causal attention; (rows, heads, length, width) in, (rows, length, heads, width) out."""
    with sdpa_kernel(BACKENDS, set_priority=True):
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


def _flash_attn_kernel(query, key, value, mask, dropout, scaling, window):
    from flash_attn import flash_attn_varlen_func

    cu_seqlens, max_seqlen = cu_seqlens_of(mask), max_seqlen_of(mask)
    return flash_attn_varlen_func(
        query,
        key,
        value,
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        dropout_p=dropout,
        softmax_scale=scaling,
        causal=True,
        window_size=(-1, -1) if window is None else (window - 1, 0),
    )


def _torch_kernel(query, key, value, mask, dropout, scaling, window):
    from torch.nn.attention.varlen import varlen_attn

    _refuse_dropout(dropout)
    before = -1 if window is None else window - 1
    settings = {"scale": scaling, "window_size": (before, 0)}  # a window to the left only: causal
    if query.shape[1] != key.shape[1] and "enable_gqa" in inspect.signature(varlen_attn).parameters:
        settings["enable_gqa"] = True  # PyTorch 2.11 has no such option and takes fewer key heads without it
    cu_seqlens, max_seqlen = cu_seqlens_of(mask), max_seqlen_of(mask)
    return varlen_attn(query, key, value, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, **settings)


def _cudnn_kernel(query, key, value, mask, dropout, scaling, window):
    if window is not None:
        return _torch_kernel(query, key, value, mask, dropout, scaling, window)
    _refuse_dropout(dropout)
    return cudnn.varlen_attention(query, key, value, documents_of(mask), scaling)


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


AttentionInterface.register(FLASH, _varlen_attention(_flash_attn_kernel))
AttentionInterface.register(VARLEN, _varlen_attention(_torch_kernel))
AttentionInterface.register(CUDNN, _varlen_attention(_cudnn_kernel))
AttentionInterface.register(SDPA, sdpa_attention)
