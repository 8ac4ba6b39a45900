"""Columns of a tokenized data set: those that training reads, and those that it refuses."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from colossal_llama.utils.errors import UserError

IDS, LABELS, MASK, POSITIONS, CATEGORIES = (
    "input_ids",
    "labels",
    "attention_mask",
    "position_ids",
    "document_categories",
)
TARGET_MASKS = ("completion_mask", "assistant_masks")
"""1 for a token that is a target, as TRL and transformers write them."""
SEGMENTS = ("segment_ids", "sequence_id", "sequence_ids", "seq_idx", "document_ids")
"""For each token the number of its document."""
LENGTHS = ("document_lengths", "seq_lengths", "seq_lens")
"""For each document its length; `seq_lengths` is TRL's name, `seq_lens` torchtune's."""
_WITHOUT_EFFECT = ("special_tokens_mask", "token_type_ids", *TARGET_MASKS)
"""Of target masks where there are labels, which decide alone."""
_IDS_ELSEWHERE = ("tokens", "token_ids", "ids", "inputs")


@dataclass(frozen=True)
class Columns:
    """Columns that are read; empty or False for those that the data set does not have.

    Attributes:
        labels: True where there are labels.
        attention_mask: True where there is a mask of padding, or of documents.
        position_ids: True where there are positions.
        target_masks: names of masks of targets; none where there are labels.
        segments: names of columns with a document number for each token.
        lengths: names of columns with the lengths of documents.
        categories: True where each document has a category.
        unread: names of columns that have no meaning here.
    """

    labels: bool
    attention_mask: bool
    position_ids: bool
    target_masks: tuple[str, ...]
    segments: tuple[str, ...]
    lengths: tuple[str, ...]
    categories: bool
    unread: tuple[str, ...] = ()

    @property
    def of_tokens(self) -> tuple[str, ...]:
        """Names of the columns with a value for each token, the ids first."""
        single = {LABELS: self.labels, MASK: self.attention_mask, POSITIONS: self.position_ids}
        return (IDS, *(name for name, has in single.items() if has), *self.target_masks, *self.segments)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all columns that are read."""
        return (*self.of_tokens, *self.lengths, *((CATEGORIES,) if self.categories else ()))


def choose_columns(schema: pa.Schema, path: Path, has_category_names: bool) -> Columns:
    """Chooses the columns to read by their names, and checks their types.

    Args:
        schema: of the Arrow file.
        path: of the data set, for messages.
        has_category_names: True where the numbers of categories have names.

    Raises:
        UserError: there are no ids, or a column has another type; all problems are named.
    """
    names = set(schema.names)
    if IDS not in names:
        raise UserError(f"{path} {_missing_ids(schema)}")
    has_labels = LABELS in names
    columns = Columns(
        labels=has_labels,
        attention_mask=MASK in names,
        position_ids=POSITIONS in names,
        target_masks=() if has_labels else tuple(name for name in TARGET_MASKS if name in names),
        segments=tuple(name for name in SEGMENTS if name in names),
        lengths=tuple(name for name in LENGTHS if name in names),
        categories=has_category_names and CATEGORIES in names,
    )
    unread = tuple(name for name in schema.names if name not in columns.names)
    problems = [f"{path}: {problem}" for name in columns.names if (problem := _type_problem(schema, name))]
    if problems:
        raise UserError(problems)
    return Columns(**{**columns.__dict__, "unread": unread})


def per_token_columns(batch: pa.RecordBatch, columns: Columns) -> Iterator[str]:
    """Unread columns with a number for each token, by the rows of a batch.

    They may say what to train on or what to attend to, so that leaving them out could train on
    something else.
    """
    lengths = pc.list_value_length(batch.column(IDS))
    for name in columns.unread:
        kind = batch.schema.field(name).type
        if name in _WITHOUT_EFFECT or not is_list(kind) or not _is_number(kind.value_type):
            continue
        if batch.num_rows and pc.list_value_length(batch.column(name)).cast(lengths.type).equals(lengths):
            yield name


def is_list(kind: pa.DataType) -> bool:
    """True for the types of lists that are read."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def _type_problem(schema: pa.Schema, name: str) -> str | None:
    if schema.names.count(name) > 1:
        return f"the column {name} is there twice"
    kind = schema.field(name).type
    may_be_boolean = name == MASK or name in TARGET_MASKS
    if is_list(kind):
        value = kind.value_type
        if pa.types.is_integer(value) or (may_be_boolean and pa.types.is_boolean(value)):
            return None
    needed = "lists of 0 and 1, or of integers" if may_be_boolean else "lists of integers"
    remedy = "cast it" if name in (IDS, LABELS) else f"cast it, or leave it out with remove_columns({name!r})"
    return f"the column {name} has the type {kind}, and {needed} are needed: {remedy}, and save the data set again"


def _missing_ids(schema: pa.Schema) -> str:
    """Explains what a data set without ids is, and what to do with it."""
    listed = f"it has {', '.join(schema.names) or 'no columns'}"
    for name in _IDS_ELSEWHERE:
        if name in schema.names and is_list(schema.field(name).type):
            renamed = f"rename_column({name!r}, {IDS!r})"
            return f"has no column {IDS} ({listed}): if {name} are token ids, save it again with {renamed}"
    return (
        f"has no column {IDS} ({listed}): texts and conversations are prepared with prepare_pretrain_dataset.py or "
        "prepare_sft_dataset.py first"
    )
