"""Exact duplicates: of equal texts the first stays, in any chunks and with any memory."""

import numpy as np
import pytest

from colossal_llama.cleaning.duplicates import exact
from colossal_llama.cleaning.duplicates.document_index import DocumentIndex
from colossal_llama.cleaning.hash_runs import document_numbers, hash_texts

TEXTS = ["b", "a", "", "a ", "a", "字", "", "a", "b", "字", "B", "字"]
KEPT = {4: 1, 6: 2, 7: 1, 8: 0, 9: 5, 11: 5}


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_of_equal_texts_the_first_stays(tmp_path, size):
    chunks = [TEXTS[start : start + size] for start in range(0, len(TEXTS), size)]
    for number in reversed(range(len(chunks))):
        exact.write_signatures(tmp_path, number, hash_texts(chunks[number]))
    index = DocumentIndex.of_chunks(list(map(len, chunks)))
    assert np.flatnonzero(exact.merge(tmp_path, index, 1)).tolist() == list(KEPT)
    found = {
        number * size + position: index.positions(np.array([kept], dtype=np.uint64))[0]
        for number in range(len(chunks))
        for position, kept in exact.read_dropped(tmp_path, number).items()
    }
    assert found == KEPT


def test_a_text_of_very_many_documents_stays_once(tmp_path):
    for number in range(3):
        exact.write_signatures(tmp_path, number, hash_texts(["advertisement"] * 5000 + [f"text {number}"]))
    is_dropped = exact.merge(tmp_path, DocumentIndex.of_chunks([5001] * 3), 1)
    assert np.flatnonzero(~is_dropped).tolist() == [0, 5000, 10001, 15002]
    assert exact.read_dropped(tmp_path, 2)[4999] == 0


def test_positions_and_numbers_of_documents_are_inverse():
    index = DocumentIndex.of_chunks([3, 0, 2, 0])
    numbers = np.concatenate([document_numbers(0, [0, 1, 2]), document_numbers(2, [0, 1])])
    assert index.positions(numbers).tolist() == [0, 1, 2, 3, 4]
    assert index.numbers(np.arange(5)).tolist() == numbers.tolist()
    assert (len(index), index.num_chunks, index.chunk(2)) == (5, 4, slice(3, 5))
