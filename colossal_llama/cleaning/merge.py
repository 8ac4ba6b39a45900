"""Merge of all signatures: duplicates, repeated paragraphs, recurring lines."""

from dataclasses import dataclass
from pathlib import Path

from colossal_llama.cleaning.candidates import Candidate
from colossal_llama.cleaning.document import Verdict


@dataclass
class ChunkDecisions:
    """Decisions of the merge about the documents of a chunk."""

    def apply(self, number: int, candidate: Candidate) -> Verdict | None:
        """Cuts what recurs out of a document; returns why the document is dropped, if it is."""
        return None


@dataclass(frozen=True)
class Decisions:
    """Decisions of the merge, on disk.

    Attributes:
        directory: of the decisions.
    """

    directory: Path

    def of_chunk(self, chunk: int) -> ChunkDecisions:
        """Reads the decisions about a chunk's documents."""
        return ChunkDecisions()


def merge(work_dir: Path) -> Decisions:
    """Finds what recurs among all documents, by the signatures of all chunks."""
    return Decisions(work_dir / "decisions")
