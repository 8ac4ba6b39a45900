"""From prepared parts to batches: the order of the rows, each rank's share of a step, and the collator.

The order is a pure function of the parts' fingerprints, the seed and the epoch: buckets follow each other as given (or are
mixed), rows are shuffled inside. A step takes the next `rows_per_step` rows of that order whatever the number of ranks is, so
a run that goes on with other ranks sees the same rows in the same steps.

    order of an epoch   r0 r1 r2 r3 r4 r5 r6 r7 r8 r9          2 ranks, micro-batch 2, 2 accumulation steps
    step 0              rank 0: [r0 r1] [r4 r5]    rank 1: [r2 r3] [r6 r7]
    step 1              rank 0: [r8]    rank 1: [r9]            the short last step keeps every row
"""

import itertools
import json
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset

from colossal_llama.utils.errors import UserError
from colossal_llama.utils.files import fingerprint_bytes

IGNORED = -100


@dataclass(frozen=True)
class Part:
    """One prepared bucket (`arrow/part-0000i`)."""

    path: Path
    rows: datasets.Dataset
    kind: str
    """`pretrain` or `sft`."""
    fingerprint: str
    tokenizer_fingerprint: str | None
    tokens: int
    max_length: int
    """No row of the part is longer (tokens)."""
    categories: tuple[str, ...]


def open_parts(paths: Sequence[str | Path], max_length: int) -> list[Part]:
    """Opens prepared part directories, memory-mapped, whose rows have at most `max_length` tokens.

    Raises:
        UserError: some are missing or are not what the prepare scripts write; all of them are named.
    """
    parts, problems = [], []
    for path in map(Path, paths):
        try:
            parts.append(_open_part(path, max_length))
        except UserError as error:
            problems += error.problems
    if not problems and not sum(len(part.rows) for part in parts):
        problems.append("--dataset: the parts hold no rows at all, so there is nothing to train on")
    if not problems and len({part.kind for part in parts}) > 1:
        problems.append("--dataset mixes pre-training and conversation parts: train on one kind, then on the other")
    if problems:
        raise UserError(problems)
    return parts


def _open_part(path: Path, max_length: int) -> Part:
    if not path.is_dir():
        raise UserError(f"--dataset: {path} does not exist")
    note = path / "part.json"
    if not note.is_file():
        raise UserError(
            f"--dataset: {path} is not a part written by prepare_pretrain_dataset.py or prepare_sft_dataset.py (no part.json); "
            "give the directories arrow/part-00000 and so on, one by one"
        )
    try:
        rows = datasets.load_from_disk(str(path))
        facts = json.loads(note.read_text(encoding="utf-8"))
    except Exception as error:  # pyarrow, datasets and json each raise their own on a damaged file
        raise UserError(f"--dataset: {path} cannot be read: {error}") from error
    missing = {"input_ids", "labels", "document_lengths"} - set(rows.column_names)
    if missing:
        raise UserError(f"--dataset: {path} lacks the columns {', '.join(sorted(missing))}")
    if facts["max_length"] > max_length:
        raise UserError(
            f"--dataset: {path} was prepared for rows of up to {facts['max_length']} tokens, more than --max_length {max_length}: "
            "raise --max_length, or prepare the data again with the shorter one"
        )
    categories: tuple[str, ...] = ()
    feature = rows.features.get("document_categories")
    if feature is not None:
        categories = tuple(feature.feature.names)
    return Part(
        path=path,
        rows=rows,
        kind=facts["kind"],
        fingerprint=facts["fingerprint"],
        tokenizer_fingerprint=facts.get("tokenizer_fingerprint"),
        tokens=int(facts["tokens"]),
        max_length=int(facts["max_length"]),
        categories=categories,
    )


def data_fingerprint(parts: Sequence[Part]) -> str:
    """SHA-256 over the parts' own fingerprints, in order: names the data of a run wherever the files lie."""
    return fingerprint_bytes(*(part.fingerprint.encode() for part in parts))


