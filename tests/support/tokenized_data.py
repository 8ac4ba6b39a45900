"""Data sets as other programs save them, made from the rows of parts."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

import datasets

Row = dict[str, list[int]]
Form = Callable[[Row, int], Row]
"""Changes a row, which has `document_lengths`, given the length of the longest row."""


def rows_of(part: Path) -> list[Row]:
    """Rows of a part, without categories."""
    return [
        {name: row[name] for name in ("input_ids", "labels", "document_lengths")}
        for row in datasets.load_from_disk(str(part))
    ]


def as_they_are(row: Row, width: int) -> Row:
    """Ids, labels and document lengths."""
    return dict(row)


def one_document(row: Row, width: int) -> Row:
    """Ids and labels: a row is one document."""
    return {name: row[name] for name in ("input_ids", "labels")}


def padded_right(row: Row, width: int) -> Row:
    """Padded to one length as tokenizers do, with a mask of 0 and 1, and TRL's `seq_lengths`."""
    missing = width - len(row["input_ids"])
    return {
        "input_ids": row["input_ids"] + [0] * missing,
        "labels": row["labels"] + [0] * missing,
        "attention_mask": [1] * len(row["input_ids"]) + [0] * missing,
        "seq_lengths": row["document_lengths"],
    }


def padded_left(row: Row, width: int) -> Row:
    """The same with the padding at the left, and positions that begin anew."""
    missing = width - len(row["input_ids"])
    return {
        "input_ids": [0] * missing + row["input_ids"],
        "labels": [-100] * missing + row["labels"],
        "attention_mask": [0] * missing + [1] * len(row["input_ids"]),
        "position_ids": [1] * missing + _positions(row),
    }


def with_positions(row: Row, width: int) -> Row:
    """Positions that begin anew, and a mask of ones, as LLaMA-Factory and axolotl pack."""
    return one_document(row, width) | {"position_ids": _positions(row), "attention_mask": [1] * len(row["input_ids"])}


def with_numbered_mask(row: Row, width: int) -> Row:
    """A mask that numbers the documents from 1, and 0 for padding."""
    missing = width - len(row["input_ids"])
    numbers = [number for number, length in enumerate(row["document_lengths"], 1) for _ in range(length)]
    padded = padded_right(row, width)
    return {name: padded[name] for name in ("input_ids", "labels")} | {"attention_mask": numbers + [0] * missing}


def with_sequence_id(row: Row, width: int) -> Row:
    """Numbers of documents from 0, and -1 for padding."""
    numbered = with_numbered_mask(row, width)
    return {
        "input_ids": numbered["input_ids"],
        "labels": numbered["labels"],
        "sequence_id": [number - 1 for number in numbered["attention_mask"]],
    }


FORMS: dict[str, Form] = {
    form.__name__: form
    for form in (as_they_are, padded_right, padded_left, with_positions, with_numbered_mask, with_sequence_id)
}
"""Forms that say which tokens are documents."""


def save(rows: Sequence[Row], path: Path, form: Form, files: int = 1, dtype: str = "int64") -> Path:
    """Saves rows in a form, as several Arrow files, with ids and labels of a type."""
    width = max(len(row["input_ids"]) for row in rows)
    made = datasets.Dataset.from_list([form(row, width) for row in rows])
    for name in ("input_ids", "labels"):
        if name in made.column_names:
            made = made.cast_column(name, datasets.Sequence(datasets.Value(dtype)))
    made.save_to_disk(str(path), num_shards=files)
    return path


def _positions(row: Row) -> list[int]:
    starts = [0, *accumulate(row["document_lengths"])]
    return [
        position - start
        for start, length in zip(starts, row["document_lengths"], strict=False)
        for position in range(start, start + length)
    ]
