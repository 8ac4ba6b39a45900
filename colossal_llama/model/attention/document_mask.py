"""Document masking: the encoded block-diagonal causal mask of packed rows.

A token attends to earlier tokens of its own document only, so the mask of a packed row is causal
and block-diagonal. It is not built as a (length, length) tensor. The model's `attention_mask`
carries `cu_seqlens`, the cumulative sequence lengths that variable-length attention kernels take,
over the flattened rows:

    rows    [a a a b b]        cu_seqlens 0 3 5 8 10
            [c c c . .]        padding (.) is a document of its own, whose labels are ignored

transformers and ColossalAI (tensor parallelism and gradient checkpointing included) pass a 4-D
mask through to the attention function untouched; the functions of `model.attention.varlen` decode
it there.
"""

from collections.abc import Sequence

import torch

from colossal_llama.model.attention.cudnn import LONG_TOKENS, Documents


def encode_document_mask(document_lengths: Sequence[Sequence[int]], row_length_tokens: int) -> torch.Tensor:
    """Encodes the document mask of packed rows in the form of the model's `attention_mask`.

    Args:
        document_lengths: tokens of each row's documents, in order; what is missing to
            `row_length_tokens` is padding.
        row_length_tokens: the padded length of every row.

    Returns:
        int32, shape (1, max_seqlen, 1 + long documents, 3 documents + 1), an expanded view of its
        last dimension, which takes all the memory there is:

            cu_seqlens (documents + 1)        offsets of the documents in the flattened rows, end
            starts, lengths (documents each)  of the documents, longest first

        The sizes of the other dimensions carry max_seqlen and the number of documents longer than
        `LONG_TOKENS`. The kernels need both as host numbers: reading them from a GPU tensor would
        block the host once a layer.

    Raises:
        ValueError: a row's documents are longer than the row.

    >>> encode_document_mask([[3, 2], [3]], row_length_tokens=5)[0, 0, 0]
    tensor([ 0,  3,  5,  8, 10,  0,  5,  3,  8,  3,  3,  2,  2], dtype=torch.int32)
    """
    lengths: list[int] = []
    for row in document_lengths:
        lengths.extend(row)
        padding = row_length_tokens - sum(row)
        if padding < 0:
            raise ValueError(f"documents of {sum(row)} tokens do not fit into a row of {row_length_tokens}")
        if padding:
            lengths.append(padding)
    seqlens = torch.tensor(lengths, dtype=torch.int32)
    cu_seqlens = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    torch.cumsum(seqlens, 0, out=cu_seqlens[1:])
    descending, order = torch.sort(seqlens, descending=True, stable=True)
    values = torch.cat([cu_seqlens, cu_seqlens[:-1][order], descending])
    long_documents = sum(length > LONG_TOKENS for length in lengths)
    return values.view(1, 1, 1, -1).expand(1, max(lengths), 1 + long_documents, -1)


def cu_seqlens_of(mask: torch.Tensor) -> torch.Tensor:
    """int32 (documents + 1,): cumulative lengths of the documents in the flattened batch."""
    return mask[0, 0, 0, : _document_count(mask) + 1]


def max_seqlen_of(mask: torch.Tensor) -> int:
    """Tokens of the longest document."""
    return mask.shape[1]


def documents_of(mask: torch.Tensor) -> Documents:
    """Documents in the form that cuDNN's attention takes."""
    count = _document_count(mask)
    starts, lengths = mask[0, 0, 0, count + 1 :].split(count)
    return Documents(starts, lengths, long=mask.shape[2] - 1, max_seqlen=max_seqlen_of(mask))


def has_one_document_per_row(mask: torch.Tensor, rows: int, length: int) -> bool:
    """True when every row is one document from end to end.

    It is read off the mask's shape, without a device synchronisation. There are as many documents
    as rows, and the longest is as long as a row; since their lengths add up to all rows, all are
    that long.
    """
    return max_seqlen_of(mask) == length and _document_count(mask) == rows


def _document_count(mask: torch.Tensor) -> int:
    return (mask.shape[3] - 1) // 3