def row_order(part_sizes: Sequence[int], seed: int, epoch: int, shuffle: str = "bucket") -> np.ndarray:
    """The order in which an epoch visits the rows of all parts, numbered through.

    Args:
        part_sizes: rows of each part.
        seed, epoch: decide the shuffle.
        shuffle: `bucket` shuffles inside each part and keeps the parts in order; `global` mixes all; `none` keeps the order.

    Returns:
        int64, shape (rows,): a permutation.
    """
    starts = np.cumsum([0, *part_sizes])
    if shuffle == "none":
        return np.arange(starts[-1])
    if shuffle == "global":
        return np.random.default_rng([seed, epoch]).permutation(starts[-1])
    pieces = [
        begin + np.random.default_rng([seed, epoch, index]).permutation(size)
        for index, (begin, size) in enumerate(zip(starts[:-1], part_sizes, strict=True))
    ]
    return np.concatenate(pieces) if pieces else np.arange(0)


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

        Every rank gets the same number of micro-batches, since each one is a collective; where a short last step has no row
        for a rank, its list is empty (the collator makes a row without targets of it). The rows of a short micro-batch are spread
        as evenly as they go.

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

    `input_ids`, `labels`, `position_ids`, `token_lengths`: int64 (rows, length). Labels are -100 on padding and where a document
    begins; positions restart with each document; `token_lengths` gives each token the length of its document. `boundaries`: see
    `colossal_llama.model.attention.boundaries_of`. `target_tokens`: labels that count, after the shift. `row_ids`: numbers of the rows.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    token_lengths: torch.Tensor
    document_lengths: tuple[tuple[int, ...], ...]
    target_tokens: int
    tokens: int
    row_ids: tuple[int, ...]

    def pin_memory(self) -> "MicroBatch":
        """The same batch in page-locked memory, so that the copy to the GPU overlaps with its work."""
        pinned = {name: getattr(self, name).pin_memory() for name in _TENSORS}
        return MicroBatch(**{**self.__dict__, **pinned})

    def to(self, device: torch.device) -> "MicroBatch":
        """The same batch on a device; the copy does not stop the host."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in _TENSORS}
        return MicroBatch(**{**self.__dict__, **moved})


_TENSORS = ("input_ids", "labels", "position_ids", "token_lengths")


@dataclass(frozen=True)
class Collator:
    """Pads rows to one length and says where their documents lie.

    Args:
        pad_token_id: fills up rows; never looked at again, since padding is known by length.
        max_length: the most tokens of a row.
        pad_to_max_length: pad to `max_length` rather than to the longest row of the batch.
        cross_document_attention: treat a row as one document: its documents see each other and positions run through.
    """

    pad_token_id: int
    max_length: int
    pad_to_max_length: bool = False
    cross_document_attention: bool = False

    def __call__(self, rows: Sequence[dict], row_ids: Sequence[int] = ()) -> MicroBatch:
        """Makes a batch of rows (`input_ids`, `labels`, `document_lengths`); of no rows, a batch of one row without targets."""
        if not rows:
            rows = [{"input_ids": [self.pad_token_id] * 2, "labels": [IGNORED] * 2, "document_lengths": [2]}]
        lengths = [len(row["input_ids"]) for row in rows]
        # At least two: the loss predicts each token from the one before it.
        width = self.max_length if self.pad_to_max_length else max(2, *lengths)
        input_ids = np.full((len(rows), width), self.pad_token_id, dtype=np.int64)
        labels = np.full((len(rows), width), IGNORED, dtype=np.int64)
        position_ids = np.zeros((len(rows), width), dtype=np.int64)
        token_lengths = np.ones((len(rows), width), dtype=np.int64)
        documents = []
        for index, row in enumerate(rows):
            length = lengths[index]
            spans = [length] if self.cross_document_attention else [int(span) for span in row["document_lengths"]]
            input_ids[index, :length] = row["input_ids"]
            labels[index, :length] = row["labels"]
            position_ids[index, :length] = np.concatenate([np.arange(span) for span in spans])
            token_lengths[index, :length] = np.repeat(spans, spans)
            documents.append(tuple(spans))
        return MicroBatch(
            input_ids=torch.from_numpy(input_ids),
            labels=torch.from_numpy(labels),
            position_ids=torch.from_numpy(position_ids),
            token_lengths=torch.from_numpy(token_lengths),
            document_lengths=tuple(documents),
            target_tokens=int((labels[:, 1:] != IGNORED).sum()),
            tokens=sum(lengths),
            row_ids=tuple(row_ids),
        )


class Rows(Dataset):
    """The rows of all parts, numbered through, as a torch dataset of micro-batches: indexed by a tuple of row numbers."""

    def __init__(self, parts: Sequence[Part], collator: Collator):
        self.sizes = [len(part.rows) for part in parts]
        self._starts = np.cumsum([0, *self.sizes])
        columns = ["input_ids", "labels", "document_lengths"]
        self._parts = [part.rows.select_columns(columns).with_format("numpy") for part in parts]
        self._collator = collator

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, row_ids: Sequence[int]) -> MicroBatch:
        return self._collator([self._row(row_id) for row_id in row_ids], row_ids)

    def _row(self, row_id: int) -> dict:
        part = int(np.searchsorted(self._starts, row_id, side="right")) - 1
        return self._parts[part][int(row_id - self._starts[part])]


def step_batches(
    rows: Rows, order: np.ndarray, geometry: StepGeometry, rank: int, pin_memory: bool = False
) -> Iterator[list[MicroBatch]]:
    """A rank's micro-batches, one list a step, in the given order of rows.

    A thread reads two steps ahead (memory-mapped rows, collated by numpy, are far cheaper than a step). Worker processes would have
    to be forked from a process that holds CUDA and communication threads, which aborts on some hosts.

    Args:
        rows: of all parts.
        order: row numbers in training order.
        geometry: how a step's rows are shared.
        rank: data-parallel rank.
        pin_memory: give batches in page-locked memory.
    """

    def load(step_rows: np.ndarray) -> list[MicroBatch]:
        batches = [rows[batch] for batch in geometry.micro_batches(step_rows, rank)]
        return [batch.pin_memory() for batch in batches] if pin_memory else batches

    steps = (order[begin : begin + geometry.rows_per_step] for begin in range(0, len(order), geometry.rows_per_step))
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="reads ahead") as reader:
        ahead = deque(reader.submit(load, step) for step in itertools.islice(steps, 2))
        try:
            while ahead:
                batches = ahead.popleft().result()
                ahead.extend(reader.submit(load, step) for step in itertools.islice(steps, 1))
                yield batches
        finally:
            for future in ahead:
                future.cancel()
