"""Counts segments, tokens and rows of parts by category, bucket and length, memory-mapped.

Only the columns of lengths and categories are read, and of the token ids where each row begins: a
few bytes for each segment (a document, or a piece of one that is longer than a row).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from colossal_llama.dataset.part_content import CATEGORY_COLUMN, check_structure, data_files
from colossal_llama.dataset.part_facts import read_part_facts
from colossal_llama.dataset.part_paths import is_part
from colossal_llama.dataset.part_reader import category_names
from colossal_llama.dataset.tokenized.rows import open_rows
from colossal_llama.dataset.tokenized.scan import checked_rows
from colossal_llama.utils.errors import UserError

_FILL_BINS, _LENGTH_BINS = 1000, 512
NO_CATEGORY = "(no category)"


@dataclass
class PartCounts:
    """Counts of parts.

    Attributes:
        max_length: longest row that the preparation allowed, in tokens.
        parts: their names.
        categories: their names.
        log_edges: (bins + 1,) lengths that grow by half an octave.
        linear_edges: (bins + 1,) lengths at equal distances.
        rows: (parts,).
        segments: (parts, categories).
        tokens: (parts, categories).
        log_lengths: (categories, bins) segments by their length.
        linear_lengths: (categories, bins).
        lengths: (max_length + 1,) segments of each length.
        fill: (bins,) rows by their length over `max_length`; a bin is at least one token wide.
    """

    max_length: int
    parts: Sequence[str]
    categories: Sequence[str]
    log_edges: np.ndarray = field(init=False)
    linear_edges: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        longest, count = self.max_length, len(self.categories)
        halves = np.arange(2 * int(np.ceil(np.log2(longest + 1))) + 1)
        edges = np.unique(np.round(2 ** (halves / 2)).astype(np.int64))
        self.log_edges = np.append(edges[edges < 0.9 * longest], longest + 1)
        width = -(-(longest + 1) // _LENGTH_BINS)
        self.linear_edges = np.arange(0, longest + 1 + width, width)
        shape = (len(self.parts), count)
        self.rows = np.zeros(shape[0], np.int64)
        self.segments, self.tokens = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self.log_lengths = np.zeros((count, len(self.log_edges) - 1), np.int64)
        self.linear_lengths = np.zeros((count, len(self.linear_edges) - 1), np.int64)
        self.lengths = np.zeros(longest + 1, np.int64)
        self.fill = np.zeros(min(_FILL_BINS, longest), np.int64)
        self._bins_of_length = [_bins(edges, longest) for edges in (self.log_edges, self.linear_edges)]

    @property
    def total_tokens(self) -> int:
        """Number of tokens of all rows."""
        return int(self.tokens.sum())

    def fill_of(self, parts: slice = slice(None)) -> float:
        """Tokens over the room in the rows, from 0 to 1."""
        room = int(self.rows[parts].sum()) * self.max_length
        return int(self.tokens[parts].sum()) / room if room else 0.0

    def length_quantile(self, share: float) -> int:
        """Length that this share of the segments does not exceed, in tokens; 0 without any."""
        reached = np.cumsum(self.lengths)
        return int(np.searchsorted(reached, share * reached[-1])) if reached[-1] else 0

    def add(self, part: int, row_lengths: np.ndarray, lengths: np.ndarray, categories: np.ndarray) -> None:
        """Adds rows of a part, with the lengths and categories of their segments."""
        count = len(self.categories)
        self.rows[part] += len(row_lengths)
        self.segments[part] += np.bincount(categories, minlength=count)
        self.tokens[part] += np.bincount(categories, weights=lengths, minlength=count).astype(np.int64)
        self.lengths += np.bincount(lengths, minlength=len(self.lengths))
        for bin_of, histogram in zip(self._bins_of_length, (self.log_lengths, self.linear_lengths), strict=True):
            bins = histogram.shape[1]
            histogram += np.bincount(categories * bins + bin_of[lengths], minlength=count * bins).reshape(count, bins)
        bins = len(self.fill)
        self.fill += np.bincount(np.minimum(row_lengths * bins // self.max_length, bins - 1), minlength=bins)


def _bins(edges: np.ndarray, longest: int) -> np.ndarray:
    """Number of the bin of every length up to the longest."""
    return np.clip(np.searchsorted(edges, np.arange(longest + 1), "right") - 1, 0, len(edges) - 2)


def count_parts(paths: Sequence[Path]) -> PartCounts:
    """Counts parts or data sets of other programs; categories are told apart by their names.

    Raises:
        UserError: a part is damaged.
    """
    opened = [_open(path) for path in paths]
    names = list(dict.fromkeys(name for part in opened for name in part.categories))
    numbers = {name: number for number, name in enumerate(names)}
    counts = PartCounts(max(1, *(part.max_length for part in opened)), [path.name for path in paths], names)
    for index, (path, part) in enumerate(zip(paths, opened, strict=True)):
        number_of = np.array([numbers[name] for name in part.categories])
        for row_lengths, lengths, found in part.columns:
            if len(lengths) and not (0 <= found.min() <= found.max() < len(number_of)):
                raise UserError(f"{path} has category numbers that have no name: the part is damaged")
            if not _fits(row_lengths, lengths, counts.max_length):
                raise UserError(f"{path}: segments do not fill the rows that they lie in: the part is damaged")
            counts.add(index, row_lengths, lengths, number_of[found])
    return counts


@dataclass(frozen=True)
class _OpenPart:
    """A part to count.

    Attributes:
        max_length: longest row that the preparation allowed, or that there is, in tokens.
        categories: their names, or one for all.
        columns: lengths of rows, lengths of segments and numbers of their categories, in batches.
    """

    max_length: int
    categories: Sequence[str]
    columns: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]


def _open(path: Path) -> _OpenPart:
    if is_part(path):
        facts = read_part_facts(path)
        return _OpenPart(facts.max_length, facts.categories or _column_names(path) or (NO_CATEGORY,), _columns(path))
    rows, _, categories = open_rows(path)
    columns = []
    for found in checked_rows(rows, 0, len(rows)):
        lengths = found.document_lengths.astype(np.int64)
        numbers = np.zeros(len(lengths), np.int64) if found.categories is None else found.categories
        columns.append((np.diff(found.starts), lengths, numbers))
    longest = max((int(row_lengths.max(initial=0)) for row_lengths, _, _ in columns), default=0)
    return _OpenPart(longest, categories or (NO_CATEGORY,), columns)


def _column_names(path: Path) -> tuple[str, ...]:
    """Names of the categories of a part whose part.json, of an earlier version, has none."""
    try:
        return category_names(datasets.DatasetInfo.from_directory(str(path)).features or datasets.Features())
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}/dataset_info.json cannot be read: {error}; copy the part again") from error


def _fits(row_lengths: np.ndarray, lengths: np.ndarray, max_length: int) -> bool:
    longest = max(row_lengths.max(initial=0), lengths.max(initial=0))
    return int(lengths.min(initial=1)) > 0 and longest <= max_length and lengths.sum() == row_lengths.sum()


def _columns(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Lengths of rows, and of segments with the numbers of their categories, batch by batch."""
    for file in data_files(path):
        check_structure(file)
        with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as reader:
            for batch in reader:
                lengths = _flat(batch, "document_lengths")
                known = CATEGORY_COLUMN in batch.schema.names
                found = _flat(batch, CATEGORY_COLUMN) if known else np.zeros(len(lengths), np.int64)
                if len(found) != len(lengths):
                    raise UserError(f"{path} has {len(lengths):,} lengths and {len(found):,} categories: it is damaged")
                yield np.diff(batch.column("input_ids").offsets.to_numpy()).astype(np.int64), lengths, found


def _flat(batch: pa.RecordBatch, name: str) -> np.ndarray:
    return batch.column(name).flatten().to_numpy().astype(np.int64)
