"""Rows of other programs: every form that is understood means one thing, and others are refused."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.dataset.tokenized.columns import choose_columns
from colossal_llama.dataset.tokenized.row_form import RowProblem, normal_form
from colossal_llama.utils.errors import UserError
from tests.support.tokenized_data import FORMS


def batch_of(**columns) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({name: pa.array(values) for name, values in columns.items()})


def converted(batch: pa.RecordBatch):
    return normal_form(batch, choose_columns(batch.schema, "data", has_category_names=False))


def one(**columns) -> tuple[list[int], list[int], list[int]]:
    """Ids, labels and document lengths of a single row."""
    rows = converted(batch_of(**{name: [values] for name, values in columns.items()}))
    return rows.ids.tolist(), rows.labels.tolist(), rows.document_lengths.tolist()


def problem_of(batch: pa.RecordBatch) -> str:
    with pytest.raises((RowProblem, UserError)) as error:
        converted(batch)
    return str(error.value)


@st.composite
def rows(draw) -> list[dict[str, list[int]]]:
    """Rows of one to four documents of at least two tokens, with labels of -100 anywhere."""
    found = []
    for _ in range(draw(st.integers(1, 6))):
        lengths = draw(st.lists(st.integers(2, 6), min_size=1, max_size=4))
        ids = draw(st.lists(st.integers(1, 50), min_size=sum(lengths), max_size=sum(lengths)))
        trained = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
        labels = [number if is_target else -100 for number, is_target in zip(ids, trained, strict=True)]
        found.append({"input_ids": ids, "labels": labels, "document_lengths": lengths})
    return found


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
@given(made=rows())
def test_each_form_gives_the_rows_it_was_made_from(form, made):
    width = max(len(row["input_ids"]) for row in made)
    formed = [form(row, width) for row in made]
    found = converted(batch_of(**{name: [row[name] for row in formed] for name in formed[0]}))
    begins = np.concatenate([np.cumsum([0, *row["document_lengths"]])[:-1] for row in made])
    offsets = np.repeat(found.starts[:-1], np.diff(found.document_starts))
    labels = np.concatenate([row["labels"] for row in made])
    labels[begins + offsets] = -100
    assert found.ids.tolist() == [number for row in made for number in row["input_ids"]]
    assert found.document_lengths.tolist() == [length for row in made for length in row["document_lengths"]]
    assert np.diff(found.document_starts).tolist() == [len(row["document_lengths"]) for row in made]
    assert found.labels.tolist() == labels.tolist()
    assert found.padding_tokens == sum(len(row["input_ids"]) for row in formed) - len(found.ids)


def test_without_labels_all_tokens_but_the_first_of_a_document_are_targets():
    assert one(input_ids=[5, 6, 7, 8], attention_mask=[1, 1, 2, 2]) == ([5, 6, 7, 8], [-100, 6, -100, 8], [2, 2])
    masked = one(input_ids=[5, 6, 7], completion_mask=[0, 1, 1], assistant_masks=[1, 1, 0])
    assert masked == ([5, 6, 7], [-100, 6, -100], [3])
    assert one(input_ids=[5, 6], labels=[5, 6], completion_mask=[0, 0])[1] == [-100, 6]  # labels decide alone


def test_padding_whose_positions_are_all_zero_is_left_out():
    row = {"input_ids": [5, 6, 7, 0, 0], "labels": [5, 6, 7, -100, -100], "position_ids": [0, 1, 2, 0, 0]}
    assert one(**row, attention_mask=[1] * 5) == ([5, 6, 7], [-100, 6, 7], [3])
    assert one(input_ids=[5, 0, 0], position_ids=[0, 0, 0])[2] == [1]
    assert one(input_ids=[5, 6, 0, 7, 8], position_ids=[0, 1, 0, 0, 1])[2] == [2, 1, 2]  # not at the end


def test_numbers_of_documents_begin_with_0_or_with_1():
    assert one(input_ids=[5, 6, 7, 8], sequence_id=[0, 0, 1, -1]) == ([5, 6, 7], [-100, 6, -100], [2, 1])
    assert one(input_ids=[5, 6, 7, 8], segment_ids=[1, 1, 3, 0]) == ([5, 6, 7], [-100, 6, -100], [2, 1])
    two = converted(batch_of(input_ids=[[5, 6], [7, 8]], segment_ids=[[2, 2], [0, 1]]))
    assert two.document_lengths.tolist() == [2, 1, 1]


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()])
@pytest.mark.parametrize("of_lists", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 3)])
def test_any_integers_in_any_lists_are_read(kind, of_lists):
    ids = pa.array([[0, 6, 127], [7, 8, 9]], of_lists(kind))
    labels = pa.array([[-100, 6, 127], [-100, -100, 9]], pa.list_(pa.int16()))
    batch = pa.RecordBatch.from_arrays([ids, labels], ["input_ids", "labels"])
    assert converted(batch).labels.tolist() == [-100, 6, 127, -100, -100, 9]
    assert converted(batch.slice(1, 1)).ids.tolist() == [7, 8, 9]
    booleans = pa.array([[True, True, False]] * 2)
    masked = pa.RecordBatch.from_arrays([ids, booleans], ["input_ids", "attention_mask"])
    assert converted(masked).ids.tolist() == [0, 6, 7, 8]


REFUSED = {
    "labels shifted": ({"labels": [6, 7, 8, -100]}, "row 1: its labels are shifted already"),
    "labels shifted to the next row": ({"labels": [6, 7, 8, 9]}, "row 1: its labels are shifted already"),
    "another label": ({"labels": [5, 6, -1, 8]}, "row 1: the label -1 of token 2 is neither -100 nor the token's id 7"),
    "fewer labels": ({"labels": [5, 6]}, "row 1: labels has 2 values for 4 ids"),
    "hole in the mask": ({"attention_mask": [1, 0, 1, 1]}, "row 1: attention_mask marks padding between"),
    "padding only": ({"attention_mask": [0, 0, 0, 0]}, "row 1: it holds padding only"),
    "negative mask": ({"attention_mask": [1, 1, -1, 1]}, "row 1: attention_mask has the value -1"),
    "falling numbers": ({"attention_mask": [2, 2, 1, 1]}, "row 1: attention_mask falls"),
    "falling segments": ({"segment_ids": [1, 2, 1, 1]}, "row 1: segment_ids falls"),
    "positions that leap": ({"position_ids": [0, 1, 3, 4]}, "row 1: position_ids has 3 at token 2"),
    "positions from 1": ({"position_ids": [1, 2, 3, 4]}, "row 1: position_ids has 1 at token 0"),
    "other lengths": ({"seq_lengths": [2, 3]}, "row 1: seq_lengths gives 5 tokens, and it has 4 without padding"),
    "length of 0": ({"document_lengths": [4, 0]}, "row 1: document_lengths has a document of 0 tokens"),
    "two divisions": ({"position_ids": [0, 1, 0, 1], "seq_lengths": [4]}, "row 1: position_ids and seq_lengths divide"),
    "mask of targets": ({"completion_mask": [0, 2, 1, 1]}, "row 1: completion_mask has the value 2"),
    "negative id": ({"input_ids": [5, -6, 7, 8]}, "row 1: -6 is no token id"),
    "large id": ({"input_ids": [5, 2**31, 7, 8]}, "row 1: 2147483648 is no token id"),
    "no token": ({"input_ids": []}, "row 1: it holds no token"),
    "two dimensions": ({"attention_mask": [[1], [1], [1], [1]]}, "attention_mask has the type list"),
    "fractions": ({"labels": [5.0, 6.0, 7.0, 8.0]}, "labels has the type list<item: double>"),
}


@pytest.mark.parametrize(("columns", "said"), REFUSED.values(), ids=list(REFUSED))
def test_what_is_not_understood_is_refused_with_its_row(columns, said):
    row = {"input_ids": [5, 6, 7, 8]} | columns
    good = {"labels": [5, 6], "seq_lengths": [2], "document_lengths": [2], "position_ids": [0, 1], "input_ids": [5, 6]}
    first = {name: good.get(name, [1, 1]) for name in row}
    if said.endswith(("list", "double>")):
        first = row
    assert said in problem_of(batch_of(**{name: [first[name], row[name]] for name in row}))
