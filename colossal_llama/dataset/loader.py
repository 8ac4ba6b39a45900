"""From opened parts to batches: each rank's share of a step, and the collator.

A step takes the next `rows_per_step` rows of the epoch's plan (colossal_llama.dataset.epoch_plan)
whatever the number of ranks is, so a run that goes on with other ranks sees the same rows in the
same steps.

    order of an epoch   r0 r1 r2 r3 r4 r5 r6 r7 r8 r9          2 ranks, micro-batch 2, 2 accumulation steps
    step 0              rank 0: [r0 r1] [r4 r5]    rank 1: [r2 r3] [r6 r7]
    step 1              rank 0: [r8]    rank 1: [r9]            the short last step keeps every row
"""

import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from colossal_llama.dataset.part_reader import Part
from colossal_llama.dataset.splicing import Rows
from colossal_llama.dataset.tokenization import IGNORED_LABEL


@dataclass(frozen=True)
class StepGeometry:
    """How many rows a step takes and which of them are whose."""

    micro_batch_size: int
    accumulation_steps: int
    data_parallel_size: int

    @property
    def rows_per_step(self) -> int:
        """Rows of all ranks and micro-batches of one optimizer step."""
        return self.micro_batch_size * self.accumulation_steps * self.data_parallel_size

    def steps_for(self, rows: int) -> int:
        """Steps that `rows` rows make; the last may be short."""
        return math.ceil(rows / self.rows_per_step)

    def micro_batches(self, step_rows: Sequence[int], rank: int) -> list[list[int]]:
        """A rank's micro-batches of one step.

        Every rank gets the same number of micro-batches, since each one is a collective; where a
        short last step has no row for a rank, its list is empty (the collator makes a row without
        targets of it). The rows of a short micro-batch are spread as evenly as they go.

        Args:
            step_rows: the step's rows, at most `rows_per_step`.
            rank: data-parallel rank.
        """
        per_micro_step = self.micro_batch_size * self.data_parallel_size
        batches = []
        for begin in range(0, len(step_rows), per_micro_step):
            shares = np.array_split(np.asarray(step_rows[begin : begin + per_micro_step]), self.data_parallel_size)
            batches.append([int(row) for row in shares[rank]])
        return batches


@dataclass(frozen=True)
class MicroBatch:
    """Rows padded to one length.

    `input_ids`, `labels`, `position_ids`, `token_lengths`: int64 (rows, length). Labels are -100 on
    padding and where a document begins; positions restart with each document; `token_lengths` gives
    each token the length of its document. `boundaries`: see
    `colossal_llama.model.attention.varlen.boundaries_of`. `target_categories`: int64 (rows,
    length), at each position the number of the category of the token after it, whose prediction is
    what a loss at this position measures; `category_targets`: targets of each category.
    `target_positions`: int64 (targets,), where in the flattened rows the next token is a target;
    `target_tokens`: how many there are. `rows`: how many there are (0 for the stand-in of a rank
    that has none). `sample_ids`: numbers of the prepared rows in them, `samples_per_row` of which
    make up each row.
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
        """The prepared rows that each row is made of."""
        ends = list(itertools.accumulate(self.samples_per_row, initial=0))
        return [self.sample_ids[begin:end] for begin, end in itertools.pairwise(ends)]

    def pin_memory(self) -> "MicroBatch":
        """The same batch in page-locked memory, so that the copy to the GPU overlaps with its work."""
        pinned = {name: getattr(self, name).pin_memory() for name in _TENSORS}
        return MicroBatch(**{**self.__dict__, **pinned})

    def to(self, device: torch.device) -> "MicroBatch":
        """The same batch on a device; the copy does not stop the host."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in _TENSORS}
        return MicroBatch(**{**self.__dict__, **moved})


_TENSORS = ("input_ids", "labels", "position_ids", "token_lengths", "target_positions", "target_categories")


