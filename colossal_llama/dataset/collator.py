"""Collates rows into a micro-batch: padded tensors, and the lengths of each row's documents."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from colossal_llama.utils.labels import IGNORED_LABEL


@dataclass(frozen=True)
class MicroBatch:
    """Rows padded to one length, as tensors.

    Two rows with documents of 3 and 2, and of 4 tokens:

        input_ids         a0 a1 a2 b0 b1     c0 c1 c2 c3 pad
        position_ids       0  1  2  0  1      0  1  2  3  0
        token_lengths      3  3  3  2  2      4  4  4  4  1
        document_lengths  ((3, 2), (4,))

    Attributes:
        input_ids: int64 (rows, length).
        labels: int64 (rows, length), not shifted; -100 on padding and where a document begins.
        position_ids: int64 (rows, length); positions restart with each document.
        token_lengths: int64 (rows, length), for each token the length of its document in tokens.
        target_positions: int64 (targets,), positions in the flattened rows whose next token is a
            target.
        document_lengths: for each row the lengths of its documents in tokens, without padding.
        target_tokens: number of targets.
        tokens: number of tokens without padding.
        rows: number of rows; 0 for the placeholder of a rank that has none.
        sample_ids: numbers of the samples in the rows, in order.
        target_categories: int64 (rows, length), at each position the category number of the next
            token, whose prediction a loss at this position measures.
        category_targets: number of targets of each category.
        samples_per_row: number of samples in each row.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    token_lengths: torch.Tensor
    target_positions: torch.Tensor
    document_lengths: tuple[tuple[int, ...], ...]
    target_tokens: int
    tokens: int
    rows: int
    sample_ids: tuple[int, ...]
    target_categories: torch.Tensor
    category_targets: tuple[int, ...]
    samples_per_row: tuple[int, ...]

    def samples_of_rows(self) -> list[tuple[int, ...]]:
        """Sample numbers of each row."""
        ends = list(itertools.accumulate(self.samples_per_row, initial=0))
        return [self.sample_ids[begin:end] for begin, end in itertools.pairwise(ends)]

    def pin_memory(self) -> "MicroBatch":
        """The same batch in pinned memory: its copy to the GPU overlaps with computation."""
        pinned = {name: getattr(self, name).pin_memory() for name in _TENSORS}
        return MicroBatch(**{**self.__dict__, **pinned})

    def to(self, device: torch.device) -> "MicroBatch":
        """The same batch on a device; the copy does not block the host."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in _TENSORS}
        return MicroBatch(**{**self.__dict__, **moved})


_TENSORS = ("input_ids", "labels", "position_ids", "token_lengths", "target_positions", "target_categories")


@dataclass(frozen=True)
class Collator:
    """Pads rows to one length and records the lengths of their documents, for document masking.

    Attributes:
        pad_token_id: fills up rows; its value has no effect, since padding is known by length.
        max_length: maximum length of a row in tokens.
        pad_to_max_length: pad to `max_length` rather than to the longest row of the batch.
        cross_document_attention: treat a row as one document: tokens attend across documents, and
            positions do not restart.
        pad_to_multiple_of: pad to a multiple of this number of tokens, so that sequence parallelism
            divides rows evenly.
        categories: number of categories; 0 where the data name none.
    """

    pad_token_id: int
    max_length: int
    pad_to_max_length: bool = False
    cross_document_attention: bool = False
    pad_to_multiple_of: int = 1
    categories: int = 0

    def __call__(
        self, rows: Sequence[dict], sample_ids: Sequence[int] = (), samples_per_row: Sequence[int] = ()
    ) -> MicroBatch:
        """Makes a micro-batch of rows; of no rows, a placeholder of one row without targets.

        Args:
            rows: each with `input_ids`, `labels`, `document_lengths`, and, where there are
                categories, `document_categories`.
            sample_ids: see `MicroBatch`.
            samples_per_row: see `MicroBatch`.
        """
        real_rows = len(rows)
        if not rows:
            rows = [{"input_ids": [self.pad_token_id] * 2, "labels": [IGNORED_LABEL] * 2, "document_lengths": [2]}]
        lengths = [len(row["input_ids"]) for row in rows]
        # At least two: the loss predicts each token from the one before it.
        width = self.max_length if self.pad_to_max_length else max(2, *lengths)
        width += -width % self.pad_to_multiple_of
        input_ids = np.full((len(rows), width), self.pad_token_id, dtype=np.int64)
        labels = np.full((len(rows), width), IGNORED_LABEL, dtype=np.int64)
        position_ids = np.zeros((len(rows), width), dtype=np.int64)
        token_lengths = np.ones((len(rows), width), dtype=np.int64)
        target_categories = np.zeros((len(rows), width), dtype=np.int64)
        documents = []
        for index, row in enumerate(rows):
            length = lengths[index]
            spans = [length] if self.cross_document_attention else [int(span) for span in row["document_lengths"]]
            input_ids[index, :length] = row["input_ids"]
            labels[index, :length] = row["labels"]
            position_ids[index, :length] = np.concatenate([np.arange(span) for span in spans])
            token_lengths[index, :length] = np.repeat(spans, spans)
            if self.categories and real_rows:
                of_tokens = np.repeat(row["document_categories"], row["document_lengths"])
                target_categories[index, : length - 1] = of_tokens[1:]
            documents.append(tuple(spans))
        predicts_target = np.zeros_like(labels, dtype=bool)
        predicts_target[:, :-1] = labels[:, 1:] != IGNORED_LABEL
        target_positions = np.flatnonzero(predicts_target)
        return MicroBatch(
            input_ids=torch.from_numpy(input_ids),
            labels=torch.from_numpy(labels),
            position_ids=torch.from_numpy(position_ids),
            token_lengths=torch.from_numpy(token_lengths),
            target_positions=torch.from_numpy(target_positions),
            document_lengths=tuple(documents),
            target_tokens=len(target_positions),
            tokens=sum(lengths) if real_rows else 0,
            rows=real_rows,
            sample_ids=tuple(sample_ids),
            target_categories=torch.from_numpy(target_categories),
            category_targets=tuple(
                np.bincount(target_categories[predicts_target], minlength=self.categories)[: self.categories].tolist()
            ),
            samples_per_row=tuple(samples_per_row),
        )
