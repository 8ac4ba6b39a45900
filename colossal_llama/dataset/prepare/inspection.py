"""Prints rows as text, with targets and document boundaries marked."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerFast

from colossal_llama.dataset.part_content import CATEGORY_COLUMN, ROW_COLUMNS, check_structure, data_files
from colossal_llama.dataset.part_facts import read_part_facts
from colossal_llama.dataset.part_paths import find_parts, is_part
from colossal_llama.dataset.prepare.arguments import Inspection
from colossal_llama.dataset.prepare.recorded_tokenizer import open_recorded_tokenizer
from colossal_llama.dataset.tokenized.rows import TokenizedRows, open_rows
from colossal_llama.dataset.tokenized.scan import checked_rows
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.labels import IGNORED_LABEL

TARGET_STYLE, CONTEXT_STYLE, BOUNDARY_STYLE = "bold green", "dim", "yellow"


def inspect(inspection: Inspection) -> None:
    """Prints rows of a finished directory, a directory of parts, a part, or another's data set.

    Raises:
        UserError: there are no parts, one is damaged, or the tokenizer is not theirs or unknown.
    """
    found = find_parts((inspection.directory,), "--inspect")
    for note in found.notes:
        log_rank_zero(note)
    tokenizer = open_recorded_tokenizer(found.paths, inspection.tokenizer)
    show_rows(found.paths, tokenizer, inspection.rows)


def show_rows(
    parts: Sequence[Path], tokenizer: PreTrainedTokenizerFast, count: int, console: Console | None = None
) -> None:
    """Prints the first rows of the parts in turn: targets green, the rest dim.

    Without colours targets are enclosed in ⟦ ⟧.

    Args:
        parts: their directories.
        tokenizer: of the preparation.
        count: number of rows.
        console: to print on; None for standard output.

    Raises:
        UserError: a part is damaged.
    """
    console = console or Console(soft_wrap=True, highlight=False)
    shown = 0
    for part, number in _in_turn(parts, count):
        row = _checked_row(part, number, len(tokenizer))
        console.rule(f"{part.path.name}, row {number}: {len(row['input_ids'])} tokens")
        console.print(row_as_text(row, tokenizer, part.categories, with_brackets=not console.is_terminal))
        shown += 1
    if not shown:
        console.print("the parts hold no rows")


@dataclass(frozen=True)
class _ShownPart:
    """A part, of which single rows are read.

    Attributes:
        path: its directory.
        categories: their names.
        row: reads a row by its number; None beyond the last.
    """

    path: Path
    categories: tuple[str, ...]
    row: Callable[[int], dict | None]


def _in_turn(parts: Sequence[Path], count: int) -> Iterator[tuple[_ShownPart, int]]:
    """The first row of each part, then the second of each; no more parts are opened than needed."""
    opened: list[_ShownPart] = []
    number = 0
    while True:
        has_rows = False
        for index in range(len(parts)):
            if index == len(opened):
                opened.append(_open(parts[index]))
            if count and opened[index].row(number) is not None:
                yield opened[index], number
                count -= 1
                has_rows = True
            if not count:
                return
        if not has_rows:
            return
        number += 1


def _open(path: Path) -> _ShownPart:
    if not is_part(path):
        tokenized, _, categories = open_rows(path)
        return _ShownPart(path, categories, partial(_tokenized_row, tokenized))
    batches: list[pa.RecordBatch] = []
    for file in data_files(path):
        check_structure(file)
        with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as reader:
            batches += reader
    return _ShownPart(path, read_part_facts(path).categories or (), partial(_prepared_row, batches))


def _prepared_row(batches: Sequence[pa.RecordBatch], number: int) -> dict | None:
    for batch in batches:
        if number < batch.num_rows:
            return batch.slice(number, 1).to_pylist()[0]
        number -= batch.num_rows
    return None


def _tokenized_row(rows: TokenizedRows, number: int) -> dict | None:
    """A row of a data set of another program, in the form of ours."""
    if number >= len(rows):
        return None
    (found,) = checked_rows(rows, number, number + 1)
    row = {"input_ids": found.ids, "labels": found.labels, "document_lengths": found.document_lengths}
    row |= {} if found.categories is None else {CATEGORY_COLUMN: found.categories}
    return {name: values.tolist() for name, values in row.items()}


def _checked_row(part: _ShownPart, number: int, vocabulary: int) -> dict:
    """Reads a row, and checks what decoding it relies on.

    Raises:
        UserError: its columns contradict each other, or an id is outside of the vocabulary.
    """
    row = part.row(number)
    assert row is not None, "_in_turn has seen it"
    ids, labels, lengths = (row[name] for name in ROW_COLUMNS)
    row.setdefault(CATEGORY_COLUMN, [None] * len(lengths))
    where = f"{part.path}, row {number}"
    is_consistent = len(ids) == len(labels) == sum(lengths) and len(lengths) == len(row[CATEGORY_COLUMN])
    if not is_consistent or min(lengths, default=1) < 1:
        raise UserError(f"{where}: ids, labels and lengths of documents are not those of one row: the part is damaged")
    if ids and not (min(ids) >= 0 and max(ids) < vocabulary):
        raise UserError(f"{where} has ids from {min(ids)} to {max(ids)}, and the tokenizer has {vocabulary:,}")
    return row


def row_as_text(row: dict, tokenizer: PreTrainedTokenizerFast, categories: Sequence[str], with_brackets: bool) -> Text:
    """Decodes a row, with its targets and document boundaries marked."""
    text, start = Text(), 0
    documents = list(zip(row["document_lengths"], row["document_categories"], strict=True))
    for number, (length, category) in enumerate(documents, 1):
        boundary = f"── document {number} of {len(documents)}: {_name(category, categories)}{length} tokens ──\n"
        text.append(boundary, style=BOUNDARY_STYLE)
        ids, labels = (np.array(row[name][start : start + length]) for name in ("input_ids", "labels"))
        targets = labels != IGNORED_LABEL
        boundaries = [0, *(np.flatnonzero(np.diff(targets)) + 1).tolist(), length]
        for first, last in pairwise(boundaries):
            decoded = tokenizer.decode(ids[first:last].tolist(), clean_up_tokenization_spaces=False)
            if targets[first]:
                text.append(f"⟦{decoded}⟧" if with_brackets else decoded, style=TARGET_STYLE)
            else:
                text.append(decoded, style=CONTEXT_STYLE)
        text.append("\n")
        start += length
    return text


def _name(category: int | None, categories: Sequence[str]) -> str:
    if category is None:
        return ""
    known = 0 <= category < len(categories)
    return f"{categories[category] if known else f'category {category}'}, "
