"""New embedding rows as means of old ones: which source pieces a new token is made of, and the arithmetic."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from colossal_llama.tokenizer.encoding import TextEncoder

INIT_METHODS = ("mean", "norm_matched_mean")
# 1,024 rows of about four constituents at width 4,096 are 64 MB of float32; larger chunks were not faster.
_ROWS_PER_CHUNK = 1024


@dataclass(frozen=True)
class Constituents:
    """For each new row, the source ids it is the mean of, flat.

    With 你好 → [30919, 31076] and 人工智能 → [30313, 31041, 31676, 30815]:

        ids      30919 31076 | 30313 31041 31676 30815
        offsets  0             2                         6

    Attributes:
        ids: int64 [total number of constituents].
        offsets: int64 [new rows + 1]; row i has ids[offsets[i]:offsets[i + 1]], and none at all when it has no
        constituents.
    """

    ids: torch.Tensor
    offsets: torch.Tensor

    @classmethod
    def of(cls, rows: list[list[int]]) -> "Constituents":
        """From one list of source ids per new row."""
        lengths = torch.tensor([0] + [len(ids) for ids in rows], dtype=torch.int64)
        return cls(torch.tensor([i for ids in rows for i in ids], dtype=torch.int64), lengths.cumsum(0))

    @property
    def lengths(self) -> torch.Tensor:
        """int64 [new rows]: the number of constituents of each row."""
        return self.offsets.diff()


def vocabulary_rows(tokenizer: PreTrainedTokenizerFast) -> int:
    """The rows that an embedding needs for a tokenizer: its greatest id + 1."""
    return max(tokenizer.get_vocab().values()) + 1


def split_into_source_pieces(
    source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast, rows: range
) -> list[list[int]]:
    """For each of the target's ids in `rows`, the source ids of its own text; empty for an id that no token has.

    A vocabulary piece goes straight to the source's BPE model, behind normalizer and pre-tokenizer. That keeps it as it
    is: LLaMA-2's 你好 gets no ▁ before it and ▁你好 keeps its own (a space in the text), and a byte-level piece of
    LLaMA-3, which may begin or end within a character, is split as the bytes it stands for. Added tokens
    (`<|im_start|>` …) are no pieces: their text is encoded as plain text that continues a document.

        LLaMA-2   你好 → 你 好        ▁你好 → ▁ 你 好        越来越 → 越 来 越        龘 → <0xE9> <0xBE> <0x98>
    """
    pieces = {index: piece for piece, index in target.backend_tokenizer.get_vocab(with_added_tokens=False).items()}
    added = {index: token.content for index, token in target.added_tokens_decoder.items()}
    texts = [added[index] for index in rows if index in added]
    of_added = iter(TextEncoder(source).encode_continuation(texts) if texts else ())
    model = source.backend_tokenizer.model
    result = []
    for index in rows:
        if index in added:
            result.append(next(of_added))
        elif index in pieces:
            result.append([token.id for token in model.tokenize(pieces[index])])
        else:
            result.append([])
    return result


def mean_rows(
    matrix: torch.Tensor, constituents: Constituents, method: str, default: torch.Tensor
) -> Iterator[torch.Tensor]:
    """The new rows, in pieces of at most some thousand rows, in the matrix's dtype.

    `mean` is the arithmetic mean, as published. Vectors that point in different directions partly cancel: the mean of n
    independent ones of norm r has the norm r / sqrt(n). `norm_matched_mean` keeps the mean's direction and rescales it
    to the average norm of the constituents, so that a new row is as long as the rows the model knows.

    Args:
        matrix: source rows, any floating dtype [source rows, width].
        constituents: what each new row is made of; ids index `matrix`.
        method: one of `INIT_METHODS`.
        default: float32 [width], the row of a token without constituents.
    """
    for begin in range(0, len(constituents.offsets) - 1, _ROWS_PER_CHUNK):
        offsets = constituents.offsets[begin : begin + _ROWS_PER_CHUNK + 1]
        ids = constituents.ids[offsets[0] : offsets[-1]]
        used, positions = ids.unique(return_inverse=True)
        rows = matrix[used].to(torch.promote_types(matrix.dtype, torch.float32))
        starts = offsets - offsets[0]
        means = _bag_means(rows, positions, starts)
        if method == "norm_matched_mean":
            norms = _bag_means(rows.norm(dim=1, keepdim=True), positions, starts)
            means *= norms / means.norm(dim=1, keepdim=True).clamp_min(torch.finfo(means.dtype).tiny)
        means[offsets.diff() == 0] = default.to(means.dtype)
        yield means.to(matrix.dtype)


def _bag_means(rows: torch.Tensor, positions: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Mean of rows[positions[starts[i]:starts[i + 1]]] for each i; 0 for an empty one."""
    return torch.nn.functional.embedding_bag(positions, rows, starts, mode="mean", include_last_offset=True)


def mean_of_all_rows(matrix: torch.Tensor) -> torch.Tensor:
    """float32 [width]: the mean of all rows, summed in float64 chunk by chunk."""
    total = torch.zeros(matrix.shape[1], dtype=torch.float64)
    for rows in matrix.split(_ROWS_PER_CHUNK):
        total += rows.double().sum(dim=0)
    return (total / max(1, matrix.shape[0])).float()


def average_norm(matrix: torch.Tensor) -> float:
    """The average Euclidean norm of the rows, 0 for none."""
    # Summed chunk by chunk: a list of small results between large temporary ones made glibc's heap grow by 400 MB.
    total = sum(rows.float().norm(dim=1).double().sum().item() for rows in matrix.split(_ROWS_PER_CHUNK))
    return total / max(1, len(matrix))
