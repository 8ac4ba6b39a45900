"""Exact duplicates: documents with the same text, of which the first stays.

The hash of 64 bits decides alone. Among a thousand million different texts, two are taken for
equal with a probability of 3%.
"""

from pathlib import Path

import numpy as np

from colossal_llama.cleaning import hash_runs
from colossal_llama.cleaning.duplicates.document_index import DocumentIndex

DROPPED = "dropped"


def write_signatures(directory: Path, chunk: int, hashes: np.ndarray) -> None:
    """Writes the hashes of a chunk's texts, one for each document, in their order."""
    hash_runs.write_run(directory, chunk, hashes, hash_runs.document_numbers(chunk, np.arange(len(hashes))))


def merge(directory: Path, index: DocumentIndex, memory_bytes: int) -> np.ndarray:
    """Finds the documents whose text an earlier one has; writes them, each with the first.

    Args:
        directory: of the signatures; `read_dropped` reads there what is written.
        index: of all documents.
        memory_bytes: see `hash_runs.groups`.

    Returns:
        True for each document that is dropped, by position.
    """
    hash_runs.remove_runs(directory / DROPPED)
    is_dropped = np.zeros(len(index), dtype=bool)
    for number, groups in enumerate(hash_runs.groups(directory, memory_bytes)):
        is_later = np.ones(len(groups.documents), dtype=bool)
        is_later[groups.starts[:-1]] = False
        first = np.repeat(groups.documents[groups.starts[:-1]], groups.sizes)
        hash_runs.write_run(directory / DROPPED, number, groups.documents[is_later], first[is_later])
        is_dropped[index.positions(groups.documents[is_later])] = True
    return is_dropped


def read_dropped(directory: Path, chunk: int) -> dict[int, int]:
    """Reads which documents of a chunk are dropped, by position in it: the number of the first."""
    documents, kept = hash_runs.read_documents(directory / DROPPED, chunk)
    return dict(zip(hash_runs.positions_in_chunk(documents), kept.tolist(), strict=True))
