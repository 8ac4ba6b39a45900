"""Rows of a tokenized data set, memory-mapped: read by number, or many at once."""

import bisect
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from colossal_llama.dataset.part_content import FOREIGN_ERRORS, data_files, first_line
from colossal_llama.dataset.tokenized.columns import Columns, choose_columns, per_token_columns
from colossal_llama.dataset.tokenized.row_form import normal_form
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.json_files import read_json_object


class TokenizedRows:
    """Record batches of a data set's Arrow files, in order, and the columns that are read.

    The batches are memory-mapped: a row is read from the disk when it is asked for.
    """

    def __init__(self, path: Path, batches: Sequence[pa.RecordBatch], columns: Columns):
        """Numbers the rows of all batches consecutively."""
        self.path, self.columns = path, columns
        self._batches = [batch for batch in batches if batch.num_rows]
        self._starts = [0, *itertools.accumulate(batch.num_rows for batch in self._batches)]

    def __len__(self) -> int:
        """Number of rows."""
        return self._starts[-1]

    def slices(self, first: int, last: int) -> list[tuple[int, pa.RecordBatch]]:
        """Rows from `first` to before `last`: slices of batches, with their first row's number."""
        found = []
        while first < last:
            batch = bisect.bisect_right(self._starts, first) - 1
            end = min(last, self._starts[batch + 1])
            found.append((first, self._batches[batch].slice(first - self._starts[batch], end - first)))
            first = end
        return found

    def row(self, number: int) -> dict[str, np.ndarray]:
        """Reads one row in the form of our parts, with categories where documents have them."""
        ((_, batch),) = self.slices(number, number + 1)
        rows = normal_form(batch, self.columns)
        named = {"input_ids": rows.ids, "labels": rows.labels, "document_lengths": rows.document_lengths}
        return named if rows.categories is None else {**named, "document_categories": rows.categories}


def open_rows(path: Path) -> tuple[TokenizedRows, tuple[Path, ...], tuple[str, ...]]:
    """Opens the Arrow files of a data set on disk.

    Returns:
        Its rows, its files, and the names of its categories.

    Raises:
        UserError: it is damaged, its files have several forms, or a column is not understood.
    """
    state = read_json_object(path / "state.json")
    if state.get("_indices_data_files"):
        raise UserError(f"{path} is saved as a selection of other rows: save it again with a newer `datasets`")
    if state.get("_data_files") == []:
        raise UserError(f"{path} holds no rows")
    files = data_files(path)
    batches = [_batches(file) for file in files]
    schemas = [schema for schema, _ in batches]
    names = _category_names(path)
    columns = choose_columns(schemas[0], path, bool(names))
    for file, schema in zip(files, schemas, strict=True):
        differs = [
            name
            for name in columns.names
            if name not in schema.names or schema.field(name).type != schemas[0].field(name).type
        ]
        if differs:
            raise UserError(
                f"{file} has no column {differs[0]}, or of another type than {files[0].name}: save the data set again"
            )
    every = [batch for _, of_file in batches for batch in of_file]
    strange = [name for batch in every[:1] for name in per_token_columns(batch, columns)]
    if strange:
        raise UserError(
            f"{path} has values for each token whose meaning is not known here ({', '.join(strange)}): what they ask "
            f"for would be left out; save it without them, remove_columns({strange})"
        )
    selected = [batch.select(list(columns.names)) for batch in every]
    return TokenizedRows(path, selected, columns), tuple(files), names if columns.categories else ()


def _batches(file: Path) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    try:
        with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as reader:
            return reader.schema, list(reader)
    except FOREIGN_ERRORS as error:
        raise UserError(f"{file} is damaged: {first_line(error)}; copy it again") from error


def _category_names(path: Path) -> tuple[str, ...]:
    """Names of the numbers in `document_categories`, where dataset_info.json has them."""
    node: Any = read_json_object(path / "dataset_info.json")
    for key in ("features", "document_categories", "feature", "names"):
        node = node.get(key) if isinstance(node, dict) else None
    is_usable = isinstance(node, list) and all(isinstance(name, str) for name in node) and len(set(node)) == len(node)
    return tuple(node) if is_usable else ()