@dataclass(frozen=True)
class Collator:
    """Pads rows to one length and says where their documents lie.

    Args:
        pad_token_id: fills up rows; never looked at again, since padding is known by length.
        max_length: the most tokens of a row.
        pad_to_max_length: pad to `max_length` rather than to the longest row of the batch.
        cross_document_attention: treat a row as one document: its documents see each other and
            positions run through.
        pad_to_multiple_of: pad to a multiple of so many tokens, which sequence parallelism divides
            evenly.
        categories: how many there are; 0 where the data name none.
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
        """Makes a batch of rows; of no rows, a batch of one row without targets.

        Args:
            rows: each with `input_ids`, `labels`, `document_lengths`, and, where there are
                categories, `document_categories`.
            sample_ids, samples_per_row: see `MicroBatch`.
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


class RowReader:
    """Reads the prepared rows of all parts, numbered through, and collates them."""

    def __init__(self, parts: Sequence[Part], collator: Collator, categories: Sequence[str] = ()):
        """Args: the parts; what collates their rows; the names of the categories, in the order of the numbers in a batch."""
        self._starts = np.cumsum([0, *(len(part.rows) for part in parts)])
        columns = ["input_ids", "labels", "document_lengths"]
        self._with_categories = bool(categories)
        if self._with_categories:
            columns.append("document_categories")
        # A part numbers the categories that it has; here they are numbered through.
        named = [part.categories if categories else () for part in parts]
        self._category_numbers = [np.array([categories.index(name) for name in names], np.int64) for names in named]
        self._parts = [part.rows.select_columns(columns).with_format("numpy") for part in parts]
        self._paths = [part.path for part in parts]
        self._collator = collator

    def micro_batch(self, rows: Sequence[Sequence[int]]) -> MicroBatch:
        """A batch of rows, each given by the prepared rows that it is made of."""
        sample_ids = [int(sample) for row in rows for sample in row]
        joined = [_joined([self._read(int(sample)) for sample in row]) for row in rows]
        return self._collator(joined, sample_ids, [len(row) for row in rows])

    def place_of(self, sample: int) -> tuple[Path, int]:
        """The part of a prepared row, and its number there."""
        part = self._part_of(sample)
        return self._paths[part], sample - int(self._starts[part])

    def _part_of(self, sample: int) -> int:
        return int(np.searchsorted(self._starts, sample, side="right")) - 1

    def _read(self, sample: int) -> dict:
        part = self._part_of(sample)
        row = self._parts[part][sample - int(self._starts[part])]
        if self._with_categories:
            row["document_categories"] = self._category_numbers[part][row["document_categories"]]
        return row


def _joined(samples: Sequence[dict]) -> dict:
    """Samples one after the other as one row; each keeps its documents."""
    if len(samples) == 1:
        return samples[0]
    return {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}


def step_batches(
    reader: RowReader, plan: Rows, first_row: int, geometry: StepGeometry, rank: int, pin_memory: bool = False
) -> Iterator[list[MicroBatch]]:
    """A rank's micro-batches, one list a step, from row `first_row` of an epoch's plan on.

    A thread reads two steps ahead (memory-mapped rows, collated by numpy, are far cheaper than a
    step). Worker processes would have to be forked from a process that holds CUDA and communication
    threads, which aborts on some hosts.

    Args:
        reader: of all parts.
        plan: the epoch's rows.
        first_row: how many of them were done before.
        geometry: how a step's rows are shared.
        rank: data-parallel rank.
        pin_memory: give batches in page-locked memory.
    """

    def load(begin: int) -> list[MicroBatch]:
        step_rows = range(begin, min(begin + geometry.rows_per_step, len(plan)))
        shares = geometry.micro_batches(step_rows, rank)
        batches = [reader.micro_batch([plan.row(row) for row in share]) for share in shares]
        return [batch.pin_memory() for batch in batches] if pin_memory else batches

    begins = iter(range(first_row, len(plan), geometry.rows_per_step))
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="reads ahead") as thread:
        ahead = deque(thread.submit(load, begin) for begin in itertools.islice(begins, 2))
        try:
            while ahead:
                batches = ahead.popleft().result()
                ahead.extend(thread.submit(load, begin) for begin in itertools.islice(begins, 1))
                yield batches
        finally:
            for future in ahead:
                future.cancel()
