"""Collation: rows keep their tokens, labels and documents; padding is known by length."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.dataset.collator import Collator
from colossal_llama.utils.labels import IGNORED_LABEL

documents = st.lists(st.integers(1, 20), min_size=1, max_size=4)


@settings(max_examples=50)
@given(st.lists(documents, min_size=1, max_size=4), st.booleans(), st.booleans())
def test_collated_rows_keep_tokens_labels_and_documents(rows_of_lengths, to_max_length, cross):
    generator = np.random.default_rng(0)
    rows = []
    for lengths in rows_of_lengths:
        ids = generator.integers(0, 50, sum(lengths))
        labels = np.where(generator.random(len(ids)) < 0.5, ids, IGNORED_LABEL)
        rows.append({"input_ids": ids, "labels": labels, "document_lengths": np.array(lengths)})
    collate = Collator(pad_token_id=7, max_length=80, pad_to_max_length=to_max_length, cross_document_attention=cross)
    batch = collate(rows, range(len(rows)))
    width = batch.input_ids.shape[1]
    assert width == (80 if to_max_length else max(2, *map(sum, rows_of_lengths)))
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        assert batch.input_ids[index, :length].tolist() == row["input_ids"].tolist()
        assert batch.labels[index, :length].tolist() == row["labels"].tolist()
        assert (batch.labels[index, length:] == IGNORED_LABEL).all()
        spans = [length] if cross else rows_of_lengths[index]
        assert batch.document_lengths[index] == tuple(spans)
        assert batch.position_ids[index, :length].tolist() == [p for span in spans for p in range(span)]
        assert batch.token_lengths[index, :length].tolist() == [span for span in spans for _ in range(span)]
    assert batch.target_tokens == int((batch.labels[:, 1:] != IGNORED_LABEL).sum())
    assert batch.tokens == sum(map(sum, rows_of_lengths))


def test_real_end_of_sequence_tokens_stay_targets_when_they_also_pad():
    row = {"input_ids": [5, 2], "labels": [IGNORED_LABEL, 2], "document_lengths": [2]}
    batch = Collator(pad_token_id=2, max_length=4, pad_to_max_length=True)([row])
    assert batch.labels.tolist() == [[IGNORED_LABEL, 2, IGNORED_LABEL, IGNORED_LABEL]]


def test_no_row_gives_a_batch_without_targets():
    batch = Collator(pad_token_id=0, max_length=4)([])
    assert batch.input_ids.shape == (1, 2)
    assert (batch.target_tokens, batch.tokens, batch.rows, batch.sample_ids) == (0, 0, 0, ())
    assert torch.equal(batch.labels, torch.full((1, 2), IGNORED_LABEL))
