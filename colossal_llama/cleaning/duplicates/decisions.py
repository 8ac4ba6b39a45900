"""Merges the signatures of all chunks, and tells what it has decided about a chunk's documents."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from colossal_llama.cleaning.document import Document, Verdict
from colossal_llama.cleaning.duplicates import exact, near, paragraphs
from colossal_llama.cleaning.duplicates.document_index import DocumentIndex
from colossal_llama.cleaning.duplicates.jaccard import TextsOfChunk
from colossal_llama.cleaning.duplicates.signatures import EXACT, NEAR, PARAGRAPHS, DuplicateSettings


class Duplicate(NamedTuple):
    """A document that is dropped as a duplicate.

    Attributes:
        verdict: why.
        kept: number of the document that stays, see `hash_runs`.
    """

    verdict: Verdict
    kept: int


def merge_duplicates(
    directory: Path,
    chunk_sizes: Sequence[int],
    texts_of: TextsOfChunk,
    settings: DuplicateSettings,
    memory_bytes: int,
) -> np.ndarray:
    """Finds the duplicates of all chunks; `ChunkDuplicates` reads what is found.

    Exact duplicates first, near ones among the others, and last the paragraphs among what stays.

    Args:
        directory: of the signatures.
        chunk_sizes: number of documents of each chunk.
        texts_of: returns the texts (`Document.text`) of a chunk, in their order.
        settings: see `DuplicateSettings`.
        memory_bytes: what signatures may take in memory; 40 bytes a document are taken besides.

    Returns:
        True for each document that is dropped, by position among those of all chunks.
    """
    index = DocumentIndex.of_chunks(chunk_sizes)
    is_dropped = np.zeros(len(index), dtype=bool)
    if settings.exact:
        is_dropped |= exact.merge(directory / EXACT, index, memory_bytes)
    if settings.near is not None:
        is_dropped |= near.merge(
            directory / NEAR, index, is_dropped, texts_of, settings.near.min_similarity, memory_bytes
        )
    if settings.min_paragraph_bytes is not None:
        paragraphs.merge(directory / PARAGRAPHS, index, is_dropped, memory_bytes)
    return is_dropped


class ChunkDuplicates:
    """Findings of `merge_duplicates` about the documents of a chunk."""

    def __init__(self, directory: Path, chunk: int, settings: DuplicateSettings):
        self._settings = settings
        has_cuts = settings.min_paragraph_bytes is not None
        self._exact = exact.read_dropped(directory / EXACT, chunk) if settings.exact else {}
        self._near = near.read_dropped(directory / NEAR, chunk) if settings.near is not None else {}
        self._cuts = paragraphs.read_cuts(directory / PARAGRAPHS, chunk) if has_cuts else {}

    def duplicate(self, position: int) -> Duplicate | None:
        """Returns why a document, by its position in the chunk, is dropped; None where it stays."""
        if position in self._exact:
            return Duplicate(Verdict(EXACT, 1.0, "the same text"), self._exact[position])
        if position in self._near and self._settings.near is not None:
            kept, similarity = self._near[position]
            limit = f"min_similarity {self._settings.near.min_similarity:g}"
            return Duplicate(Verdict(NEAR, round(similarity, 4), limit), kept)
        return None

    def cut_paragraphs(self, position: int, document: Document) -> tuple[int, int]:
        """Cuts repeated paragraphs out of a document.

        Returns:
            Their number, and the number of characters by which the document is shorter.
        """
        hashes = self._cuts.get(position)
        if hashes is None or self._settings.min_paragraph_bytes is None:
            return 0, 0
        results = [
            paragraphs.cut_paragraphs(text, hashes, self._settings.min_paragraph_bytes) for text in document.texts
        ]
        document.texts = [result.text for result in results]
        return sum(result.paragraphs for result in results), sum(result.characters for result in results)
