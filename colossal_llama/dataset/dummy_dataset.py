"""Makes full rows of random tokens for benchmarks, divided into documents of equal length."""

import datasets
import numpy as np
from datasets import Features, Sequence, Value

from colossal_llama.utils.labels import IGNORED_LABEL

FIRST_ORDINARY_ID = 3


def random_rows(
    rows: int, length_tokens: int, vocabulary: int, documents_per_row: int = 1, seed: int = 0
) -> datasets.Dataset:
    """Makes rows of random tokens with the columns that the prepare scripts write.

    Args:
        rows: number of rows.
        length_tokens: length of each row.
        vocabulary: number of ids; they are drawn from 3 on.
        documents_per_row: number of documents in each row; must divide `length_tokens`.
        seed: of the ids.

    Returns:
        A data set with `input_ids`, `labels` (int32; -100 where a document begins) and
            `document_lengths`.
    """
    if length_tokens % documents_per_row:
        raise ValueError(f"{documents_per_row} documents do not divide a row of {length_tokens} tokens")
    generator = np.random.default_rng(seed)
    ids = generator.integers(FIRST_ORDINARY_ID, vocabulary, (rows, length_tokens), dtype=np.int32)
    labels = ids.copy()
    labels[:, :: length_tokens // documents_per_row] = IGNORED_LABEL
    lengths = [[length_tokens // documents_per_row] * documents_per_row] * rows
    number = Sequence(Value("int32"))
    features = Features(input_ids=number, labels=number, document_lengths=number)
    columns = {"input_ids": list(ids), "labels": list(labels), "document_lengths": lengths}
    return datasets.Dataset.from_dict(columns, features=features)
