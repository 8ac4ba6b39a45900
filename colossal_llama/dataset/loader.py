"""Reads opened parts and gives each rank its micro-batches of every step.

A step takes the next `rows_per_step` rows of the epoch's plan (colossal_llama.dataset.epoch_plan)
whatever the number of ranks is. So a run that is resumed on another number of ranks reads the same
rows in the same steps.

    rows of an epoch    r0 r1 r2 r3 r4 r5 r6 r7 r8 r9     (2 ranks, micro-batch 2, 2 accumulations)
    step 0              rank 0: [r0 r1] [r4 r5]    rank 1: [r2 r3] [r6 r7]
    step 1              rank 0: [r8]    rank 1: [r9]          (the short last step keeps every row)
"""

import itertools
import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from colossal_llama.dataset.collator import Collator, MicroBatch
from colossal_llama.dataset.part import Part
from colossal_llama.dataset.splicing import Rows
from colossal_llama.utils.errors import UserError


@dataclass(frozen=True)
class StepGeometry:
    """Number of rows of a step, and their distribution over the data-parallel ranks."""

    micro_batch_size: int
    accumulation_steps: int
    data_parallel_size: int

    @property
    def rows_per_step(self) -> int:
        """Number of rows of one optimizer step, over all ranks and micro-batches."""
        return self.micro_batch_size * self.accumulation_steps * self.data_parallel_size

    def steps_for(self, rows: int) -> int:
        """Number of steps for so many rows; the last step may be short."""
        return math.ceil(rows / self.rows_per_step)

    def micro_batches(self, step_rows: Sequence[int], rank: int) -> list[list[int]]:
        """A rank's micro-batches of one step, as lists of row numbers.

        Every rank gets the same number of micro-batches, since each one is a collective. Where a
        short last step has no row for a rank, the list is empty, and the collator makes a
        placeholder of it. The rows of a short micro-batch are spread as evenly as possible.

        Args:
            step_rows: numbers of the step's rows, at most `rows_per_step`.
            rank: data-parallel rank.
        """
        per_micro_step = self.micro_batch_size * self.data_parallel_size
        batches = []
        for begin in range(0, len(step_rows), per_micro_step):
            by_rank = np.array_split(np.asarray(step_rows[begin : begin + per_micro_step]), self.data_parallel_size)
            batches.append([int(row) for row in by_rank[rank]])
        return batches


class RowReader:
    """Reads samples from all parts and collates rows of them.

    A sample is what a part stores as one row: a conversation, or documents spliced together. All
    parts' samples are numbered consecutively.
    """

    def __init__(self, parts: Sequence[Part], collator: Collator, categories: Sequence[str] = ()):
        """Opens the columns that training reads.

        Args:
            parts: in order.
            collator: makes micro-batches of rows.
            categories: names of all categories; a micro-batch numbers them in this order.
        """
        self._starts = np.cumsum([0, *(len(part.rows) for part in parts)])
        columns = ["input_ids", "labels", "document_lengths"]
        self._with_categories = bool(categories)
        if self._with_categories:
            columns.append("document_categories")
        # Each part numbers its own categories.
        named = [part.categories if categories else () for part in parts]
        self._category_numbers = [np.array([categories.index(name) for name in names], np.int64) for names in named]
        self._parts = [part.reader(columns) for part in parts]
        self._paths = [part.path for part in parts]
        self._files = [[(file, file.stat()) for file in part.files] for part in parts]
        self._collator = collator

    def micro_batch(self, rows: Sequence[Sequence[int] | np.ndarray]) -> MicroBatch:
        """Micro-batch of rows, each given as the numbers of its samples.

        Raises:
            UserError: a part's file has become shorter since it was opened.
        """
        sample_ids = [int(sample) for row in rows for sample in row]
        for part in {self._part_of(sample) for sample in sample_ids}:
            self._refuse_shortened_files(part)
        joined = [_concatenated([self._read(int(sample)) for sample in row]) for row in rows]
        return self._collator(joined, sample_ids, [len(row) for row in rows])

    def locate(self, sample: int) -> tuple[Path, int]:
        """Path of a sample's part, and the sample's row number in that part."""
        part = self._part_of(sample)
        return self._paths[part], sample - int(self._starts[part])

    def _refuse_shortened_files(self, part: int) -> None:
        """Refuses to read behind the end of a mapped file, which the system answers with SIGBUS."""
        for file, opened in self._files[part]:
            try:
                now = file.stat()
            except OSError:
                continue  # deleted or moved: the mapped file is still whole
            if os.path.samestat(now, opened) and now.st_size < opened.st_size:
                raise UserError(
                    f"{file} has become shorter while the run reads it ({now.st_size:,} of {opened.st_size:,} bytes): "
                    "copy the part again, and resume the run with --load_checkpoint auto"
                )

    def _part_of(self, sample: int) -> int:
        return int(np.searchsorted(self._starts, sample, side="right")) - 1

    def _read(self, sample: int) -> dict:
        part = self._part_of(sample)
        row = self._parts[part][sample - int(self._starts[part])]
        if self._with_categories:
            row["document_categories"] = self._category_numbers[part][row["document_categories"]]
        return row


def _concatenated(samples: Sequence[dict]) -> dict:
    """One row of several samples; each keeps its documents."""
    if len(samples) == 1:
        return samples[0]
    return {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}


def step_batches(
    reader: RowReader, plan: Rows, first_row: int, geometry: StepGeometry, rank: int, pin_memory: bool = False
) -> Iterator[list[MicroBatch]]:
    """Yields a rank's micro-batches, one list per step, from row `first_row` of an epoch on.

    A thread prefetches two steps: reading memory-mapped rows and collating them with NumPy is far
    cheaper than a step. Worker processes would have to be forked from a process that holds CUDA and
    communication threads, which aborts on some hosts.

    Args:
        reader: of all parts.
        plan: the epoch's rows.
        first_row: number of rows already trained on in this epoch.
        geometry: distribution of a step's rows over the ranks.
        rank: data-parallel rank.
        pin_memory: whether to copy micro-batches to pinned memory.
    """

    def load(begin: int) -> list[MicroBatch]:
        step_rows = range(begin, min(begin + geometry.rows_per_step, len(plan)))
        shares = geometry.micro_batches(step_rows, rank)
        batches = [reader.micro_batch([plan.row(row) for row in share]) for share in shares]
        return [batch.pin_memory() for batch in batches] if pin_memory else batches

    begins = iter(range(first_row, len(plan), geometry.rows_per_step))
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as executor:
        prefetched = deque(executor.submit(load, begin) for begin in itertools.islice(begins, 2))
        try:
            while prefetched:
                batches = prefetched.popleft().result()
                prefetched.extend(executor.submit(load, begin) for begin in itertools.islice(begins, 1))
                yield batches
        finally:
            for future in prefetched:
                future.cancel()
