"""Signatures of documents, written block by block as sorted runs: what the merge compares.

A block is a number of documents of one chunk that follow each other. A chunk of a plain file is one
block; that of a large compressed file, which cannot be divided, is many, so that no more than a
block's texts are in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from colossal_llama.cleaning import boilerplate
from colossal_llama.cleaning.boilerplate import Boilerplate
from colossal_llama.cleaning.document import Document
from colossal_llama.cleaning.duplicates.signatures import (
    EXACT,
    NEAR,
    PARAGRAPHS,
    DuplicateSettings,
    DuplicateSignatures,
)
from colossal_llama.cleaning.hash_runs import run_path
from colossal_llama.cleaning.rule_settings import RuleSettings
from colossal_llama.dataset.prepare.input_files import Chunk
from colossal_llama.readers.formats import TABLE_KINDS, Format
from colossal_llama.utils.checksums import checksum_of

BLOCK_CHARACTERS = 16 << 20
BOILERPLATE = "boilerplate"
_DIRECTORIES = (EXACT, NEAR, PARAGRAPHS, *(f"{BOILERPLATE}/{name}" for name in boilerplate.RUNS))
_GROWTH = 8  # of compressed files, at most, for their blocks to be as small


@dataclass(frozen=True)
class BlockNumbers:
    """Numbers of the blocks of all chunks: as many for each, which are not all used.

    Attributes:
        per_chunk: blocks of a chunk.
    """

    per_chunk: int

    @classmethod
    def for_chunks(cls, chunks: Sequence[Chunk]) -> "BlockNumbers":
        """As many as the largest chunk may need; a last block takes whatever is left."""
        return cls(1 + max((_characters(chunk) // BLOCK_CHARACTERS for chunk in chunks), default=0))

    def of_chunk(self, chunk: int) -> range:
        """Numbers of the blocks of a chunk."""
        return range(chunk * self.per_chunk, (chunk + 1) * self.per_chunk)


def _characters(chunk: Chunk) -> int:
    """Characters of a chunk's texts, at most, unless a file is compressed unusually well."""
    return sum(piece.size_bytes * (_GROWTH if _is_compressed(piece.range.file.format) else 1) for piece in chunk.pieces)


def _is_compressed(format: Format) -> bool:
    return bool(format.compression) or format.kind in TABLE_KINDS or format.kind == ".tar"


class Signatures:
    """Writes the signatures of a chunk's documents."""

    def __init__(self, work_dir: Path, rules: RuleSettings, blocks: range):
        """Begins a chunk.

        Args:
            work_dir: directory of the intermediates.
            rules: in effect.
            blocks: numbers of the chunk's blocks.
        """
        self._directory, self._blocks = signature_dir(work_dir), blocks
        self._duplicates, self._boilerplate = DuplicateSettings.of_rules(rules), Boilerplate.of_rules(rules)
        self._documents: list[Document] = []
        self._characters = 0
        self._start_bytes = 0
        self._written: list[tuple[int, int]] = []

    def add(self, documents: Sequence[Document], start_bytes: int) -> None:
        """Adds documents in the order of the chunk.

        Args:
            documents: of a batch.
            start_bytes: position of the first of them in the file of candidates.
        """
        if self._characters >= BLOCK_CHARACTERS and len(self._written) + 1 < len(self._blocks):
            self._write_block()
            self._start_bytes = start_bytes
        self._documents += documents
        self._characters += sum(document.length_characters for document in documents)

    def finish(self) -> dict:
        """Writes the last block.

        Returns:
            Facts of the chunk: number of documents and first byte of each block, and checksums of
                the runs, by their paths below the signatures.
        """
        self._write_block()
        paths = [
            path
            for block in self._blocks[: len(self._written)]
            for kind in _DIRECTORIES
            if (path := run_path(self._directory / kind, block)).exists()
        ]
        runs = {str(path.relative_to(self._directory)): checksum_of(path).xxh3_128 for path in paths}
        return {"blocks": self._written, "runs_xxh3": runs}

    def _write_block(self) -> None:
        block, documents = self._blocks[len(self._written)], self._documents
        if self._duplicates.are_any_on:
            signatures = DuplicateSignatures(self._directory, block, self._duplicates)
            signatures.add(documents)
            signatures.finish()
        if self._boilerplate is not None:
            texts, groups = [document.text for document in documents], [document.group for document in documents]
            boilerplate.write_lines(self._directory / BOILERPLATE, block, texts, groups)
        self._written.append((len(documents), self._start_bytes))
        self._documents, self._characters = [], 0


def run_problem(work_dir: Path, facts: dict) -> str | None:
    """Names the first of a chunk's runs that has changed since it was written; None without one."""
    for name, checksum in facts["runs_xxh3"].items():
        path = signature_dir(work_dir) / name
        if not path.is_file():
            return f"{name} is missing"
        if checksum_of(path).xxh3_128 != checksum:
            return f"{name} has changed since it was written"
    return None


def signature_dir(work_dir: Path) -> Path:
    """Directory of all signatures."""
    return work_dir / "signatures"
