"""Documents that the first pass has kept, on disk: by block, and by their places in the input."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from colossal_llama.cleaning.candidates import Candidate, read_candidates
from colossal_llama.cleaning.signatures import BlockNumbers
from colossal_llama.dataset.prepare.input_files import Chunk

PLACE = np.dtype(np.int32)
_MOST_OPENED = 1024  # files, of which a process may map 65,530 at once


def chunk_base(work_dir: Path, index: int) -> Path:
    """Path of the files of a chunk, without their endings."""
    return work_dir / "chunks" / f"chunk-{index:05d}"


@dataclass(frozen=True)
class CandidateStore:
    """The candidates of all chunks.

    Attributes:
        work_dir: directory of the intermediates.
        blocks: numbers of the blocks.
        sizes: for each chunk number of candidates and first byte of each of its blocks.
        files: for each chunk the name of the file of each range.
        first_rows: for each chunk and each range the number of rows before it in its file.
    """

    work_dir: Path
    blocks: BlockNumbers
    sizes: Sequence[Sequence[tuple[int, int]]]
    files: Sequence[Sequence[str]]
    first_rows: Sequence[Sequence[int]]

    @classmethod
    def of_chunks(
        cls, work_dir: Path, blocks: BlockNumbers, chunks: Sequence[Chunk], facts: Sequence[dict]
    ) -> "CandidateStore":
        """Opens the candidates by the facts of the chunks."""
        files = [[piece.range.file.name for piece in chunk.pieces] for chunk in chunks]
        return cls(work_dir, blocks, [fact["blocks"] for fact in facts], files, _first_rows(chunks, facts))

    @property
    def block_sizes(self) -> list[int]:
        """Number of candidates of all blocks, by their numbers."""
        counts = [0] * (len(self.sizes) * self.blocks.per_chunk)
        for chunk in range(len(self.sizes)):
            for block, size in self.blocks_of(chunk):
                counts[block] = size
        return counts

    def blocks_of(self, chunk: int) -> Iterator[tuple[int, int]]:
        """Number and size of each block of a chunk."""
        for block, (size, _) in zip(self.blocks.of_chunk(chunk), self.sizes[chunk], strict=False):
            yield block, size

    def of_block(self, block: int) -> Iterator[Candidate]:
        """Reads the candidates of a block."""
        chunk, number = divmod(block, self.blocks.per_chunk)
        if number < len(self.sizes[chunk]):
            count, start_bytes = self.sizes[chunk][number]
            yield from read_candidates(chunk_base(self.work_dir, chunk).with_suffix(".candidates"), start_bytes, count)

    def texts_of(self, block: int) -> list[str]:
        """Texts of a block, as they were when its signatures were made."""
        return [candidate.document.text for candidate in self.of_block(block)]

    def position(self, chunk: int, place: Sequence[int]) -> int:
        """Line or record number of a row in its file, counted from 1."""
        piece, row = place
        return self.first_rows[chunk][piece] + row + 1

    def place_of(self, number: int) -> tuple[str, int]:
        """File of a document, by its number, and its line or record number there."""
        block, index = number >> 32, number & 0xFFFFFFFF
        chunk, in_chunk = divmod(block, self.blocks.per_chunk)
        index += sum(size for size, _ in self.sizes[chunk][:in_chunk])
        place = self._places(chunk)[2 * index : 2 * index + 2].tolist()
        return self.files[chunk][place[0]], self.position(chunk, place)

    def _places(self, chunk: int) -> np.ndarray:
        """(2 · candidates) range and row of each candidate of a chunk."""
        if chunk not in self._opened:
            if len(self._opened) >= _MOST_OPENED:
                self._opened.clear()
            self._opened[chunk] = np.memmap(chunk_base(self.work_dir, chunk).with_suffix(".places"), PLACE, "r")
        return self._opened[chunk]

    @cached_property
    def _opened(self) -> dict[int, np.ndarray]:
        return {}


def _first_rows(chunks: Sequence[Chunk], facts: Sequence[dict]) -> list[list[int]]:
    found, next_row = [], 0
    for chunk, fact in zip(chunks, facts, strict=True):
        first_rows = []
        for piece, (rows, _) in zip(chunk.pieces, fact["pieces"], strict=True):
            first_rows.append(next_row if piece.range.start else 0)
            next_row = first_rows[-1] + rows
        found.append(first_rows)
    return found
